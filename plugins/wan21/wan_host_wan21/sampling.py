"""The denoising loop: one of diffusers' pipelines, called up to the latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wan_host_wan21 import turbo as few_steps
from wan_host_wan21.resuming import save
from wan_host_wan21.solvers import scheduler_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from wan_host import Clip, GenerationRequest, LaneContext
    from wan_host_wan21.presets import Schedule
    from wan_host_wan21.previews import Previews
    from wan_host_wan21.resuming import Start
    from wan_host_wan21.step_cache import StepCache
    from wan_host_wan21.turbo import Turbo

_TEMPORAL = 4
"""Frames per latent frame: the VAE packs four, after the first which stands alone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompts:
    """Embeddings of shape (1, 512, text_dim); ``negative`` is None without classifier-free guidance."""

    positive: torch.Tensor
    negative: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """The steps of one of several clips: reported as steps of the whole job, and saved as checkpoints of it."""

    context: LaneContext
    finished: Sequence[Clip]
    """The clips before this one."""
    clips: int
    generator: torch.Generator
    start: Start | None = None
    """Where an earlier attempt has left this clip."""
    previews: Previews | None = None
    schedule: Schedule | None = None
    """What the preset leaves out; None where it leaves out nothing."""
    cache: StepCache | None = None
    turbo: Turbo | None = None
    """The adapter whose steps are run, instead of the request's solver."""

    def scheduler(self, request: GenerationRequest) -> Any:
        """Return a new scheduler for these steps."""
        return scheduler_for(request) if self.turbo is None else few_steps.scheduler_for(self.turbo, self.generator)

    def done(self, pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Serve as ``callback_on_step_end``. A cancel raises from here: ``_interrupt`` would still decode."""
        before = self.start.done if self.start is not None else 0
        step, total = before + index + 1, before + pipeline.num_timesteps
        of_job = len(self.finished) * total + step
        self.context.step(of_job, self.clips * total)
        if self.cache is not None:
            self.cache.next_step()
        if self.schedule is None or self.schedule.restartable(step):
            self.context.checkpoint(
                lambda: save(
                    step=of_job,
                    done=step,
                    clips=self.finished,
                    latents=tensors["latents"],
                    generator=self.generator,
                    scheduler=pipeline.scheduler,
                )
            )
        if self.previews is not None and self.previews.wanted(step, total):
            picture = self.previews.picture(pipeline.scheduler)
            if picture is not None:
                self.context.preview(picture)
        return tensors


def generated_frames(frames: int) -> int:
    """Return the number of frames to generate for ``frames`` published ones: the next 4k+1."""
    return -(-(frames - 1) // _TEMPORAL) * _TEMPORAL + 1


def noise_source(seed: int) -> torch.Generator:
    """Return a generator on the CPU whatever the device is, so that a seed gives the same noise everywhere."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def denoise(pipeline: Any, request: GenerationRequest, prompts: Prompts, steps: Steps, **inputs: Any) -> torch.Tensor:
    """Run a pipeline and return normalised latents, float32 of shape (1, channels, T, h, w).

    ``inputs`` go to the pipeline as they stand, apart from ``scheduler``, which replaces the request's own. Where the steps
    have a start, the pipeline goes on from there.
    """
    pipeline.scheduler = inputs.pop("scheduler", None) or steps.scheduler(request)
    if steps.start is not None:
        pipeline.scheduler = steps.start.schedule(steps.scheduler(request))
        inputs["latents"] = steps.start.latents
        if "strength" in inputs:  # video-to-video: the source is in the latents, and the schedule begins where it should
            del inputs["video"]
            inputs["strength"] = 1.0
        steps.generator.set_state(steps.start.generator)
    return pipeline(
        prompt_embeds=prompts.positive,
        negative_prompt_embeds=prompts.negative,
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=steps.generator,
        callback_on_step_end=steps.done,
        output_type="latent",
        **inputs,
    ).frames
