"""A short chaos run of one plugin: real workers, a store and a receiver that fail, and SIGKILL for a lane and a worker.

The plugin does whatever it has hooks for: its model generates, or it publishes, enhances, changes frames, derives files. The rest
is done by the model that costs nothing and a store on loopback. In the end every job must have ended well, once, and the jobs of
each pair, which differ in their id alone, must have given the same file.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from wan_host.hooks import Hooks
from wan_host.model import MediaKind, ModelInfo
from wan_host.queue import EmbeddedServer
from wan_host.testing import instant, remote_store
from wan_host.testing.contract.lane import CPU_MIB
from wan_host.testing.outside import Faults, Outside
from wan_host.testing.process import WorkerProcess
from wan_host.testing.samples import is_there, sample_payload

_FAULT_RATE = 0.2
_PAIRS = 4
_PACE = "pace:0.05"
_KILL_WORKER_AFTER = 3
_TICK = 0.05
_DISTURB_SECONDS = 60.0
_STORE = "trial_store"


@dataclass(slots=True)
class Trial:
    """What a run did and found: ``wrong`` is empty after a good one."""

    model: str
    jobs: int
    seconds: float = 0.0
    lanes_killed: int = 0
    workers_killed: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Say it in a line."""
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items())) or "none"
        killed = f"lanes killed: {self.lanes_killed}, workers: {self.workers_killed}"
        return f"{self.jobs} jobs with {self.model} in {self.seconds:.0f} s; {killed}; faults outside: {faults}"


def choose_model(hooks: Hooks, plugin: str, named: str | None) -> ModelInfo:
    """Return the model of a run: the one that is named, else the smallest of the plugin's that a CPU can run, else ``instant``.

    Raises LookupError for a name that no plugin offers.
    """
    models = hooks.models()
    if named is not None:
        if named not in models:
            raise LookupError(f"model {named!r} is offered by no installed plugin; there are {', '.join(models) or 'none'}")
        return models[named]
    (record,) = (record for record in hooks.registry.records if record.name == plugin)
    own = [model for name, model in models.items() if name in record.models or model.runner == plugin]
    small = [model for model in own if model.kind == "generate" and 0 < model.vram_mib <= CPU_MIB and is_there(model)]
    return min(small, key=lambda model: model.vram_mib) if small else instant.list_models()[0]


def run_trial(plugin: str, hooks: Hooks, folder: Path, *, model: ModelInfo, seed: int = 1, seconds: float = 150) -> Trial:
    """Run the plugin in ``folder``, which must be new and have a short path, for at most so many seconds.

    It takes ten or so, and a minute more where the worker dies with a report that it had not delivered yet: others take that over
    after a minute.
    """
    (record,) = (record for record in hooks.registry.records if record.name == plugin)
    payloads = _payloads(hooks, plugin, model)
    trial = Trial(model=model.name, jobs=len(payloads))
    begun = time.monotonic()
    with Outside(Faults(seed=seed, rate=_FAULT_RATE, hang_seconds=3.0)) as outside:
        environment = _environment(plugin, hooks, model, folder, outside)
        workers = [WorkerProcess(data_dir=folder / "data", environment=environment)]
        try:
            workers[0].start().wait_ready()
            with Redis.from_url(EmbeddedServer(folder / "data").url) as queue:
                for payload in payloads:
                    queue.rpush("wan_queue", json.dumps(payload))
            _disturb(trial, outside, workers, again=lambda: WorkerProcess(data_dir=folder / "data", environment=environment))
            if not _wait(lambda: len(_ends(outside)) == len(payloads), begun + seconds):
                missing = sorted({payload["id"] for payload in payloads} - set(_ends(outside)))
                trial.wrong.append(f"not ended within {seconds:.0f} s: {', '.join(missing)}; {workers[-1].log_tail()}")
        finally:
            for worker in workers:
                worker.__exit__(None, None, None)
        trial.wrong += _wrong(outside, read_back="publish" not in record.hooks)
        trial.faults, trial.seconds = dict(outside.faults.made), time.monotonic() - begun
    return trial


def _payloads(hooks: Hooks, plugin: str, model: ModelInfo) -> list[dict[str, Any]]:
    """Return pairs of jobs, images and videos in turns where model and plugin serve both."""
    processor = hooks.frame_processors().get(plugin)
    enhances = plugin in hooks.plugins_with("enhance_prompt")
    served = {defaults.media for defaults in model.job_types.values()} & (processor.media if processor else {"image", "video"})
    kinds: list[MediaKind] = sorted(served)
    payloads = []
    for number in range(_PAIRS):
        for twin in "ab":
            kind = kinds[number % len(kinds)]
            payload = sample_payload(model, f"trial-{number}-{twin}", media=kind, seed=100 + number, num_inference_steps=4)
            if model.runner == "instant":
                payload["prompt"] = f"{_PACE} {payload['prompt']}"
            if enhances:
                types = model.job_types.items()
                payload["type"] = next(name for name, defaults in types if defaults.enhance and defaults.media == kind)
            if processor is not None:
                payload["config"]["postprocess"] = [plugin]
            payloads.append(payload)
    return payloads


