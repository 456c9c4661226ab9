"""From a plan to latents: the three ways in which a clip is denoised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wan_host_wan21.latents import normalised_latents
from wan_host_wan21.references import Plan, Route, control_video, on_canvas
from wan_host_wan21.sampling import Prompts, Steps, denoise, generated_frames, noise_source
from wan_host_wan21.solvers import LateStart, steps_run

if TYPE_CHECKING:
    import torch

    from wan_host import GenerationRequest
    from wan_host_wan21.model import Wan21


def latents_for(
    plan: Plan, request: GenerationRequest, model: Wan21, prompts: Prompts, *, seed: int, steps: Steps
) -> torch.Tensor:
    """Return the normalised latents of one clip, float32 of shape (1, channels, T, h, w)."""
    if plan.route is Route.TEXT:
        frames = generated_frames(request.frames)
        return denoise(model.pipelines[plan.route], request, prompts, steps, num_frames=frames)
    if plan.route is Route.IMAGE:
        return _image_to_image(plan, request, model, prompts, steps)
    if plan.route is Route.ANIMATE:
        return _animated(plan, request, model, prompts, seed, steps)
    return _conditioned(plan, request, model, prompts, seed, steps)


def _image_to_image(plan: Plan, request: GenerationRequest, model: Wan21, prompts: Prompts, steps: Steps) -> torch.Tensor:
    """Denoise from the image, noised to the strength's timestep, with WanVideoToVideoPipeline."""
    wanted, count = plan.strength, request.num_inference_steps
    # A little more than 1/count, so that rounding leaves one step.
    strength = wanted if int(count * wanted) >= 1 else (1 + 1e-6) / count
    return denoise(model.pipelines[plan.route], request, prompts, steps, video=[_picture(plan.start)], strength=strength)


def _conditioned(  # noqa: PLR0917  # the values of ``latents_for``, passed on
    plan: Plan, request: GenerationRequest, model: Wan21, prompts: Prompts, seed: int, steps: Steps
) -> torch.Tensor:
    """Denoise with VACE; where the plan has a start, from it rather than from pure noise."""
    pipeline: Any = model.pipelines[plan.route]
    frames = generated_frames(request.frames)
    video, mask = control_video(plan, request.frames, request.width, request.height) or (None, None)
    subjects = [on_canvas(subject, request.width, request.height) for subject in plan.subjects]
    inputs: dict[str, Any] = {
        "video": video,
        "mask": mask,
        "reference_images": subjects or None,
        "conditioning_scale": plan.scale,
        "num_frames": frames,
    }
    pipeline.keep_reactive = (request.width, request.height, request.frames, plan.first is None, plan.last is None)
    inputs |= _from_still(plan, request, model, seed, steps)
    latents = denoise(pipeline, request, prompts, steps, **inputs)
    return latents[:, :, len(subjects) :]


def _animated(  # noqa: PLR0917  # as above
    plan: Plan, request: GenerationRequest, model: Wan21, prompts: Prompts, seed: int, steps: Steps
) -> torch.Tensor:
    """Denoise with an image-to-video checkpoint. Its last frame stands at the end of what is made, not of what is kept."""
    images = {"image": _picture(plan.first), "last_image": None if plan.last is None else _picture(plan.last)}
    inputs = images | {"num_frames": generated_frames(request.frames)} | _from_still(plan, request, model, seed, steps)
    return denoise(model.pipelines[plan.route], request, prompts, steps, **inputs)


def _from_still(plan: Plan, request: GenerationRequest, model: Wan21, seed: int, steps: Steps) -> dict[str, Any]:
    """Return latents and scheduler that begin late, from the still image (after the subjects' frames); nothing without one."""
    skipped = request.num_inference_steps - steps_run(request.num_inference_steps, plan.strength)
    if plan.start is None or skipped == 0 or steps.start is not None:
        return {}
    import torch
    from diffusers.utils.torch_utils import randn_tensor

    vae, processor = model.components.vae, model.processor
    frames = generated_frames(request.frames)

    def latents_of(picture: Any, count: int) -> torch.Tensor:
        frame = processor.preprocess_video([picture], request.height, request.width).to(model.device, vae.dtype)
        return normalised_latents(vae, frame.expand(-1, -1, count, -1, -1))

    parts = [latents_of(on_canvas(subject, request.width, request.height), 1) for subject in reversed(plan.subjects)]
    source = torch.cat([*parts, latents_of(_picture(plan.start), frames)], dim=2)
    scheduler = steps.scheduler(request)
    scheduler.set_timesteps(request.num_inference_steps, device=model.device)
    noise = randn_tensor(source.shape, generator=noise_source(seed), device=model.device, dtype=torch.float32)
    noised = scheduler.add_noise(source, noise, scheduler.timesteps[skipped : skipped + 1])
    return {"latents": noised, "scheduler": LateStart(scheduler, skipped)}


def _picture(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)
