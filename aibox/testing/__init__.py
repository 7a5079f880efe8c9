"""Doubles and contract suites for the tests of people who build with aibox."""

from aibox.testing.scripted import ScriptedBackend as ScriptedBackend
from aibox.testing.scripted import call as call

__all__ = ["ScriptedBackend", "call"]
