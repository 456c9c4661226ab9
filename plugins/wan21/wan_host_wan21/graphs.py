"""CUDA graphs of whole passes of the transformer, where launching its kernels takes longer than running them (images)."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # this module is imported with a loaded model

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

MAX_TOKENS = 8192
"""Above this a pass of the 1.3B model takes longer than its launches by far."""
_KEPT = 6
_WARM_UPS = 2
_PATCH = 4
"""Latent cells in one token: two by two."""
_log = logging.getLogger("wan_host_wan21")


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, torch.Tensor]
    outputs: tuple[torch.Tensor, ...]


class Graphs:
    """Records a pass at its first call with new shapes and replays it from then on; the results are the very same.

    Make a new one whenever weights move or layers change: a graph knows addresses, not modules.
    """

    def __init__(self) -> None:
        """Nothing is recorded yet."""
        self._kept: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._refused = False

    def run(self, key: Hashable, run: Callable[..., tuple[torch.Tensor, ...]], given: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return what ``run`` makes of ``given``; long sequences and what is no tensor run as they are."""
        if self._refused or not _worth_it(given):
            return run(**given)
        shapes = tuple((name, value.shape, value.dtype) for name, value in sorted(given.items()))
        found = self._kept.get((key, shapes))
        if found is None:
            try:
                found = _record(run, given)
            except RuntimeError as error:
                _log.warning("passes are not recorded as CUDA graphs: %s", error)
                self._refused = True
                return run(**given)
            self._kept[key, shapes] = found
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end((key, shapes))
        for name, value in given.items():
            found.inputs[name].copy_(value)
        found.graph.replay()
        return tuple(output.clone() for output in found.outputs)


def _worth_it(given: Mapping[str, Any]) -> bool:
    latents = given["hidden_states"]
    tensors = all(isinstance(value, torch.Tensor) for value in given.values())
    return tensors and latents.is_cuda and latents[0, 0].numel() // _PATCH <= MAX_TOKENS


def _record(run: Callable[..., tuple[torch.Tensor, ...]], given: Mapping[str, torch.Tensor]) -> _Recorded:
    inputs = {name: value.clone() for name, value in given.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate their workspaces and compilers compile before anything is recorded
        for _ in range(_WARM_UPS):
            run(**inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(**inputs)
    return _Recorded(graph, inputs, outputs)
