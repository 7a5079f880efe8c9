"""Doubles and contract suites for the tests of people who build with aibox."""

from aibox.testing.scripted import ScriptedBackend as ScriptedBackend
from aibox.testing.scripted import call as call
from aibox.testing.unsafe_local import UnsafeLocalDriver as UnsafeLocalDriver

__all__ = ["ScriptedBackend", "UnsafeLocalDriver", "call"]
