"""One job: from a request to its clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import Clip, Generation, ReferenceMode, UnsupportedRequest
from wan_host_wan21.checkpoint import VACE_CHECKPOINT
from wan_host_wan21.decoding import decode
from wan_host_wan21.embeddings import MAX_TOKENS
from wan_host_wan21.sampling import Prompts, Steps, denoise, generated_frames

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wan_host import GenerationRequest, LaneContext
    from wan_host_wan21.model import Wan21


def generate(request: GenerationRequest, model: Wan21, context: LaneContext) -> Generation:
    """Make every clip of a job. Raise UnsupportedRequest for what this checkpoint cannot do, before any work."""
    refuse_unsupported(request, model)
    with model.job(context):
        with context.stage("text_encode"):
            prompts = encode_prompts(request, model)
        clips = []
        for index in range(request.num_images):
            steps = Steps(context=context, clip=index, clips=request.num_images)
            seed = request.seed + index
            clips.append(Clip(frames=_frames(request, model, prompts, seed, steps), seed=seed))
        return Generation(clips=tuple(clips), metadata=_metadata(request, model))


def refuse_unsupported(request: GenerationRequest, model: Wan21) -> None:
    """Raise UnsupportedRequest where the request asks for what this model cannot do; the message says what can."""
    name = model.info.name
    if request.reference_mode is not ReferenceMode.NONE:
        raise UnsupportedRequest(
            f"config.reference_mode: {request.reference_mode} needs a VACE checkpoint such as {VACE_CHECKPOINT}; {name} is none"
        )
    if request.references.subjects:
        raise UnsupportedRequest(f"config.reference_images: {name} takes none")
    if request.loras:
        raise UnsupportedRequest(f"config.loras: {name} takes none")


def encode_prompts(request: GenerationRequest, model: Wan21) -> Prompts:
    """Encode the prompt and, where there is guidance to speak of, the negative prompt."""
    guided = request.guidance_scale > 1
    return Prompts(
        positive=model.embeddings.encode(request.prompt),
        negative=model.embeddings.encode(request.negative_prompt) if guided else None,
    )


def _frames(request: GenerationRequest, model: Wan21, prompts: Prompts, seed: int, steps: Steps) -> NDArray[np.uint8]:
    context, pipeline = steps.context, model.text_to_video
    with context.stage("denoise"):
        latents = denoise(pipeline, request, prompts, seed, steps, num_frames=generated_frames(request.frames))
    with context.stage("decode"):
        frames = decode(model.components.vae, latents, pipeline.video_processor)
    return frames[: request.frames]


def _metadata(request: GenerationRequest, model: Wan21) -> dict[str, str | int | float | bool]:
    done: dict[str, str | int | float | bool] = {"generated_frames": generated_frames(request.frames)}
    tokens = model.embeddings.tokens(request.prompt)
    if tokens > MAX_TOKENS:
        done["prompt_truncated_tokens"] = tokens - MAX_TOKENS
    if model.checkpoint.random_weights:
        done["random_weights"] = True
    return done
