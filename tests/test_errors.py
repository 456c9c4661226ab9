"""The tree of errors: what the docstring draws is what there is."""

import pickle
import re

import pytest

from wan_host import errors
from wan_host.errors import InvalidJob, PermanentError, RetryableError, WanHostError, shown

CLASSES = [getattr(errors, name) for name in errors.__all__]


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    drawn = {}
    parents = {0: "WanHostError"}
    for line in errors.__doc__.splitlines():
        match = re.match(r"^    ((?:\|   |    )*)[|`]-- (\w+)  +\w", line)
        if match:
            depth = len(match[1]) // 4 + 1
            drawn[match[2]] = parents[depth - 1]
            parents[depth] = match[2]
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in CLASSES if kind is not WanHostError}


def test_every_error_has_a_type_of_its_own():
    types = [kind.error_type for kind in CLASSES]
    assert len(set(types)) == len(types)
    assert all(re.fullmatch(r"[a-z_]+", name) for name in types)


def test_every_error_of_the_module_is_listed():
    assert {kind for kind in vars(errors).values() if isinstance(kind, type)} == set(CLASSES)


def test_no_error_is_both_permanent_and_retryable():
    assert not any(issubclass(kind, PermanentError) and issubclass(kind, RetryableError) for kind in CLASSES)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not InvalidJob])
def test_an_error_crosses_process_borders_as_it_is(kind):
    copy = pickle.loads(pickle.dumps(kind("what happened")))
    assert (type(copy), str(copy), copy.error_type) == (kind, "what happened", kind.error_type)


def test_a_refusal_crosses_process_borders_without_the_value():
    error = InvalidJob("config.width", "x" * 10_000_000, "a number")
    text = pickle.dumps(error)
    copy = pickle.loads(text)
    assert len(text) < 1000
    assert (type(copy), str(copy)) == (InvalidJob, str(error))


def test_a_refusal_names_the_field_the_value_and_what_is_allowed():
    assert str(InvalidJob("config.fps", 60, "8 to 24")) == "config.fps: 60 is not allowed; 8 to 24"


@pytest.mark.parametrize("value", ["x" * 10_000, list(range(10_000)), [10**5000], "a\nb", {"k": "v" * 1000}])
def test_values_of_strangers_are_shown_short_and_in_one_line(value):
    assert len(shown(value)) < 150
    assert "\n" not in shown(value)


def test_a_value_that_is_nested_beyond_measure_can_still_be_named():
    value = []
    for _ in range(100_000):
        value = [value]
    assert shown(value) == "list"
