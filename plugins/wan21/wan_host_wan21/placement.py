"""Put a model's weights where its placement says, for every job anew."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wan_host import UnsupportedRequest
from wan_host_wan21.memory import LADDER, Job, Placement, Weights, choose, refusal
from wan_host_wan21.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from wan_host import GenerationRequest, ModelInfo
    from wan_host_wan21.components import Components
    from wan_host_wan21.settings import Wan21Settings

_RESERVED = 1.0
"""GiB that the CUDA context and fragmentation take."""
_GIB = 2**30


class Blocks:
    """Brings each of some blocks to the device for its own forward pass.

    Weights do not change, so leaving is dropping the copy. diffusers' group offloading does this for one model; here two
    views share the blocks, and only hooks on the blocks themselves serve both.
    """

    def __init__(self, blocks: Iterable[Any], device: torch.device) -> None:
        """Serve ``blocks`` on ``device``."""
        self._blocks, self._device = list(blocks), device
        self._handles: list[Any] = []
        self._resting: list[tuple[Any, torch.Tensor]] = []

    def attach(self) -> None:
        """Move the blocks to the CPU's memory, and from there for every pass."""
        if self._handles:
            return
        for block in self._blocks:
            for tensor in _tensors(block):
                tensor.data = self._rest(tensor.data)
            self._handles += [block.register_forward_pre_hook(self._enter), block.register_forward_hook(self._leave)]

    def detach(self) -> None:
        """Move the blocks to the device to stay."""
        if not self._handles:
            return
        self.settle()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for block in self._blocks:
            block.to(self._device)

    def settle(self) -> None:
        """Drop the copies that a pass left behind because it raised."""
        for tensor, resting in self._resting:
            tensor.data = resting
        self._resting = []

    def tensors(self) -> set[int]:
        """Return the identities of the blocks' tensors while they come by themselves."""
        return {id(tensor) for block in self._blocks for tensor in _tensors(block)} if self._handles else set()

    def _rest(self, data: torch.Tensor) -> torch.Tensor:
        data = data.cpu()
        return data.pin_memory() if self._device.type == "cuda" else data

    def _enter(self, block: Any, _inputs: Any) -> None:
        for tensor in _tensors(block):
            self._resting.append((tensor, tensor.data))
            tensor.data = tensor.data.to(self._device, non_blocking=True)

    def _leave(self, _block: Any, _inputs: Any, _output: Any) -> None:
        self.settle()


class Placer:
    """Chooses a placement for each job by the memory there is, and applies it."""

    def __init__(self, components: Components, device: torch.device, settings: Wan21Settings) -> None:
        """Nothing is moved yet."""
        self._components, self._device, self._settings = components, device, settings
        self.weights = measure(components)
        self.current = settings.placement or Placement.RESIDENT
        transformer, encoder = components.transformer, components.text_encoder.encoder
        self._transformer_blocks = Blocks([*transformer.blocks, *getattr(transformer, "vace_blocks", ())], device)
        self._text_blocks = Blocks(encoder.block, device)
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

    def place(self, placement: Placement) -> None:
        """Move weights so that ``placement`` holds."""
        components = self._components
        self.current = placement
        if placement is Placement.OFFLOAD:
            self._transformer_blocks.attach()
            self._text_blocks.attach()
        else:
            self._transformer_blocks.detach()
            self._text_blocks.detach()
        if placement is Placement.FP8 and not self._is_fp8:
            import torch

            components.transformer.enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=components.transformer.dtype
            )
            self._is_fp8 = True
        self._move(components.vae)
        if components.image_encoder is not None:
            self._move(components.image_encoder)
        self._move(components.transformer, apart_from=self._transformer_blocks)
        if placement is Placement.RESIDENT:
            self._move(components.text_encoder)
        else:
            self._move(components.text_encoder, apart_from=self._text_blocks, device="cpu")
        components.share_modules()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Have the text encoder on the device inside, and off it afterwards unless it is resident."""
        encoder = self._components.text_encoder
        if self.current is Placement.RESIDENT:
            yield
            return
        self._move(encoder, apart_from=self._text_blocks)
        try:
            yield
        finally:
            self._text_blocks.settle()
            self._move(encoder, apart_from=self._text_blocks, device="cpu")
            empty_cache(self._device)

    def settle(self) -> None:
        """Put right what a job that was cut off left."""
        self._transformer_blocks.settle()
        self._text_blocks.settle()

    def _choose(self, job: Job, attempt: int) -> Placement:
        if self._settings.placement is not None:
            allowed: tuple[Placement, ...] = (self._settings.placement,)
        else:
            allowed = LADDER[min(attempt - 1, len(LADDER) - 1) :]
        budget = budget_bytes(self._device, self._settings)
        if budget is None:
            return self._settings.placement or Placement.RESIDENT
        found = choose(allowed, self.weights, job, budget)
        if found is None:
            raise UnsupportedRequest(
                f"config.frames, config.width, config.height: {refusal(self.weights, job, budget, allowed[-1])}"
            )
        return found

    def _move(self, module: Any, apart_from: Blocks | None = None, device: str | None = None) -> None:
        """Move a module to the device (or another), but for the blocks that come by themselves."""
        import torch

        target = self._device if device is None else torch.device(device)
        kept = set() if apart_from is None else apart_from.tensors()
        if not kept:
            module.to(target)
            return
        for tensor in _tensors(module):
            if id(tensor) not in kept and tensor.device != target:
                tensor.data = tensor.data.to(target)


def measure(components: Components) -> Weights:
    """Return the sizes of the loaded modules."""
    transformer, encoder = components.transformer, components.text_encoder
    blocks = [_bytes(block) for block in (*transformer.blocks, *getattr(transformer, "vace_blocks", ()))]
    text_blocks = [_bytes(block) for block in encoder.encoder.block]
    config = transformer.config
    return Weights(
        transformer=_bytes(transformer),
        transformer_blocks=sum(blocks),
        transformer_block=max(blocks),
        text_encoder=_bytes(encoder),
        text_blocks=sum(text_blocks),
        text_block=max(text_blocks),
        vae=_bytes(components.vae) + (0 if components.image_encoder is None else _bytes(components.image_encoder)),
        width=config.num_attention_heads * config.attention_head_dim,
        ffn_width=config.ffn_dim,
        vae_base=components.vae.config.base_dim,
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


def _tensors(module: Any) -> Iterator[Any]:
    yield from module.parameters()
    yield from module.buffers()


def _bytes(module: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(module))
