"""What a seed means: the jobs, what is pushed twice or cancelled, and what is killed when."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

KillKind = Literal["worker", "lane", "server"]
SIDE = 64
EVERY_ODD_JOB = 40
"""One job in so many is of each kind that cannot simply succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run of the suite is made of; ``seed`` decides everything that is left to chance."""

    seed: int
    jobs: int = 1000
    workers: int = 4
    seconds: float = 240
    kill_every: float = 2.0
    fault_rate: float = 0.15
    topology: Literal["embedded", "tcp", "rest"] = "embedded"
    """``rest``: every other worker sees nothing but Upstash's REST protocol, the rest the same server over TCP."""
    max_attempts: int = 4
    kills: tuple[KillKind, ...] = ("worker", "lane", "server")
    drain_seconds: float = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """One job: its payload as it is pushed, when, how often, whether it can succeed, and when it is cancelled."""

    id: str
    payload: dict[str, Any]
    push_at: tuple[float, ...]
    can_succeed: bool = True
    cancel_at: float | None = None
    reference: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """SIGKILL for the ``which``-th (modulo how many there are) worker, lane, or the queue server."""

    at: float
    kind: KillKind
    which: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run does. ``poison``: entries that are no jobs, by the time at which they are pushed."""

    options: Options
    jobs: tuple[PlannedJob, ...]
    poison: dict[str, float] = field(default_factory=dict)

    def kills(self) -> Iterator[Kill]:
        """Yield what is killed, for as long as somebody asks."""
        dice = random.Random(f"{self.options.seed}/kills")
        number = 0
        while True:
            number += 1
            yield Kill(at=number * self.options.kill_every, kind=dice.choice(self.options.kills), which=dice.randrange(1 << 16))


def make_plan(options: Options, reference_url: str) -> Plan:
    """Draw a plan. ``reference_url``: where the jobs' references are served, by their names ``{job id}.png``."""
    dice = random.Random(f"{options.seed}/jobs")
    jobs = tuple(_job(number, options, dice, reference_url) for number in range(options.jobs))
    count = max(1, options.jobs // 100)
    poison = {f'{{"poison": {options.seed}, "number": {number}': dice.random() * options.seconds for number in range(count)}
    return Plan(options, jobs, poison)


def _job(number: int, options: Options, dice: random.Random, reference_url: str) -> PlannedJob:
    job_id = f"job-{number:05}"
    at = options.seconds * number / options.jobs
    kind = dice.choice(["image"] * 9 + ["video"])
    words, cancel_at, can_succeed = f"pace:{dice.choice([0, 0.02, 0.1])}", None, True
    pushes = [at] + ([at + dice.choice([0, 2.0, 15.0])] if dice.random() < 0.05 else [])
    odd = number % EVERY_ODD_JOB
    if odd == 1:
        words, cancel_at = "pace:0.5", at + dice.random() * 2
    elif odd == 2:
        words += f" crash:{dice.randint(1, 4)}"
    elif odd == 3:
        words += " oom"
    elif number in {4, 5, 6, 7}:
        words, can_succeed, pushes = words + (" crash-always", " raise", " refuse", " hang")[number - 4], False, [at]
    picture = reference(dice)
    fetched = dice.random() < 0.5
    uri = f"{reference_url}/{job_id}.png" if fetched else f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    config: dict[str, Any] = {"width": SIDE, "height": SIDE, "reference_mode": "single", "image": uri}
    if kind == "video":
        config |= {"frames": 5, "fps": 8}
    if dice.random() < 0.5:
        config["seed"] = dice.randrange(1 << 31)
    payload = {"id": job_id, "type": f"{kind}_fast", "prompt": words, "user_id": "chaos", "config": config}
    if dice.random() < 0.1:
        payload["priority"] = dice.randint(1, 9)
    return PlannedJob(
        id=job_id,
        payload=payload,
        push_at=tuple(pushes),
        can_succeed=can_succeed,
        cancel_at=cancel_at,
        reference=picture,
    )


def reference(dice: random.Random) -> bytes:
    """Draw a small picture that no other job has."""
    pixels = np.frombuffer(dice.randbytes(SIDE * SIDE * 3), np.uint8).reshape(SIDE, SIDE, 3) // 64 * 64
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def as_entry(job: PlannedJob) -> str:
    """Write a job as a producer pushes it."""
    return json.dumps(job.payload)
