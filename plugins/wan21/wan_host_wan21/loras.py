"""Adapters (LoRA) for a job: read, checked against the model, put in, weighed, and taken out without a trace."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wan_host import Lora, UnsupportedRequest
from wan_host_wan21.lora_files import find_fixed, find_lora
from wan_host_wan21.lora_format import CONFIG_FILE, FACTORS, PREFIX, LoraFile, read_lora

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from wan_host import LaneContext
    from wan_host_wan21.components import Components
    from wan_host_wan21.settings import Wan21Settings

_KEPT = 4
"""Files kept in memory; a rank-32 adapter of the 1.3B model takes some 90 MB."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it is now: when it or PEFT's configuration beside it changes, it is read again."""

    path: Path
    modified_ns: int
    size: int
    config_modified_ns: int


class Loras:
    """The adapters in a model's transformer. They stay in for the next job if that wants the same ones.

    They are never fused into the weights: taking them out again must give every bit back.
    """

    def __init__(self, components: Components, settings: Wan21Settings, fixed: Sequence[Lora] = ()) -> None:
        """Serve the transformer of ``components``; ``fixed`` adapters of the model itself come before a job's."""
        self._components, self._settings, self._fixed = components, settings, tuple(fixed)
        self._read: OrderedDict[_File, LoraFile] = OrderedDict()
        self._loaded: tuple[_File, ...] = ()
        self._scales: list[float] = []
        self._digests: list[str] = []
        self._left_out: list[tuple[str, ...]] = []
        self.left_out: tuple[str, ...] = ()
        """What of the adapters that are in has no effect: ``NAME: KEY``."""
        self.before_change: Callable[[], None] = lambda: None
        """Called before adapters go in or out or are weighed anew."""

    @property
    def active(self) -> bool:
        """Whether any adapter is in."""
        return bool(self._loaded)

    @property
    def digest(self) -> str:
        """Of what is in, in its order and with its scales: the same adapters from another folder or machine have the same."""
        return " ".join(f"{digest}*{scale!r}" for digest, scale in zip(self._digests, self._scales, strict=True))

    def differ(self, wanted: Sequence[Lora], turbo: Path | None = None) -> bool:
        """Whether there is anything to do: adapters to put in, or to take out."""
        return bool(self._fixed or wanted or turbo or self._loaded)

    def find(self, wanted: Sequence[Lora], context: LaneContext) -> list[Path]:
        """Return the files of a job's adapters. Raise UnsupportedRequest where one is not there or not allowed."""
        return [find_lora(lora.name, _field(index), self._settings, context) for index, lora in enumerate(wanted)]

    def apply(self, wanted: Sequence[Lora], context: LaneContext, turbo: Path | None = None) -> None:
        """Make exactly ``wanted`` act, in that order, after the model's own and ``turbo``.

        Raise UnsupportedRequest, and have none in, where one does not fit.
        """
        fixed = [*self._fixed, *([] if turbo is None else [Lora(name=str(turbo), scale=1.0)])]
        paths = [find_fixed(lora.name, self._settings) for lora in fixed]
        paths += self.find(wanted, context)
        wanted = [*fixed, *wanted]
        files = [_as_it_is(path) for path in paths]
        scales = [lora.scale for lora in wanted]
        if (tuple(files), scales) != (self._loaded, self._scales):
            self.before_change()
            if tuple(files) != self._loaded:
                self.remove()
                self._load(files, wanted, context, first=len(fixed))
            if files:
                names = [_adapter_name(index) for index in range(len(files))]
                self._components.transformer.set_adapters(names, scales)
            self._scales = scales
        # By the names of this job: the one that loaded a file may have called it otherwise.
        self.left_out = tuple(f"{lora.name}: {key}" for lora, keys in zip(wanted, self._left_out, strict=True) for key in keys)

    def remove(self) -> None:
        """Take every adapter out; the weights are then the very tensors that were loaded."""
        if self._loaded:
            self.before_change()
            self._components.transformer.unload_lora()
            self._components.share_modules()
            self._loaded = ()
            self._scales, self._digests, self._left_out = [], [], []
            self.left_out = ()

    def _load(self, files: Sequence[_File], wanted: Sequence[Lora], context: LaneContext, *, first: int) -> None:
        """Put adapters in; the job's own begin at index ``first``."""
        transformer = self._components.transformer
        dtype = transformer.dtype  # which diffusers finds by walking all modules
        states, digests, left_out = [], [], []
        for index, (file, lora) in enumerate(zip(files, wanted, strict=True)):
            context.progress(f"reading {lora.name}")
            field = _field(index - first)
            found = self._file(file, lora.name, field)
            _check(found.factors, transformer, lora.name, field)
            states.append(found.factors)
            digests.append(found.digest)
            left_out.append(found.left_out)
        try:
            for index, state in enumerate(states):
                # Before anything goes in: a failure in the middle must be taken out again.
                self._loaded = tuple(files)
                typed = {key: value.to(dtype) for key, value in state.items()}
                with warnings.catch_warnings():
                    # Several adapters are meant. An outer layer's name (proj_out) also matches VACE's blocks, where PEFT
                    # then puts factors of zero, which change nothing.
                    warnings.filterwarnings("ignore", message="Already found a `peft_config`", category=UserWarning)
                    warnings.filterwarnings("ignore", message="While injecting the PEFT adapters", category=RuntimeWarning)
                    transformer.load_lora_adapter(typed, adapter_name=_adapter_name(index))
        except BaseException:
            self.remove()
            raise
        self._digests, self._left_out = digests, left_out
        self._components.share_modules()

    def _file(self, file: _File, name: str, field: str) -> LoraFile:
        """Return the adapter in diffusers' format, whatever it was written in."""
        found = self._read.get(file)
        if found is None:
            found = self._read[file] = read_lora(file.path, name, field)
            if len(self._read) > _KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(file)
        return found


