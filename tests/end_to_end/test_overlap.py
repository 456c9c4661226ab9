"""What is overlapped with generating: with a receiver that takes its time, lanes go on; without overlap they wait."""

import time

from tests.end_to_end.conftest import payload

JOBS = [f"job-{index}" for index in range(8)]


def order(worker, *wanted):
    """The events of a worker's log in their order, as pairs of event and job."""
    return [(event["event"], event["job"]) for event in worker.events() if event["event"] in wanted]


def test_a_slow_receiver_holds_no_lane_up(site):
    site.receiver.answer = lambda _: time.sleep(1.5) or 200
    worker = site.start()
    for job in JOBS:
        site.push(payload(job))
    for job in JOBS:
        site.receiver.wait_for(job, "completed")
    events = order(worker, "job started", "job published")
    assert events[: len(JOBS)] == [("job started", job) for job in JOBS], "none waits for the report of another"


def test_without_overlap_a_job_is_claimed_when_the_one_before_is_reported(site):
    site.receiver.answer = lambda _: time.sleep(0.3) or 200
    worker = site.start(WAN_HOST_OVERLAP="false")
    for job in JOBS[:3]:
        site.push(payload(job))
    for job in JOBS[:3]:
        site.receiver.wait_for(job, "completed")
    time.sleep(0.2)
    assert order(worker, "job started", "report accepted") == [
        (event, job) for job in JOBS[:3] for event in ("job started", "report accepted")
    ]
