"""The ledger notices what it is there for."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from tests.chaos.fleet import left_processes
from tests.chaos.ledger import Books, expected_file, reconcile
from tests.chaos.plan import Options, make_plan
from tests.chaos.soak import Sample, growth
from wan_host.queue.embedded import EmbeddedServer, server_binary
from wan_host.queue.records import DeadLetter, JobState
from wan_host.testing.outside import Arrival

OPTIONS = Options(seed=5, jobs=5)
PLAN = make_plan(OPTIONS, "http://x")
PLAIN, HOPELESS = PLAN.jobs[0], PLAN.jobs[4]
PICTURE = f"chaos/{PLAIN.id}/0.png"
ABOUT = {"frames": 1, "fps": 0, "seed": PLAIN.payload["config"].get("seed", 9)}
ASSET = {"url": f"store/{PICTURE}", "metadata": ABOUT}


async def test_an_embedded_server_that_is_left_behind_is_found(tmp_path):
    server = EmbeddedServer(tmp_path / "data")
    await server.start()
    try:
        assert [process.name() for process in left_processes(tmp_path)] == [server_binary().name]
    finally:
        await server.stop()
    assert not left_processes(tmp_path)


def report(job_id, status, sequence, attempt=1, **more):
    return {"job_id": job_id, "status": status, "sequence": sequence, "metadata": {"attempt": attempt}, **more}


def arrival(job_id, status, sequence, attempt=1, **more):
    return Arrival(report(job_id, status, sequence, attempt, **more), f"{job_id}:{attempt}:{status}", accepted=True)


@pytest.fixture
def books(tmp_path):
    """A job that was completed and one that could only fail."""
    picture = expected_file(PLAIN.reference, "0.png", ABOUT, tmp_path)
    return Books(
        options=OPTIONS,
        jobs=[PLAIN, HOPELESS],
        pushes=Counter({PLAIN.id: 1, HOPELESS.id: 1}),
        poison=Counter({"poison": 1}),
        states=[
            JobState(PLAIN.id, "completed", attempts=1, runs=1, sequence=20, result={"assets": [ASSET]}),
            JobState(HOPELESS.id, "failed", attempts=1, runs=1, sequence=7, error={"error_type": "lane_crashed"}),
        ],
        letters=[
            DeadLetter("1-0", HOPELESS.id, "lane_crashed", 1.0, 1, "{}"),
            DeadLetter("2-0", "", "not_json", 1.0, 6, "poison"),
        ],
        arrivals=[
            arrival(PLAIN.id, "processing", 10),
            arrival(PLAIN.id, "completed", 20),
            arrival(HOPELESS.id, "failed", 7),
        ],
        objects={PICTURE: picture},
        puts=[(PICTURE, picture)],
        runs=[(PLAIN.id, 1), (HOPELESS.id, 1)],
    )


def changed_state(books, number, **fields):
    states = list(books.states)
    states[number] = dataclasses.replace(states[number], **fields)
    return {"states": states}


FAULTS = {
    "lost": lambda books: {"states": books.states[1:]},
    "the queue lists an id twice": lambda books: {"states": [*books.states, books.states[0]]},
    "nobody pushed it": lambda books: {"jobs": books.jobs[1:]},
    "ended as published": lambda books: changed_state(books, 0, status="published"),
    "failed with {'error_type': 'internal'}": lambda books: changed_state(
        books, 0, status="failed", error={"error_type": "internal"}
    ),
    "0 dead letters, status failed": lambda books: {"letters": books.letters[1:]},
    "2 dead letters": lambda books: {"letters": [*books.letters, books.letters[0]]},
    "0 dead letters of 1 pushes": lambda books: {"letters": books.letters[:1]},
    "attempt 1 was run 2 times": lambda books: {"runs": [*books.runs, books.runs[0]]},
    "5 runs, 4 allowed": lambda books: {"runs": [(PLAIN.id, attempt) for attempt in range(1, 6)]},
    "attempt 2 was started, the queue counted 1": lambda books: {"runs": [*books.runs, (PLAIN.id, 2)]},
    "nobody was told": lambda books: {"arrivals": books.arrivals[:2]},
    "the receiver was last told processing": lambda books: {"arrivals": [*books.arrivals, arrival(PLAIN.id, "processing", 30)]},
    "had 2 contents": lambda books: {"arrivals": [*books.arrivals, arrival(PLAIN.id, "completed", 20, assets=[1])]},
    "2 different ends were reported": lambda books: {"arrivals": [*books.arrivals, arrival(PLAIN.id, "failed", 5)]},
    "completed by several attempts": lambda books: {"arrivals": [*books.arrivals, arrival(PLAIN.id, "completed", 15, 2)]},
    "and run again": lambda books: changed_state(books, 0, runs=2),
    "the store holds []": lambda books: {"objects": {}},
    "the store holds ['0.png', '1.png']": lambda books: {"objects": {**books.objects, f"chaos/{PLAIN.id}/1.png": b""}},
    "is not what its seed and reference make": lambda books: {"objects": {PICTURE: b"something else"}},
    "2 different versions were uploaded": lambda books: {"puts": [*books.puts, (PICTURE, b"something else")]},
    "completed without a result": lambda books: changed_state(books, 0, result=None),
}


def test_books_that_add_up_are_found_to(books, tmp_path):
    balance = reconcile(books, tmp_path)
    assert balance.wrong == []
    assert balance.ends == {"completed": 1, "failed": 1, "poison": 1, "runs": 2}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(books, tmp_path, fault):
    wrong = reconcile(dataclasses.replace(books, **FAULTS[fault](books)), tmp_path).wrong
    assert any(fault in line for line in wrong), wrong


@pytest.mark.parametrize("name", ["resident", "descriptors", "shared", "threads"])
def test_a_worker_that_grows_is_found(name):
    still = [Sample(at, 1, resident=100 << 20, descriptors=30, shared=0, threads=20) for at in range(40)]
    growing = [dataclasses.replace(item, worker=2, **{name: getattr(item, name) + (item.at << 20)}) for item in still]
    assert growth(still) == []
    (line,) = growth([*still, *growing])
    assert line.startswith(f"worker 2: {name} grew")
