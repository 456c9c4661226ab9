"""Plugins that need another version of the host, or of another plugin, are kept apart before they are imported."""

import sys

import pytest

import wan_host
from tests.test_plugins import good, records
from wan_host.plugins import discover

MAJOR, MINOR, *_ = wan_host.__version__.split(".")
NEXT = f"{MAJOR}.{int(MINOR) + 1}"
FINE = [
    f"wan-host>={MAJOR}.{MINOR},<{NEXT}",
    f"wan_host ~= {wan_host.__version__}",
    "WAN.Host",
    f'wan-host>={NEXT}; python_version < "3"',
    f'wan-host>={NEXT}; extra == "gpu"',
    "torch>=99",
    "wan-hosting>=7",
]
WRONG = {
    f"wan-host>={NEXT},<99": f"it needs wan-host<99,>={NEXT}, and {wan_host.__version__} is installed",
    "wan_host<0.0.1": "it needs wan_host<0.0.1, and ",
    "wan-host-other>=2": "it needs wan-host-other>=2, and 1.2.3 is installed",
    "wan-host-absent>=1": "it needs wan-host-absent>=1, which is not installed: pip install 'wan-host-absent>=1'",
    "wan-host >>= 3": "its metadata requires 'wan-host >>= 3', which cannot be read",
}
MARK = "import sys; sys.imported_although_wrong = True\n"


@pytest.mark.parametrize("line", FINE)
def test_a_plugin_whose_ranges_hold_works(environment, line):
    environment.add("good", good("good"), requires=[line])
    assert records(discover())["good"].status == "ok"


@pytest.mark.parametrize("line", WRONG)
def test_a_plugin_for_other_versions_is_quarantined_unimported_and_breaks_no_other(environment, line, monkeypatch):
    environment.add("other", good("other"))
    environment.add("wrong", MARK + good("wrong"), requires=["numpy", line])
    monkeypatch.delattr(sys, "imported_although_wrong", raising=False)
    found = records(discover())
    assert found["wrong"].status == "quarantined"
    assert found["wrong"].error.startswith(WRONG[line])
    assert found["other"].status == "ok"
    assert not hasattr(sys, "imported_although_wrong")


def test_a_plugin_that_needs_one_that_is_there_works(environment):
    environment.add("other", good("other"))
    environment.add("good", good("good"), requires=["wan-host-other>=1,<2"])
    assert {record.status for record in discover().records} == {"ok"}
