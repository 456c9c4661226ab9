"""One job: from a request to its clips."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wan_host import Clip, Generation, UnsupportedRequest
from wan_host_wan21.embeddings import MAX_TOKENS
from wan_host_wan21.memory import Job, Placement
from wan_host_wan21.pinning import pin
from wan_host_wan21.presets import Preset, Schedule, fast, whole
from wan_host_wan21.references import Plan, Route, plan
from wan_host_wan21.resuming import made_with, restore
from wan_host_wan21.routes import latents_for
from wan_host_wan21.sampling import Prompts, Steps, generated_frames, noise_source
from wan_host_wan21.solvers import steps_run
from wan_host_wan21.turbo import FILE, Turbo

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from wan_host import GenerationRequest, LaneContext
    from wan_host_wan21.model import Wan21

Facts = dict[str, str | int | float | bool]
_LEFT_OUT_SHOWN = 5
"""Keys of adapters in a report, which cuts what is longer than 2000 characters."""


def generate(request: GenerationRequest, model: Wan21, context: LaneContext) -> Generation:
    """Make every clip of a job. Raise UnsupportedRequest for what this checkpoint cannot do, before any work."""
    asked, (request, turbo) = request, preset_of(request, model)
    chosen = plan(request, model.checkpoint, model.info.name)
    facts = _facts(request, model, chosen) | _guidance_facts(asked, request, chosen)
    placement = model.placer.admit(request)
    if (request.loras or turbo) and placement is Placement.FP8:
        field = "config.loras" if request.loras else "config.preset: turbo"
        raise UnsupportedRequest(f"{field}: not with the placement fp8, whose stored weights cannot be adapted exactly")
    if chosen.route is Route.COPY:
        model.loras.find(request.loras, context)  # they would not act, but a name that is wrong is told all the same
        return Generation(clips=_copies(request, chosen), metadata=facts)
    facts["placement"] = placement.value
    with model.job(context):
        if model.placer.moves_transformer(placement):
            model.acceleration.leave()
        model.placer.place(placement)
        with context.stage("text_encode"):
            prompts = encode_prompts(request, model)
        adapter = None if turbo is None else turbo.path
        if model.loras.differ(request.loras, adapter):
            with context.stage("load"):
                model.loras.apply(request.loras, context, adapter)
        if left_out := model.loras.left_out:
            count = "" if len(left_out) <= _LEFT_OUT_SHOWN else f"{len(left_out)} keys, such as "
            facts["loras_left_out"] = count + ", ".join(left_out[:_LEFT_OUT_SHOWN])
        schedule = schedule_of(request, chosen.strength)
        facts |= accelerate(request, model, chosen, schedule)
        ways = model.acceleration.facts | model.decoder.facts
        facts |= ways
        weights = "fp8" if placement is Placement.FP8 else "exact"
        pins = chosen.pins and model.settings.pin_frames
        resumed = restore(context.resume(made_with(weights, model.loras.digest, ways)))
        clips = list(resumed.clips)
        for index in range(len(clips), request.num_images):
            seed = request.seed + index
            steps = Steps(
                context=context,
                finished=clips,
                clips=request.num_images,
                generator=noise_source(seed),
                start=resumed.start if index == len(resumed.clips) else None,
                previews=model.previews if model.settings.previews else None,
                schedule=schedule,
                cache=model.acceleration.cache,
                turbo=turbo,
            )
            done = 0 if steps.start is None else steps.start.done
            model.acceleration.begin(schedule, done=done)
            with context.stage("denoise"):
                latents = latents_for(chosen, request, model, prompts, seed=seed, steps=steps)
            model.placer.denoised()
            with context.stage("decode"):
                frames = decoded(latents, request, model, context, seed, pins=pins)
            if pins:
                frames, pinned = _pinned(frames, chosen)
                facts |= pinned
            clips.append(Clip(frames=frames, seed=seed))
    return Generation(clips=tuple(clips), metadata=facts)


def decoded(
    latents: torch.Tensor, request: GenerationRequest, model: Wan21, context: LaneContext, seed: int, *, pins: bool
) -> NDArray[np.uint8]:
    """Return the frames of a clip's latents. The host has each as soon as it is there, but where some are yet to be pinned."""
    shape = (request.frames, request.height, request.width, 3)
    if pins:
        return model.decoder.decode(latents, lambda: np.empty(shape, np.uint8), lambda _: context.progress("decoding"))
    return model.decoder.decode(
        latents, lambda: context.clip_frames(seed, shape), lambda count: context.frames_ready(seed, count)
    )


