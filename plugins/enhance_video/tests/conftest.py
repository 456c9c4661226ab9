import pytest

from wan_host import JobCancelled


class Context:
    """A job that is cancelled at its ``cancel_at``-th sign of life."""

    def __init__(self):
        self.beats, self.cancel_at = 0, None

    def progress(self, note=""):
        self.beats += 1
        if self.beats == self.cancel_at:
            raise JobCancelled("job was cancelled")


@pytest.fixture
def context():
    return Context()
