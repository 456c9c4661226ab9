"""The denoising loop: one of diffusers' pipelines, called up to the latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wan_host_wan21.solvers import scheduler_for

if TYPE_CHECKING:
    import torch

    from wan_host import GenerationRequest, LaneContext
    from wan_host_wan21.previews import Previews

_TEMPORAL = 4
"""Frames per latent frame: the VAE packs four, after the first which stands alone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompts:
    """Embeddings of shape (1, 512, text_dim); ``negative`` is None without classifier-free guidance."""

    positive: torch.Tensor
    negative: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Reports steps of one of several clips as steps of the whole job."""

    context: LaneContext
    clip: int
    clips: int
    previews: Previews | None = None

    def done(self, pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Serve as ``callback_on_step_end``. A cancel raises from here: ``_interrupt`` would still decode."""
        total = pipeline.num_timesteps
        self.context.step(self.clip * total + step + 1, self.clips * total)
        if self.previews is not None and self.previews.wanted(step + 1, total):
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


def denoise(pipeline: Any, request: GenerationRequest, prompts: Prompts, seed: int, steps: Steps, **inputs: Any) -> torch.Tensor:
    """Run a pipeline and return normalised latents, float32 of shape (1, channels, T, h, w).

    ``inputs`` go to the pipeline as they stand, apart from ``scheduler``, which replaces the request's own.
    """
    pipeline.scheduler = inputs.pop("scheduler", None) or scheduler_for(request)
    inputs.setdefault("generator", noise_source(seed))
    return pipeline(
        prompt_embeds=prompts.positive,
        negative_prompt_embeds=prompts.negative,
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        callback_on_step_end=steps.done,
        output_type="latent",
        **inputs,
    ).frames
