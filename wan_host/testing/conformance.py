"""What ``wan-host plugin test`` runs, by pytest: the contract of every hook of one installed plugin, and a short chaos run.

``WAN_HOST_TESTING_PLUGIN`` names the plugin, ``WAN_HOST_TESTING_MODEL`` a model for the chaos run, ``WAN_HOST_TESTING_CHAOS=0``
leaves that out.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from wan_host.testing.contract import CONTRACTS, Contract, PluginContract
from wan_host.testing.trial import choose_model, run_trial

PLUGIN = os.environ["WAN_HOST_TESTING_PLUGIN"]


class TestChaos(Contract):
    """The plugin in a worker that is killed."""

    plugin = PLUGIN
    configured = False

    @pytest.mark.skipif(os.environ.get("WAN_HOST_TESTING_CHAOS") == "0", reason="left out by --no-chaos")
    def test_no_job_is_lost_while_a_lane_and_a_worker_are_killed(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Every job ends well, once, and an attempt makes the same file as any other."""
        hooks = self.installed_hooks()
        model = choose_model(hooks, PLUGIN, os.environ.get("WAN_HOST_TESTING_MODEL") or None)
        with tempfile.TemporaryDirectory(prefix="wan-host-") as folder:  # sockets need short paths
            trial = run_trial(PLUGIN, hooks, Path(folder), model=model)
        with capsys.disabled():
            print(f"\nchaos: {trial}")  # noqa: T201  # for the person at the terminal
        assert not trial.wrong, "\n".join(trial.wrong)
        assert trial.lanes_killed, "no job ran long enough for its lane to be killed"


def _contracts() -> dict[str, type[Contract]]:
    """Make a test class of every contract that the plugin's hooks come under."""
    (record,) = (record for record in TestChaos.installed_hooks().registry.records if record.name == PLUGIN)
    wanted: set[type[Contract]] = {CONTRACTS[hook] for hook in record.hooks}
    wanted -= {Contract}
    wanted.add(PluginContract)
    return {
        f"Test{contract.__name__}": type(f"Test{contract.__name__}", (contract,), {"plugin": PLUGIN, "configured": False})
        for contract in wanted
    }


globals().update(_contracts())
