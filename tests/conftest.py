"""What the tests of several modules use."""

from tests.fake_plugins import environment

__all__ = ["environment"]