def _environment(plugin: str, hooks: Hooks, model: ModelInfo, folder: Path, outside: Outside) -> dict[str, str]:
    """Return what leads a worker to the plugin and to the world outside, and keeps other plugins out of it."""
    (folder / "plugins").mkdir(parents=True)
    provider = next((record.name for record in hooks.registry.records if model.name in record.models), "instant")
    offered = {_STORE: remote_store.__name__} | ({"instant": instant.__name__} if provider == "instant" else {})
    instant.install(folder / "plugins", offered, distribution="wan-host-trial")
    (record,) = (record for record in hooks.registry.records if record.name == plugin)
    needed = {plugin, model.runner, provider}
    others = [other.name for other in hooks.registry.records if other.name not in needed]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "plugins"), os.environ.get("PYTHONPATH", "")])),
        "WAN_HOST_MODEL": model.name,
        "WAN_HOST_DEVICES": "cpu",
        "WAN_HOST_DISABLED_PLUGINS": ",".join(others),
        "WAN_HOST_REQUIRED_PLUGINS": plugin,
        "WAN_HOST_PUBLISHER": plugin if "publish" in record.hooks else _STORE,
        "WAN_HOST_ENHANCE_FAILURE": "fail",
        "WAN_HOST_LEASE_SECONDS": "3",
        "WAN_HOST_MAX_ATTEMPTS": "6",
        "WAN_HOST_CALLBACK_TIMEOUT": "2",
        "WAN_HOST_CALLBACK_URL": f"{outside.url}/reports",
        remote_store.URL_VARIABLE: f"{outside.url}/store",
        **({"WAN_HOST_ENHANCER": plugin} if "enhance_prompt" in record.hooks else {}),
    }


def _disturb(trial: Trial, outside: Outside, workers: list[WorkerProcess], *, again: Callable[[], WorkerProcess]) -> None:
    """Kill a lane in the middle of the first job, and the worker after some more."""
    until = time.monotonic() + _DISTURB_SECONDS
    if _wait(lambda: bool(_denoising(workers[0])), until):
        for pid in workers[0].lane_pids():
            os.kill(pid, signal.SIGKILL)
            trial.lanes_killed += 1
    if _wait(lambda: len(_ends(outside)) >= _KILL_WORKER_AFTER and _denoising(workers[0]), until):
        workers[0].signal(signal.SIGKILL)
        workers[0].wait()
        trial.workers_killed += 1
        workers.append(again())
        workers[-1].start().wait_ready()


def _denoising(worker: WorkerProcess) -> bool:
    try:
        lanes = worker.get("/health")[1]["lanes"]
    except (OSError, LookupError, TypeError):
        return False
    return any(lane["step"] for lane in lanes)


def _wait(condition: Callable[[], bool], until: float) -> bool:
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_TICK)
    return True


def _ends(outside: Outside) -> dict[str, list[dict[str, Any]]]:
    """Return the reports of ends that were accepted, by job."""
    found = defaultdict(list)
    for arrival in list(outside.arrivals):
        if arrival.accepted and arrival.report["status"] != "processing":
            found[arrival.report["job_id"]].append(arrival.report)
    return found


def _wrong(outside: Outside, *, read_back: bool) -> list[str]:
    """Return everything that does not add up."""
    wrong = []
    files: dict[str, set[bytes]] = defaultdict(set)
    for job_id, reports in sorted(_ends(outside).items()):
        report = reports[0]
        if any(other != report for other in reports):
            wrong.append(f"{job_id}: several ends were reported")
        if report["status"] != "completed":
            wrong.append(f"{job_id}: {report['status']}: {report.get('error_message')}")
            continue
        for asset in report["assets"] if read_back else ():
            data = outside.objects.get(asset["url"].removeprefix("store/"))
            if data is None or len(data) != asset["metadata"]["file_size_bytes"]:
                wrong.append(f"{job_id}: {asset['url']} is not the file that was reported")
            else:
                files[job_id.rpartition("-")[0]].add(data)
    return wrong + [f"{pair}: attempts of the same job made different files" for pair, made in files.items() if len(made) != 1]
