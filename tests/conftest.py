"""What the tests of several modules use."""

import hypothesis

from tests.fake_plugins import environment

__all__ = ["environment"]

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")
