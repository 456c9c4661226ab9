"""Batches: files and lists of jobs, grids, and ids that do not change."""

import json
from pathlib import Path

import pytest

from wan_host import batch as module
from wan_host.batch import MAX_JOBS, expand_batch, read_batch, same_payload

BASE = {"type": "video_fast", "user_id": "u", "prompt": "a cat"}
ROOM = 1 << 20


def job(job_id=None, **fields):
    return {**({"id": job_id} if job_id else {}), **BASE, **fields}


def grid(**axes):
    base = {name: value for name, value in BASE.items() if name not in axes}
    return {"id": "cats", **base, "grid": {name.replace("__", "."): values for name, values in axes.items()}}


def lines(*entries):
    return "\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)


def read(text):
    return read_batch(text, max_bytes=ROOM)


def jobs(text):
    batch = read(text)
    assert batch.problems == ()
    return [json.loads(item.text) for item in batch.jobs]


def problems(text):
    return {problem.place: problem.message for problem in read(text).problems}


@pytest.mark.parametrize(
    "text",
    [
        lines(job("a"), job("b")),
        lines(job("a"), "", "   ", job("b"), ""),
        "\ufeff" + lines(job("a"), job("b")),
        lines(job("a"), job("b")).replace("\n", "\r\n"),
        json.dumps([job("a"), job("b")], indent=2),
    ],
    ids=["lines", "blank lines", "byte order mark", "windows", "array"],
)
def test_a_batch_is_json_lines_or_an_array(text):
    assert [item.id for item in read(text.encode()).jobs] == ["a", "b"]


def test_a_file_with_one_job_is_a_batch_of_one_however_it_is_laid_out():
    assert jobs(json.dumps(job("a"), indent=2)) == [job("a")]


def test_a_text_between_lines_is_part_of_its_string_and_no_end_of_line():
    assert [item["prompt"] for item in jobs(lines(job("a", prompt="one\u2028two"), job("b")).replace("\\u2028", "\u2028"))] == [
        "one\u2028two",
        "a cat",
    ]


def test_a_job_is_pushed_as_it_was_written_unknown_fields_and_all():
    assert jobs(lines(job("a", quality="best", config={"frames": 9, "compel_enabled": True}))) == [
        job("a", quality="best", config={"frames": 9, "compel_enabled": True})
    ]


def test_every_line_that_is_wrong_is_named_and_the_others_are_read():
    batch = read(lines(job("a"), "{", job("b", config={"frames": 99}), [1], job("c")))
    assert [item.id for item in batch.jobs] == ["a", "c"]
    assert [(problem.place, problem.message.split(";")[0].split(" (")[0]) for problem in batch.problems] == [
        (2, "payload: '{' is not allowed"),
        (3, "config.frames: 99 is not allowed"),
        (4, "payload: [1] is not allowed"),
    ]


def test_one_broken_document_is_one_problem():
    assert list(problems(json.dumps(job("a"), indent=2).removesuffix("}"))) == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "there is no job in it"),
        (b"\n \n", "there is no job in it"),
        (b'{"id": "\xff"}', "byte 8 is no UTF-8"),
        (b'{"id": NaN}', "NaN is no JSON"),
        (b"[" * 100_000, "it must be a JSON object"),
        (b"3", "payload: 3 is not allowed; it must be a JSON object"),
    ],
)
def test_what_is_no_batch_is_refused(text, message):
    (problem,) = read(text).problems
    assert message in problem.message


def test_a_grid_is_every_combination_the_last_field_changing_fastest():
    found = jobs(lines(grid(prompt=["a", "b"], config__guidance_scale=[4, 6], config__seed=[1, 2])))
    assert [(item["prompt"], item["config"]["guidance_scale"], item["config"]["seed"]) for item in found] == [
        *[("a", 4, 1), ("a", 4, 2), ("a", 6, 1), ("a", 6, 2)],
        *[("b", 4, 1), ("b", 4, 2), ("b", 6, 1), ("b", 6, 2)],
    ]
    assert len({item["id"] for item in found}) == 8
    assert all(item["id"].startswith("cats-") and "grid" not in item for item in found)


def test_a_grid_adds_to_the_fields_that_all_its_jobs_share():
    entry = {**grid(config__seed=[1, 2]), "config": {"frames": 9}, "metadata": None}
    assert [item["config"] for item in jobs(lines(entry))] == [{"frames": 9, "seed": 1}, {"frames": 9, "seed": 2}]


def test_ids_follow_from_the_content_alone():
    first = [item["id"] for item in jobs(lines(grid(prompt=["a", "b"], config__seed=[1, 2])))]
    other_order = [item["id"] for item in jobs(lines(grid(config__seed=[2, 1], prompt=["b", "a"])))]
    grown = [item["id"] for item in jobs(lines(grid(prompt=["a", "b", "c"], config__seed=[1, 2])))]
    assert set(first) == set(other_order)
    assert set(first) < set(grown)
    (plain,), (again,) = jobs(lines(job())), jobs(json.dumps(dict(reversed(job().items()))))
    assert plain["id"] == again["id"]
    assert plain["id"].startswith("batch-")


