"""What jobs cost: an estimate of a job's seconds, fitted on what the jobs before it took on this worker.

Jobs of one kind (model, preset, media, reference mode) are compared by the pixels of all their frames. The same shape tells
directly; others through a power law, whose exponent is drawn towards 1 while there is little to fit: attention grows faster than
the number of pixels, other work slower. The history is small, kept in the data folder, and of one device.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from wan_host.job import Job
from wan_host.run import Expected

_KINDS = 32
_KEPT = 48
"""Jobs of each kind: with these limits the file stays below 200 kB."""
_SAME_SHAPE = 5
_PRIOR_WEIGHT = 0.5
"""How much spread of sizes (squared, in natural logarithms) it takes to believe the data half."""
_SAVE_SECONDS = 30.0
_DENOISE = ("denoise", "generate")
_BEFORE = ("fetch", "enhance", "text_encode", "latents")
_AFTER = ("decode", "process_frames", "encode", "postprocess", "publish")
log = structlog.get_logger("wan_host.costs")


@dataclass(frozen=True, slots=True)
class Observation:
    """What one job took, in seconds: ``step`` is one denoising step, ``load`` is 0 where the model was there already."""

    size: int
    step: float
    before: float
    after: float
    load: float
    total: float


class CostModel:
    """The history of one worker's device."""

    def __init__(self, file: Path, *, device: str) -> None:
        """Read the history; one of another device, or one that cannot be read, is begun anew."""
        self._file, self._device = file, device
        self._kinds: OrderedDict[str, deque[Observation]] = OrderedDict()
        self._saved = float("-inf")
        try:
            self._read(json.loads(file.read_text("utf-8")))
        except FileNotFoundError:
            pass
        except Exception as error:  # noqa: BLE001  # whatever stands in the file: estimates are not worth a worker that does not start
            log.warning("the history of costs is begun anew", file=str(file), error=str(error))
            self._kinds.clear()

    def observe(self, job: Job, seconds: Mapping[str, float]) -> None:
        """Learn what a job took, by stage."""
        steps = job.request.num_inference_steps * job.request.num_images
        found = Observation(
            size=_size(job),
            step=_sum(seconds, _DENOISE) / steps,
            before=_sum(seconds, _BEFORE),
            after=_sum(seconds, _AFTER),
            load=seconds.get("load", 0.0),
            total=sum(seconds.values()),
        )
        kind = self._kinds.setdefault(_kind(job), deque(maxlen=_KEPT))
        kind.append(found)
        self._kinds.move_to_end(_kind(job))
        while len(self._kinds) > _KINDS:
            self._kinds.popitem(last=False)

    def estimate(self, job: Job, *, loaded: bool = True) -> Expected | None:
        """Return what a job will take, None where none of its kind was done; with the load of its model if that is not there."""
        history = self._kinds.get(_kind(job))
        if not history:
            return None
        size, steps = _size(job), job.request.num_inference_steps * job.request.num_images
        loads = [item.load for item in history if item.load > 0]
        return Expected(
            before=_predict(((item.size, item.before) for item in history), size)
            + (statistics.median(loads) if loads and not loaded else 0.0),
            denoise=steps * _predict(((item.size, item.step) for item in history), size),
            after=_predict(((item.size, item.after) for item in history), size),
        )

    def mean_seconds(self) -> float | None:
        """Return what the latest jobs took on average, whatever they were; None before the first."""
        totals = [item.total for history in self._kinds.values() for item in list(history)[-8:]]
        return statistics.fmean(totals) if totals else None

    def save(self, *, now: bool = False) -> None:
        """Write the history, unless it was written a moment ago; blocks for a millisecond. A fault is logged: it costs no job."""
        if not now and time.monotonic() - self._saved < _SAVE_SECONDS:
            return
        self._saved = time.monotonic()
        kinds = {
            name: [[item.size, *(round(value, 4) for value in _seconds(item))] for item in items]
            for name, items in self._kinds.items()
        }
        partial = self._file.with_suffix(f".{secrets.token_hex(8)}.part")  # workers may share the folder, even process ids
        try:
            partial.write_text(json.dumps({"device": self._device, "kinds": kinds}), "utf-8")
            partial.replace(self._file)
        except OSError as error:
            log.warning("the history of costs cannot be written", file=str(self._file), error=str(error))
            with contextlib.suppress(OSError):
                partial.unlink()

    def _read(self, document: Any) -> None:
        if document["device"] != self._device:
            return
        for name, rows in list(document["kinds"].items())[-_KINDS:]:
            items = [Observation(int(size), *(float(value) for value in values)) for size, *values in rows[-_KEPT:]]
            if any(item.size <= 0 or not all(math.isfinite(value) and value >= 0 for value in _seconds(item)) for item in items):
                raise ValueError(f"{name}: sizes and seconds must be positive")
            self._kinds[str(name)] = deque(items, maxlen=_KEPT)


def _predict(history: Iterable[tuple[int, float]], size: int) -> float:
    """Return the seconds at ``size``, from pairs of size and seconds, the latest last."""
    pairs = list(history)
    same = [seconds for there, seconds in pairs if there == size][-_SAME_SHAPE:]
    if same:
        return statistics.median(same)
    points = [(math.log(there), math.log(seconds)) for there, seconds in pairs if seconds > 0]
    if not points:
        return 0.0
    mean_x, mean_y = (statistics.fmean(axis) for axis in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = (sum((x - mean_x) * (y - mean_y) for x, y in points) + _PRIOR_WEIGHT) / (spread + _PRIOR_WEIGHT)
    return math.exp(mean_y + slope * (math.log(size) - mean_x))


def _kind(job: Job) -> str:
    request = job.request
    return f"{job.model.name}|{request.preset}|{request.media}|{request.reference_mode.value}"


def _size(job: Job) -> int:
    """Count the pixels of all frames of one clip."""
    return job.request.width * job.request.height * job.request.frames


def _sum(seconds: Mapping[str, float], stages: Iterable[str]) -> float:
    return sum(seconds.get(stage, 0.0) for stage in stages)


def _seconds(item: Observation) -> tuple[float, ...]:
    return (item.step, item.before, item.after, item.load, item.total)