def _as_it_is(path: Path) -> _File:
    stat, config = path.stat(), path.with_name(CONFIG_FILE)
    return _File(path, stat.st_mtime_ns, stat.st_size, config.stat().st_mtime_ns if config.is_file() else 0)


def _check(state: Mapping[str, torch.Tensor], transformer: Any, name: str, field: str) -> None:
    """Raise UnsupportedRequest where a factor has no layer, no partner or the wrong shape.

    diffusers would only log a layer that is not there, and stop half way at a wrong shape.
    """
    if not state:
        raise UnsupportedRequest(f"{field}: {name} holds no adapter")
    for key in state:
        factor = next((suffix for suffix in FACTORS if key.endswith(f".{suffix}")), None)
        if factor is None or not key.startswith(PREFIX):
            raise UnsupportedRequest(f"{field}: {name} holds {key}, which is no adapter of a Wan transformer")
        layer = key.removeprefix(PREFIX).removesuffix(f".{factor}")
        weight = _weight(transformer, layer)
        if weight is None:
            raise UnsupportedRequest(f"{field}: {name} is for another model: this one has no layer {layer}")
        down, up, bias = (state.get(f"{PREFIX}{layer}.{part}") for part in FACTORS)
        if down is None or up is None:
            raise UnsupportedRequest(f"{field}: {name} is incomplete: {layer} has one factor only")
        if not _fits(tuple(weight.shape), down, up, bias):
            given = ", ".join(str(tuple(part.shape)) for part in (down, up, bias) if part is not None)
            raise UnsupportedRequest(
                f"{field}: {name} has the wrong shape: {layer} is {tuple(weight.shape)}, the factors {given}"
            )


def _fits(weight: tuple[int, ...], down: torch.Tensor, up: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether factors fit a layer's weight, (rows, columns) or a convolution's (rows, columns, *kernel), by some rank."""
    rows, *columns = weight
    rank = down.shape[0] if down.ndim else 0
    shapes = (rank, *columns), (rows, rank, *[1] * (len(columns) - 1))
    return rank > 0 and (down.shape, up.shape) == shapes and (bias is None or bias.shape == (rows,))


def _weight(transformer: Any, layer: str) -> Any:
    """Return the weight of a layer that multiplies, or None."""
    try:
        weight = getattr(transformer.get_submodule(layer), "weight", None)
    except AttributeError:
        return None
    return None if weight is None or weight.ndim == 1 else weight  # norms have one as well


def _field(index: int) -> str:
    return f"config.loras[{index}]" if index >= 0 else "the model's adapters"


def _adapter_name(index: int) -> str:
    return f"job_{index}"
