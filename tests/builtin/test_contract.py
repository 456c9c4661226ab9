"""What is built in keeps the same contract as plugins do."""

import pytest

from wan_host.builtin import log as log_reports
from wan_host.builtin.callback import HttpCallback
from wan_host.builtin.local import LocalPublisher
from wan_host.hooks import Hooks
from wan_host.plugins import discover
from wan_host.testing.contract import PublisherContract, ReportContract
from wan_host.testing.receiver import Receiver


class TestLocalPublisher(PublisherContract):
    plugin = "local"

    @pytest.fixture
    def hooks(self, environment, tmp_path):
        self.outputs = tmp_path / "outputs"
        return Hooks(discover(builtins={"local": LocalPublisher(self.outputs, "bucket")}))

    def published(self, url):
        return (self.outputs / url).read_bytes()


class TestCallback(ReportContract):
    plugin = "callback"

    @pytest.fixture
    def hooks(self, environment):
        with Receiver() as self.receiver:
            callback = HttpCallback(self.receiver.url, secret="secret", bearer=None, timeout=5)
            yield Hooks(discover(builtins={"callback": callback}))
            callback.close()

    @pytest.fixture(autouse=True)
    def started(self, hooks):
        """Make the receiver before it is told how to answer."""

    def receiver_answers(self, status):
        self.receiver.answer = lambda _: status


class TestLog(ReportContract):
    plugin = "log"

    @pytest.fixture
    def hooks(self, environment):
        return Hooks(discover(builtins={"log": log_reports}))

    @pytest.mark.skip(reason="a log takes everything")
    def test_the_receivers_answer_decides(self): ...