def preset_of(request: GenerationRequest, model: Wan21) -> tuple[GenerationRequest, Turbo | None]:
    """Return the request as its preset has it: ``turbo`` runs its adapter's steps without guidance. Raise UnsupportedRequest."""
    preset = Preset(request.preset)
    if preset is not Preset.TURBO:
        return request, None
    turbo = model.turbo
    if turbo is None:
        raise UnsupportedRequest(
            f"config.preset: turbo needs a step-distilled adapter, and model {model.info.name} has none; put {FILE} into its "
            "folder or name one in WAN_HOST_WAN21_TURBO"
        )
    return replace(request, num_inference_steps=len(turbo.sigmas), guidance_scale=1.0), turbo


def schedule_of(request: GenerationRequest, strength: float) -> Schedule:
    """Return what is done in each step of a clip of a request."""
    steps = steps_run(request.num_inference_steps, strength)
    return fast(steps) if request.preset == Preset.FAST else whole(steps)


def accelerate(request: GenerationRequest, model: Wan21, chosen: Plan, schedule: Schedule) -> Facts:
    """Put in what the preset allows, and return what the report says of it."""
    job = Job(frames=request.frames, width=request.width, height=request.height)
    preset = Preset(request.preset)
    facts = model.acceleration.enter(
        preset,
        model.placer.current,
        tokens=job.tokens + len(chosen.subjects) * job.tokens_of_a_frame,
        adapters=model.loras.active,
    )
    if preset is not Preset.EXACT:
        facts = facts | {
            "steps_computed": sum(schedule.computed),
            "transformer_passes": schedule.passes(guidance=request.guidance_scale > 1),
        }
    return facts


def encode_prompts(request: GenerationRequest, model: Wan21) -> Prompts:
    """Encode the prompt and, where there is guidance to speak of, the negative prompt."""
    texts = [request.prompt, request.negative_prompt] if request.guidance_scale > 1 else [request.prompt]
    if all(text in model.embeddings for text in texts):
        embeddings = [model.embeddings.encode(text) for text in texts]
    else:
        with model.placer.encoding() as together:
            embeddings = model.embeddings.encode_all(texts, together)
    return Prompts(positive=embeddings[0], negative=embeddings[1] if len(embeddings) > 1 else None)


def _copies(request: GenerationRequest, chosen: Plan) -> tuple[Clip, ...]:
    """Return the source itself, for every frame: what a denoise strength of 0 means."""
    frames = np.repeat(np.asarray(chosen.start)[None], request.frames, axis=0)
    return tuple(Clip(frames=frames, seed=request.seed + index) for index in range(request.num_images))


def _pinned(frames: NDArray[np.uint8], chosen: Plan) -> tuple[NDArray[np.uint8], Facts]:
    made, done = pin(frames, chosen.first, chosen.last, chosen.scale)
    return made, {
        "pin_fade_frames": done.fade_frames,
        "pin_step_ratio": done.step_ratio,
        "pin_psnr_before": done.error_db,
    }


def _facts(request: GenerationRequest, model: Wan21, chosen: Plan) -> Facts:
    """Return what the report says beyond the parameters themselves."""
    facts: Facts = {
        "route": chosen.route.value,
        "generated_frames": request.frames if chosen.route is Route.COPY else generated_frames(request.frames),
        "steps_run": 0 if chosen.route is Route.COPY else steps_run(request.num_inference_steps, chosen.strength),
    }
    if chosen.pins:
        facts["pinned"] = model.settings.pin_frames
    if chosen.route is Route.CONDITIONED and chosen.scale < 1:
        facts["conditioning_scale"] = round(chosen.scale, 4)
    if chosen.acted is not None and chosen.acted != request.denoise_strength:
        facts["denoise_strength_acted"] = chosen.acted
    if chosen.subjects:
        facts["subject_references"] = len(chosen.subjects)
    if model.checkpoint.random_weights:
        facts["random_weights"] = True
    if chosen.route is Route.COPY:
        return facts
    if request.loras:
        facts["loras"] = ", ".join(f"{lora.name} ({lora.scale:g})" for lora in request.loras)
    tokens = model.embeddings.tokens(request.prompt)
    if tokens > MAX_TOKENS:
        facts["prompt_truncated_tokens"] = tokens - MAX_TOKENS
    return facts


def _guidance_facts(asked: GenerationRequest, request: GenerationRequest, chosen: Plan) -> Facts:
    """Say where guidance is another than asked: at 1 and below and in a copy there is none, whatever the negative prompt says."""
    copied = chosen.route is Route.COPY
    if request.guidance_scale > 1 and not copied:
        return {}
    facts: Facts = {} if copied or asked.guidance_scale == 1 else {"guidance_scale_acted": 1.0}
    return facts | {"negative_prompt_applied": False} if asked.negative_prompt else facts
