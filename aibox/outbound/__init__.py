"""What other systems hear of a box: traces, and webhooks. Nothing of it decides anything, and nothing waits for it."""
