"""What makes the transformer faster for a job, put in when a job needs it and taken out when another must not have it.

Without ``enter``, and after ``leave``, the modules are as they were loaded. Everything here depends on the request, the model
and the machine alone, never on what ran before: shapes are compiled one by one, because a kernel for all shapes, which torch
would make at the second one, gives other last digits than a kernel for one.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # this module is imported with a loaded model

from wan_host_wan21 import attention, fp8
from wan_host_wan21.graphs import Graphs
from wan_host_wan21.memory import STILL, Placement
from wan_host_wan21.presets import Preset
from wan_host_wan21.step_cache import StepCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wan_host_wan21.components import Components
    from wan_host_wan21.kernels import Kernels
    from wan_host_wan21.presets import Schedule
    from wan_host_wan21.settings import Wan21Settings
    from wan_host_wan21.streaming import Blocks

Facts = dict[str, str | int | float | bool]
_SHAPES = 64
"""Compiled variants of a block that torch keeps; its default of 8 would stop compiling without a word that reaches a report."""
_TEXT_TOKENS = 512
_KEPT_IN = "TORCHINDUCTOR_CACHE_DIR"
COMPILER = "torch._inductor.compile_fx"
"""What takes longest to import of what compiling needs."""


class Acceleration:
    """The accelerations of one model. One job at a time."""

    def __init__(self, components: Components, device: torch.device, settings: Wan21Settings) -> None:
        """Nothing is put in yet."""
        self._components, self._device, self._settings = components, device, settings
        self._choices = attention.Choices(settings.data_dir / "wan21" / "attention.json", device)
        self._layers: fp8.Fp8Layers | None = None
        self._kernels: Kernels | None = None
        self._compiled: dict[Any, Any] = {}
        self._entered: tuple[Any, ...] | None = None
        self.facts: Facts = {}
        """What the report says of what is put in, and latents depend on."""
        self.cache = StepCache((components.transformer, components.plain))
        self.streamed: Blocks | None = None
        """What brings the blocks to the device where they do not stay there."""
        self.compiles_with: dict[str, Any] = {"fullgraph": True, "dynamic": False}
        """Options of torch.compile."""
        self.compiles = compiles_on(device, settings)
        if self.compiles:
            _keep_compiled(settings)

    def enter(self, preset: Preset, placement: Placement, *, tokens: int, adapters: bool) -> Facts:
        """Put in what a job can have; return what the report says of it.

        ``tokens``: the length of its sequence. ``adapters``: whether the transformer has any in; ``leave`` comes before they
        change.
        """
        still = placement in STILL
        rounds = preset is not Preset.EXACT and still and self._settings.fp8 and fp8.why_not(self._device) is None
        compiles = self.compiles and placement is not Placement.FP8 and (rounds or not adapters)
        wanted = (rounds, compiles, adapters, still)
        if wanted != self._entered:
            self.leave()
            self._put_in(rounds=rounds, compiles=compiles, adapters=adapters, still=still)
            self._entered = wanted
        if self._device.type == "cuda":
            backend = self._attention(tokens)
            attention.use(self._components.transformer, backend)
            self.facts["attention"] = backend
        return self.facts

    def _put_in(self, *, rounds: bool, compiles: bool, adapters: bool, still: bool) -> None:
        if compiles and still and not adapters:
            self._fuse()
            self.facts["fused"] = True
        if rounds:
            self._layers = fp8.Fp8Layers(self._blocks())
            self._layers.put_in()
            self.facts["fp8_layers"] = len(self._layers)
        if compiles:
            if still and self._has_kernels():
                from wan_host_wan21.kernels import Kernels

                self._kernels = Kernels(self._blocks())
                self.facts["kernels"] = True
            self._compile()
            self.facts["compiled"] = True
        if self._device.type == "cuda" and still:
            self.cache.graphs = Graphs()

    def leave(self) -> None:
        """Take everything out again."""
        self.cache.end()
        self.cache.graphs = None
        for block in self._compiled:
            self._call(block, None)
        if self._kernels is not None:
            self._kernels.take_out()
            self._kernels = None
        if self._layers is not None:
            self._layers.take_out()
            self._layers = None
        self._separate()
        if self._device.type == "cuda":
            attention.use(self._components.transformer, attention.NATIVE)
        self._entered, self.facts = None, {}

    def begin(self, schedule: Schedule, *, done: int) -> None:
        """Begin a clip of which ``done`` steps are made already."""
        if not all((*schedule.computed, *schedule.guided)) or self.cache.graphs is not None:
            self.cache.begin(schedule, done=done)

    def end(self) -> None:
        """End a job, however it ended."""
        self.cache.end()

    def warm_up(self, shapes: set[tuple[int, int, int]], progress: Callable[[str], None]) -> None:
        """Compile and measure for ``shapes`` (frames, width, height of what is generated), as ``exact`` would run them."""
        if not self.compiles:
            return
        for frames, width, height in sorted(shapes):
            size = ((frames - 1) // 4 + 1, height // 8, width // 8)
            self.enter(Preset.EXACT, Placement.RESIDENT, tokens=size[0] * size[1] * size[2] // 4, adapters=False)
            for module in {id(part): part for part in (self._components.plain, self._components.transformer)}.values():
                progress(f"warming up {width}x{height}, {frames} frames")
                with torch.no_grad():
                    module(**self._blank(module, size), return_dict=False)

    def _blank(self, module: Any, size: tuple[int, int, int]) -> dict[str, Any]:
        config, dtype, device = module.config, self._components.transformer.dtype, self._device
        inputs = {
            "hidden_states": torch.zeros(1, config.in_channels, *size, dtype=dtype, device=device),
            "timestep": torch.full((1,), 500, device=device),
            "encoder_hidden_states": torch.zeros(1, _TEXT_TOKENS, config.text_dim, dtype=dtype, device=device),
        }
        if "vace_layers" in config:
            inputs["control_hidden_states"] = torch.zeros(1, config.vace_in_channels, *size, dtype=dtype, device=device)
        return inputs

    def _attention(self, tokens: int) -> str:
        config = self._components.transformer.config
        shape = attention.Shape(
            heads=config.num_attention_heads,
            tokens=tokens,
            width=config.attention_head_dim,
            dtype=str(self._components.transformer.dtype).removeprefix("torch."),
        )
        return self._choices.fastest(shape)

    def _has_kernels(self) -> bool:
        """Whether the plugin's own kernels run here: CUDA, with the Triton that PyTorch's builds for CUDA bring."""
        return self._settings.kernels and self._device.type == "cuda" and importlib.util.find_spec("triton") is not None

    def _blocks(self) -> Iterator[Any]:
        transformer = self._components.transformer
        yield from transformer.blocks
        yield from getattr(transformer, "vace_blocks", ())

    def _compile(self) -> None:
        for block in self._blocks():
            if block not in self._compiled:
                before = block._compiled_call_impl  # noqa: SLF001  # as in _call
                block.compile(**self.compiles_with)
                self._compiled[block] = block._compiled_call_impl  # noqa: SLF001  # as in _call
                block._compiled_call_impl = before  # noqa: SLF001  # as in _call
            self._call(block, self._compiled[block])

    def _call(self, block: Any, compiled: Any) -> None:
        """Have a block run its compiled call, or its own with None."""
        if self.streamed is not None and self.streamed.attached:
            self.streamed.compute_with(block, compiled)
        else:
            block._compiled_call_impl = compiled  # noqa: SLF001  # what Module.compile sets; it has no way back of its own

    def _fuse(self) -> None:
        """Let query, key and value be one product, over one memory: the single weights become views of the joined one."""
        self._components.transformer.fuse_qkv_projections()
        for joined, parts in self._projections():
            rows = 0
            for part in parts:
                for name in ("weight", "bias"):
                    getattr(part, name).data = getattr(joined, name).data[rows : rows + part.out_features]
                rows += part.out_features

    def _separate(self) -> None:
        """Undo ``_fuse``; the weights stay views, which changes no bit of them."""
        if any(True for _ in self._projections()):
            self._components.transformer.unfuse_qkv_projections()

    def _projections(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        for block in self._blocks():
            for module in block.modules():
                if getattr(module, "fused_projections", False):
                    if hasattr(module, "to_qkv"):
                        yield module.to_qkv, (module.to_q, module.to_k, module.to_v)
                    if hasattr(module, "to_kv"):
                        yield module.to_kv, (module.to_k, module.to_v)


def compiles_on(device: torch.device, settings: Wan21Settings) -> bool:
    """Whether blocks are compiled: where nothing is set, on CUDA."""
    return device.type == "cuda" if settings.compile is None else settings.compile


def _keep_compiled(settings: Wan21Settings) -> None:
    """Keep compiled kernels on disk, so that a restart does not compile again; torch's own keys tell versions and GPUs apart.

    Importing diffusers makes torch write its default, /tmp/torchinductor_USER, into the environment: that was nobody's wish.
    """
    said = os.environ.get(_KEPT_IN, "")
    if not said or said.startswith(f"{tempfile.gettempdir()}/torchinductor_"):
        os.environ[_KEPT_IN] = str(settings.data_dir / "wan21" / "inductor")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)  # noqa: SLF001  # torch's documented place
