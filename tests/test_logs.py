"""The log: one line an event, the same form for the host and every library in it."""

import io
import json
import logging
import logging.config
import sys
import warnings

import pytest
import structlog
import uvicorn.config

from wan_host import logs


@pytest.fixture(autouse=True)
def restored():
    """Leave logging as it was found."""
    root, raised = logging.getLogger(), logging.raiseExceptions
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs._QUIET}
    logging.raiseExceptions = True
    yield
    root.handlers[:], logging.raiseExceptions = handlers, raised
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def configured(log_format="json", level="info"):
    out = io.StringIO()
    logs.configure(log_format, level, out)
    return out


def lines(out):
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_event_is_one_json_object_in_one_line():
    out = configured()
    structlog.get_logger("wan_host.jobs").info("job started", job="j-1", attempt=2, note="two\nlines")
    (line,) = lines(out)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "job started",
        "job": "j-1",
        "attempt": 2,
        "note": "two\nlines",
        "logger": "wan_host.jobs",
        "level": "info",
    }


@pytest.mark.parametrize("name", ["uvicorn.error", "a.library"])
def test_lines_of_libraries_have_the_same_form(name):
    out = configured()
    logging.getLogger(name).warning("bound to %s\nand %d", "here", 5)
    (line,) = lines(out)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "bound to here\nand 5", "logger": name, "level": "warning"}


@pytest.mark.parametrize("logger", [logging.getLogger("a.library"), structlog.get_logger("wan_host.x")])
def test_a_traceback_stays_within_the_line(logger):
    out = configured()
    try:
        raise ValueError("what happened")
    except ValueError:
        logger.exception("it failed")
    (line,) = lines(out)
    assert (line["event"], line["level"]) == ("it failed", "error")
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: what happened")


def test_values_that_json_does_not_know_do_not_break_the_line():
    out = configured()
    structlog.get_logger("x").info("odd", value={1, 2}, path=sys, bad="\ud800")
    assert len(lines(out)) == 1


def test_warnings_of_python_are_events_too():
    out = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    (line,) = lines(out)
    assert line["logger"] == "py.warnings"
    assert "old way" in line["event"]


def test_what_is_bound_to_a_job_is_in_every_line():
    out = configured()
    with structlog.contextvars.bound_contextvars(job="j-1"):
        structlog.get_logger("x").info("a")
        logging.getLogger("y").error("b")
    assert [line["job"] for line in lines(out)] == ["j-1", "j-1"]


def test_the_level_holds_for_both_kinds_of_loggers():
    out = configured(level="warning")
    structlog.get_logger("x").info("not shown")
    logging.getLogger("y").info("not shown")
    structlog.get_logger("x").warning("shown")
    logging.getLogger("y").error("shown")
    assert [line["event"] for line in lines(out)] == ["shown", "shown"]


@pytest.mark.parametrize("name", ["httpx", "httpcore.connection", "redis", "uvicorn.access", "PIL.Image", "asyncio"])
def test_libraries_that_tell_addresses_or_every_request_are_quiet(name):
    out = configured(level="debug")
    logging.getLogger(name).info("GET https://user:secret@host/?token=secret")
    logging.getLogger(name).warning("shown")
    assert [line["event"] for line in lines(out)] == ["shown"]


def test_for_people_a_line_is_plain_text_without_colours_where_nobody_can_see_them():
    out = configured("text")
    structlog.get_logger("wan_host.jobs").info("job started", job="j-1")
    (line,) = out.getvalue().splitlines()
    assert "job started" in line
    assert "job=j-1" in line
    assert "\x1b" not in line


def test_a_traceback_is_shown_to_people_too():
    out = configured("text")
    try:
        raise ValueError("what happened")
    except ValueError:
        structlog.get_logger("x").exception("it failed")
    assert "ValueError: what happened" in out.getvalue()


def test_to_configure_again_replaces_what_was_before():
    first, second = configured(), configured()
    structlog.get_logger("x").info("once")
    assert (first.getvalue(), len(lines(second))) == ("", 1)


def test_the_lines_go_to_standard_error_unless_told_otherwise(capsys):
    logs.configure("json", "info")
    structlog.get_logger("x").info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "hello"


def test_handlers_that_a_library_has_set_up_give_way():
    logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    out = configured()
    logging.getLogger("uvicorn.error").warning("shown")
    assert [line["event"] for line in lines(out)] == ["shown"]
