"""The queue that ships for tests is the real one."""

import pytest

from wan_host.testing.queue import LocalQueue


def test_jobs_are_pushed_seen_and_waited_for(tmp_path):
    with LocalQueue(tmp_path / "data") as queue:
        queue.push({"id": "a", "type": "video_fast", "prompt": "x", "user_id": "u"})
        queue.push("no json")
        assert queue.wait_for("a", "waiting").payload.startswith('{"id": "a"')
        assert queue.state("b") is None
        assert queue.ask(lambda real: real.cancel("a")) == "cancelled"
        with pytest.raises(TimeoutError, match=r"a is not completed within 0 s, but .*cancelled"):
            queue.wait_for("a", "completed", seconds=0)
        assert [letter.reason for letter in queue.ask(lambda real: real.dead_letters())] == ["not_json"]
