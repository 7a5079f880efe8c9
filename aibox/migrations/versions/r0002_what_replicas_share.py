"""API keys, answers for idempotency keys, what budgets have used, and what pseudonyms stand for.

Replicas share them, so that a request means the same on whichever of them it lands.
"""

from __future__ import annotations

from aibox.migrations.secure import execute, policy, schema, secure, table

revision = "0002"
down_revision = "0001"

KEYS = (
    'id text PRIMARY KEY, hash bytea NOT NULL, tenant text NOT NULL, "user" text NOT NULL, roles text NOT NULL, '
    "note text NOT NULL, created bigint NOT NULL, expires bigint NOT NULL, last_used bigint, revoked bigint NOT NULL"
)
# Whose they are is a keyed digest, as everything is that a name could be read from.
ANSWERS = (
    'name bytea PRIMARY KEY, tenant bytea NOT NULL, "user" bytea NOT NULL, request bytea NOT NULL, '
    "expires bigint NOT NULL, done bigint NOT NULL, answer bytea"
)
SPENT = (
    'tenant text NOT NULL, "user" text NOT NULL, period text NOT NULL, input_tokens bigint NOT NULL, '
    "output_tokens bigint NOT NULL, calls bigint NOT NULL, micro_usd bigint NOT NULL, "
    'PRIMARY KEY (tenant, "user", period)'
)
PSEUDONYMS = (
    "tenant text NOT NULL, token text NOT NULL, stem text NOT NULL, same bytea NOT NULL, exact bytea NOT NULL, "
    "sealed bytea NOT NULL, PRIMARY KEY (tenant, token), UNIQUE (tenant, exact)"
)
OWNERS = 'tenant text NOT NULL, token text NOT NULL, "user" bytea NOT NULL, PRIMARY KEY (tenant, "user", token)'
HIDDEN = "tenant = decode(current_setting('aibox.tenant'), 'hex')"
OVER = "USING (expires <= extract(epoch FROM now()))"


def upgrade() -> None:
    schema("aibox_server")
    table("aibox_server.keys", KEYS)
    execute("CREATE INDEX keys_tenant ON aibox_server.keys (tenant)")
    # Whose a key is says the key: who names one, by the public half of what only its holder has, may read that row.
    policy("aibox_server.keys", "one_key", "FOR SELECT USING (id = current_setting('aibox.key', true))")
    table("aibox_server.answers", ANSWERS, mine=HIDDEN)
    execute("CREATE INDEX answers_expire ON aibox_server.answers (expires)")
    # An answer is kept for a day and no longer, also when nobody of its tenant comes any more.
    policy("aibox_server.answers", "over", f"FOR DELETE {OVER}")
    policy("aibox_server.answers", "over_is_found", f"FOR SELECT {OVER}")
    table("aibox_server.spent", SPENT)
    schema("aibox_pseudonyms")
    # A proof of the box's key, and nothing of any tenant. There is one.
    execute("CREATE TABLE aibox_pseudonyms.keys (proof bytea PRIMARY KEY, one boolean NOT NULL DEFAULT true UNIQUE)")
    secure("aibox_pseudonyms.keys", rights="SELECT, INSERT")
    policy("aibox_pseudonyms.keys", "anybody_reads", "FOR SELECT USING (true)")
    policy("aibox_pseudonyms.keys", "the_first_adds", "FOR INSERT WITH CHECK (one)")
    table("aibox_pseudonyms.pseudonyms", PSEUDONYMS)
    execute("CREATE INDEX stems ON aibox_pseudonyms.pseudonyms (tenant, stem)")
    table("aibox_pseudonyms.owners", OWNERS)


def downgrade() -> None:
    execute("DROP SCHEMA aibox_pseudonyms CASCADE")
    execute("DROP SCHEMA aibox_server CASCADE")
