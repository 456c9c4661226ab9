"""Put a model's weights where its placement says, for every job anew."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wan_host import UnsupportedRequest
from wan_host_wan21.decoding import copied_bytes
from wan_host_wan21.memory import LADDER, STILL, Job, Placement, Weights, choose, ladder, refusal
from wan_host_wan21.presets import Preset
from wan_host_wan21.streaming import Blocks, Lookup, all_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from wan_host import GenerationRequest, ModelInfo
    from wan_host_wan21.components import Components
    from wan_host_wan21.embeddings import Together
    from wan_host_wan21.settings import Wan21Settings

_RESERVED = 1.0
"""GiB that the CUDA context and fragmentation take."""
_GIB = 2**30


class Placer:
    """Chooses a placement for each job by the memory there is, and applies it."""

    def __init__(self, components: Components, device: torch.device, settings: Wan21Settings) -> None:
        """Nothing is moved yet."""
        self._components, self._device, self._settings = components, device, settings
        self.weights = measure(components, settings)
        self.current = settings.placement or Placement.RESIDENT
        transformer, encoder = components.transformer, components.text_encoder.encoder
        self.transformer_blocks = Blocks([*transformer.blocks, *getattr(transformer, "vace_blocks", ())], device)
        self._text_blocks, self._table = Blocks(encoder.block, device), Lookup(encoder.embed_tokens, device)
        self._is_fp8 = False

    def admit(self, request: GenerationRequest) -> Placement:
        """Choose for a request; a later attempt begins leaner. Raise UnsupportedRequest where no placement fits."""
        from wan_host_wan21.fp8 import why_not

        rounded = request.preset != Preset.EXACT and self._settings.fp8 and why_not(self._device) is None
        job = Job(frames=request.frames, width=request.width, height=request.height, rounded=rounded)
        return self._choose(job, request.attempt)

    def admit_largest(self, info: ModelInfo) -> Placement:
        """Choose for the largest job that the model makes by default; the leanest placement where not even that fits."""
        jobs = {Job(frames=kind.frames, width=kind.width, height=kind.height) for kind in info.job_types.values()}
        if not jobs:
            return self.current
        try:
            return self._choose(max(jobs, key=lambda job: job.tokens), attempt=1)
        except UnsupportedRequest:
            return self._settings.placement or LADDER[-1]

    def moves_transformer(self, placement: Placement) -> bool:
        """Whether ``placement`` has the transformer's weights elsewhere than they are now."""
        return placement is not self.current and not {placement, self.current} <= STILL

    def place(self, placement: Placement) -> None:
        """Move weights so that ``placement`` holds. A text encoder that rests comes back when it is needed, to stay."""
        components, before = self._components, self.current
        self.current = placement
        if placement is Placement.LEAN:
            self.transformer_blocks.attach()
        else:
            self.transformer_blocks.detach()
        if placement is Placement.FP8 and not self._is_fp8:
            import torch

            components.transformer.enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=components.transformer.dtype
            )
            self._is_fp8 = True
        self._move(components.vae)
        if components.image_encoder is not None:
            self._move(components.image_encoder)
        self._move(components.transformer, self.transformer_blocks.tensors())
        if placement is not Placement.RESIDENT:
            self._text_blocks.attach()
            self._table.attach()
        self._move(components.text_encoder, self._text_blocks.tensors() | self._table.tensors())
        components.share_modules()
        if placement is not before:
            empty_cache(self._device)

    @contextmanager
    def encoding(self) -> Iterator[Together]:
        """Have the text encoder run on the device inside, and its blocks off it afterwards unless it is resident.

        What is given runs several texts through it, so that its blocks come once for all of them.
        """
        if self.current is Placement.RESIDENT:
            self._text_blocks.detach()
            self._table.detach()
            self._move(self._components.text_encoder)
            yield self._text_blocks.together
            return
        try:
            yield self._text_blocks.together
        finally:
            self._text_blocks.release()
            empty_cache(self._device)

    def denoised(self) -> None:
        """Make room for the decoder: what denoising took is given back where memory is short."""
        if self.current is not Placement.RESIDENT:
            self.transformer_blocks.release()
            empty_cache(self._device)

    def _choose(self, job: Job, attempt: int) -> Placement:
        if self._settings.placement is not None:
            allowed: tuple[Placement, ...] = (self._settings.placement,)
        else:
            steps = ladder(job)
            allowed = steps[min(attempt - 1, len(steps) - 1) :]
        budget = budget_bytes(self._device, self._settings)
        if budget is None:
            return self._settings.placement or Placement.RESIDENT
        found = choose(allowed, self.weights, job, budget)
        if found is None:
            raise UnsupportedRequest(
                f"config.frames, config.width, config.height: {refusal(self.weights, job, budget, allowed[-1])}"
            )
        return found

    def _move(self, module: Any, kept: set[int] | None = None) -> None:
        """Move a module to the device, but for the tensors in ``kept``."""
        if not kept:
            # to look is quicker than Module.to where nothing moves, which is before most jobs, with the device at rest
            if any(tensor.device != self._device for tensor in all_tensors(module)):
                module.to(self._device)
            return
        for tensor in all_tensors(module):
            if id(tensor) not in kept and tensor.device != self._device:
                tensor.data = tensor.data.to(self._device)


def measure(components: Components, settings: Wan21Settings) -> Weights:
    """Return the sizes of the loaded modules; a decoder that the settings copy counts with the VAE."""
    transformer, encoder = components.transformer, components.text_encoder
    blocks = [_bytes(block) for block in (*transformer.blocks, *getattr(transformer, "vace_blocks", ()))]
    text_blocks = [_bytes(block) for block in encoder.encoder.block]
    config, vae, image_encoder = transformer.config, components.vae, components.image_encoder
    return Weights(
        transformer=_bytes(transformer),
        transformer_blocks=sum(blocks),
        transformer_block=max(blocks),
        text_encoder=_bytes(encoder),
        text_blocks=sum(text_blocks),
        text_block=max(text_blocks),
        vae=_bytes(vae) + copied_bytes(vae, settings) + (0 if image_encoder is None else _bytes(image_encoder)),
        width=config.num_attention_heads * config.attention_head_dim,
        ffn_width=config.ffn_dim,
        vae_base=vae.config.base_dim,
    )


def budget_bytes(device: torch.device, settings: Wan21Settings) -> int | None:
    """Return what this lane may use of the device: the limit set, or what is free and what it has already. None on a CPU."""
    import torch

    limit = None if settings.vram_limit_gb is None else int(settings.vram_limit_gb * _GIB)
    if device.type != "cuda":
        return limit if device.type != "cpu" else None
    free, _ = torch.cuda.mem_get_info(device)
    there = free + torch.cuda.memory_reserved(device) - int(_RESERVED * _GIB)
    return there if limit is None else min(limit, there)


def empty_cache(device: torch.device) -> None:
    """Give unused memory back to the device."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _bytes(module: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in all_tensors(module))
