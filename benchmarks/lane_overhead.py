"""What a lane costs per job: the time of an instant job from call to mapped frames, and of one large clip.

    python benchmarks/lane_overhead.py

The model returns an array that it made beforehand, so all that is measured is the way there and back.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Mapping

import numpy as np
import structlog

from wan_host.context import LaneContext
from wan_host.lanes.supervisor import Lane
from wan_host.model import ModelInfo
from wan_host.request import Clip, Enhancement, EnhanceRequest, Generation, GenerationRequest

JOBS = 200
VALUE = 7


class InstantHooks:
    """A plugin without work of its own."""

    def models(self) -> Mapping[str, ModelInfo]:
        """Offer one model."""
        return {"instant": ModelInfo(name="instant", family="instant", runner="instant")}

    def load_model(self, model: ModelInfo, context: LaneContext) -> object:  # noqa: ARG002  # the interface's
        """Keep the clips that were made."""
        return {}

    def generate(self, request: GenerationRequest, loaded: object, model: ModelInfo, context: LaneContext) -> Generation:  # noqa: ARG002  # the interface's
        """Return the clip of this size, with one heartbeat per step."""
        assert isinstance(loaded, dict)
        shape = (request.frames, request.height, request.width, 3)
        if shape not in loaded:
            loaded[shape] = np.full(shape, VALUE, np.uint8)
        for i in range(request.num_inference_steps):
            context.step(i + 1, request.num_inference_steps)
        return Generation(clips=(Clip(frames=loaded[shape], seed=request.seed),))

    def process_frames(self, plugin_name: str, clip: Clip, request: GenerationRequest, context: LaneContext) -> Clip:  # noqa: ARG002  # the interface's
        """Change nothing."""
        return clip

    def enhance_prompt(self, plugin_name: str, request: EnhanceRequest, loaded: object, context: LaneContext) -> Enhancement:  # noqa: ARG002  # the interface's
        """Change nothing."""
        return Enhancement(prompt=request.prompt, source="none")


def instant_hooks() -> InstantHooks:
    """Make the hooks; called in the child."""
    return InstantHooks()


def job(frames: int, width: int, height: int, steps: int) -> GenerationRequest:
    """Make a request of that size."""
    return GenerationRequest(
        job_id="job",
        job_type="video_fast",
        media="video",
        prompt="a red circle moves to the right",
        width=width,
        height=height,
        frames=frames,
        fps=24,
        num_inference_steps=steps,
        guidance_scale=6.5,
        sample_shift=5.0,
        sample_solver="dpm++",
        seed=1,
    )


async def measure(lane: Lane, request: GenerationRequest, jobs: int) -> list[float]:
    """Return the milliseconds of each of ``jobs`` generations, the frames read once."""
    await lane.generate("instant", request)
    times = []
    for _ in range(jobs):
        begun = time.perf_counter()
        result = await lane.generate("instant", request)
        times.append((time.perf_counter() - begun) * 1000)
        assert int(result.generation.clips[0].frames[-1, -1, -1, -1]) == VALUE
    return times


async def main() -> None:
    """Print the figures."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    lane = Lane(name="bench", device="cpu", kind="generate", hooks="lane_overhead:instant_hooks")
    begun = time.perf_counter()
    await lane.start()
    print(f"start of the child: {(time.perf_counter() - begun) * 1000:.0f} ms")
    cases = (("9x128x128, 1 step", job(9, 128, 128, 1), JOBS), ("9x128x128, 25 steps", job(9, 128, 128, 25), JOBS))
    for name, request, jobs in (*cases, ("83x832x480, 25 steps", job(83, 480, 832, 25), 20)):
        times = await measure(lane, request, jobs)
        quantiles = statistics.quantiles(times, n=20)
        print(f"{name}: median {statistics.median(times):.2f} ms, 95 % below {quantiles[-1]:.2f} ms, best {min(times):.2f} ms")
    begun = time.perf_counter()
    await lane.stop()
    print(f"stop: {(time.perf_counter() - begun) * 1000:.0f} ms")


if __name__ == "__main__":
    asyncio.run(main())