def test_two_jobs_that_cannot_be_told_apart_are_refused():
    assert "the entry at 1 has it; every job needs an id of its own" in problems(lines(job("a"), job("a", prompt="b")))[2]
    assert "it is the same job; give one of them an id or a seed" in problems(lines(job(), job()))[2]
    assert "the entry at 1 has it" in problems(lines(grid(config__seed=[1, 1])))[1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (grid(), "grid: {} is not allowed"),
        ({**BASE, "grid": [1]}, "grid: [1] is not allowed; it must map fields to lists"),
        (grid(config__seed=3), "grid.config.seed: 3 is not allowed; it must be a list"),
        (grid(config__seed=[]), "grid.config.seed: [] is not allowed"),
        (grid(config__sed=[1]), "did you mean config.seed?"),
        (grid(id=["a"]), "there is no such field of a payload"),
        ({**BASE, "grid": {"prompt": ["x"]}}, "the entry says prompt: 'a cat' as well"),
        ({**grid(config__seed=[1]), "config": {"seed": 2}}, "the entry says config.seed: 2 as well"),
        ({**grid(config__seed=[1]), "config": 3}, "config: 3 is not allowed"),
        ({**grid(config__seed=[1]), "id": 3}, "id: 3 is not allowed"),
        ({**grid(config__seed=[1]), "id": "a/b"}, "1 to 128 of the characters"),
        (grid(config__seed=["x"]), "config.seed: 'x' is not allowed"),
        (grid(config__seed=list(range(101)), config__fps=[8] * 100), "10100 combinations"),
        (job("x" * 200), "1 to 128 of the characters"),
        ({**BASE, "prompt": None}, "prompt: "),
    ],
)
def test_a_wrong_entry_is_one_clear_line(entry, message):
    (found,) = problems(lines(entry)).values()
    assert message in found
    assert len(found) < 400


def test_of_a_grid_with_one_wrong_value_nothing_is_pushed():
    assert read(lines(grid(config__frames=[9, 99]))).jobs == ()


def test_a_batch_and_its_jobs_have_limits():
    many = read(lines(*(grid(config__seed=list(range(at, at + 4000))) for at in (0, 4000, 8000))))
    assert len(many.jobs) == 8000
    assert f"at most {MAX_JOBS} jobs" in many.problems[0].message
    (large,) = read_batch(lines(job("a", prompt="x" * 2000)), max_bytes=1500).problems
    assert "at most 1500 (WAN_HOST_MAX_ENTRY_BYTES)" in large.message


@pytest.fixture
def parsed(monkeypatch):
    """Count the jobs that are really made."""
    made = []
    parse = module.parse_payload
    monkeypatch.setattr(module, "parse_payload", lambda text: made.append(text) or parse(text))
    return made


def test_what_stands_for_too_many_jobs_is_refused_before_one_is_made(parsed):
    entries = [grid(config__seed=list(range(11))), job("a"), grid(config__seed=list(range(10))), job("b")]
    batch = expand_batch(enumerate(entries, start=1), max_bytes=ROOM, max_jobs=10)
    assert [item.id for item in batch.jobs] == ["a", "b"]
    assert [problem.place for problem in batch.problems] == [1, 3]
    assert "11 combinations" in batch.problems[0].message
    assert "a batch has at most 10 jobs" in batch.problems[1].message
    assert len(parsed) == 2


def test_jobs_of_entries_that_are_wrong_count_too(parsed):
    wrong = [grid(config__frames=[9, 9 + 4 * number, "x"]) for number in range(1, 50)]
    batch = expand_batch(enumerate(wrong, start=1), max_bytes=ROOM, max_jobs=10)
    assert (batch.jobs, len(batch.problems)) == ((), 49)
    assert len(parsed) <= 10


def test_the_texts_of_a_batch_together_have_a_limit(parsed):
    entries = [job("a"), {**grid(config__seed=list(range(1000))), "prompt": "x" * 1000}, job("b")]
    batch = expand_batch(enumerate(entries, start=1), max_bytes=ROOM, max_total_bytes=20_000)
    assert [item.id for item in batch.jobs] == ["a", "b"]
    (found,) = batch.problems
    assert (found.place, "together at most 20000 bytes" in found.message) == (2, True)
    assert len(parsed) < 25


def test_a_program_can_expand_what_it_has_parsed_itself():
    batch = expand_batch(enumerate([job("a"), job("b", config={"frames": float("nan")})], start=1), max_bytes=ROOM)
    assert [item.id for item in batch.jobs] == ["a"]
    assert [(problem.place, problem.message) for problem in batch.problems] == [
        (2, "payload: 'ValueError' is not allowed; it must be JSON")
    ]


def test_the_same_job_is_recognised_however_it_is_written():
    assert same_payload('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    assert not same_payload('{"a": 1}', '{"a": 2}')
    assert not same_payload("not json", "not json")


def test_the_documented_grid_is_twelve_jobs():
    text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith('{"id": "cats"')]
    assert len(jobs(line)) == 12
