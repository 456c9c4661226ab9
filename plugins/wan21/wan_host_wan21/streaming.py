"""Blocks whose weights rest in the host's memory and come to the device for their own pass, the next ones while these compute."""

from __future__ import annotations

import logging
import mmap
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import torch  # noqa: TID253  # this module is imported with a loaded model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_ALIGNED = 256
"""Bytes: as torch aligns tensors on a GPU, so that kernels and compiled code find what they expect."""
_THREADS = 4
_Made = TypeVar("_Made")
_log = logging.getLogger("wan_host_wan21")


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a tensor's numbers are within the bytes of its block."""

    tensor: torch.Tensor
    begin: int
    shape: torch.Size
    dtype: torch.dtype

    def within(self, held: torch.Tensor) -> torch.Tensor:
        end = self.begin + prod(self.shape) * self.dtype.itemsize
        return held[self.begin : end].view(self.dtype).view(self.shape)


class _Rest:
    """The weights of one block, one after another in memory that a GPU can read by itself. Adapters are no part of it."""

    def __init__(self, block: Any, device: torch.device) -> None:
        """Copy them there, and let go of where they were: the block's tensors are views of the copy then."""
        self.places: list[_Place] = []
        size = 0
        for tensor in _own_tensors(block):
            self.places.append(_Place(tensor, size, tensor.shape, tensor.dtype))
            size += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
        memory = mmap.mmap(-1, max(size, _ALIGNED), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel may have none; large pages are only faster to get and to lock
                memory.madvise(mmap.MADV_HUGEPAGE)
        self.held = torch.frombuffer(memory, dtype=torch.uint8)
        if device.type == "cuda":
            _lock(self, device)
        for place in self.places:
            place.within(self.held).copy_(place.tensor.data)
        self.let_rest()

    def let_rest(self) -> None:
        """Have the block's tensors be the resting ones."""
        self.point_to(self.held)

    def point_to(self, held: torch.Tensor) -> None:
        """Have the block's tensors be views of ``held``."""
        for place in self.places:
            place.tensor.data = place.within(held)


class _Along(Exception):
    """A pass that is made along with another, raised where its blocks begin: what they are given, the stream of tokens first."""

    def __init__(self, stream: Any, rest: tuple[Any, ...], options: dict[str, Any]) -> None:
        super().__init__()
        self.stream, self._rest, self._options = stream, rest, options

    def follow(self, call: Callable[..., Any]) -> None:
        self.stream = call(self.stream, *self._rest, **self._options)


class _Slot:
    """Room on the device for one block. ``ready``: its weights have arrived; ``left``: what computed with them is done."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.held = torch.empty(size, dtype=torch.uint8, device=device)
        self.index: int | None = None
        if device.type == "cuda":
            self.ready, self.left = torch.cuda.Event(), torch.cuda.Event()


class Blocks:
    """Brings each of some blocks to the device for its own forward pass, through two slots there.

    While a block computes in one slot, the block that followed it the last time is copied into the other by a stream of its own.
    Weights do not change, so leaving is letting the slot go. diffusers' group offloading does this for one model; here two views
    share the blocks, one of which passes some of them by, and it must be the blocks themselves that serve both. They do so from
    where a module has its compiled call: torch.compile would trace a hook.
    """

    def __init__(self, blocks: Iterable[Any], device: torch.device) -> None:
        """Serve ``blocks`` on ``device``."""
        self._blocks, self._device = list(blocks), device
        self.attached = False
        """Whether the blocks come by themselves."""
        self._calls: dict[Any, Callable[..., Any]] = {}
        self._rests: list[_Rest] = []
        self._slots: list[_Slot] = []
        """The one used last comes last."""
        self._last: int | None = None
        self._after: dict[int | None, int] = {index: index + 1 for index in range(len(self._blocks) - 1)}
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._notes = False
        """Whether the first block is to say what it is given instead of computing."""
        self._along: list[_Along] = []
        self._made: Any = None
        """The stream behind the blocks, where they have computed already."""

    def together(self, passes: Sequence[Callable[[], _Made]]) -> list[_Made]:
        """Return what passes over all blocks give; each block comes to the device once for all of them.

        Each is computed by itself, to the bits that it has alone: all but the first are led up to the blocks, follow the first
        from block to block, and are led on from there. A block must return the stream, which is its first argument.
        """
        first, *others = passes
        if not self.attached:
            return [run() for run in passes]
        try:
            followers = [self._led(run) for run in others]
            self._along = followers
            made = [first()]
            self._along = []
            for run, along in zip(others, followers, strict=True):
                self._made = along.stream
                made.append(run())
        finally:
            self._along, self._made = [], None
        return made

    def _led(self, run: Callable[[], Any]) -> _Along:
        """Return what a pass gives the first block."""
        self._notes = True
        try:
            run()
        except _Along as along:
            return along.with_traceback(None)
        finally:
            self._notes = False
        raise RuntimeError("a pass has gone by the blocks")

    def attach(self) -> None:
        """Let the blocks rest in the host's memory, and come from there for every pass. The copy there is made once."""
        if self.attached:
            return
        if self._rests:
            for rest in self._rests:
                rest.let_rest()
        else:
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="weights") as pool:
                self._rests = list(pool.map(lambda block: _Rest(block, self._device), self._blocks))
        for index, block in enumerate(self._blocks):
            block._compiled_call_impl = self._pass(block, index)  # noqa: SLF001  # what Module.__call__ calls where it is set
        self.attached = True

    def detach(self) -> None:
        """Bring the blocks to the device to stay; the copy in the host's memory is kept for when they leave again."""
        if not self.attached:
            return
        self.release()
        for block in self._blocks:
            block._compiled_call_impl = None  # noqa: SLF001  # as in attach
        for rest in self._rests:
            for place in rest.places:  # each its own memory: joined projections let go of some, which one for all would keep
                place.tensor.data = place.within(rest.held).to(self._device, copy=True)
        self.attached = False

    def compute_with(self, block: Any, call: Callable[..., Any] | None) -> None:
        """Have a block that comes by itself compute with ``call``, such as its compiled one; None: with its own."""
        self._calls[block] = call or block._call_impl  # noqa: SLF001  # what Module.__call__ calls otherwise

    def release(self) -> None:
        """Give the slots back."""
        if self._side is not None and self._slots:
            torch.cuda.current_stream(self._device).wait_stream(self._side)  # a copy may still be under way
        self._slots, self._last = [], None

    def tensors(self) -> set[int]:
        """Return the identities of the tensors that come by themselves."""
        return {id(place.tensor) for rest in self._rests for place in rest.places} if self.attached else set()

    def _pass(self, block: Any, index: int) -> Callable[..., Any]:
        self._calls.setdefault(block, block._call_impl)  # noqa: SLF001  # as in compute_with

        def run(*args: Any, **options: Any) -> Any:
            if self._notes:
                raise _Along(args[0], args[1:], options)
            if self._made is not None:
                return self._made
            self._enter(block, index)
            try:
                made = self._calls[block](*args, **options)
                for along in self._along:
                    along.follow(self._calls[block])
                return made
            finally:
                self._leave(index)

        return run

    def _enter(self, block: Any, index: int) -> None:
        if not self._slots:
            self._open()
        if self._slots[-1].index != index:
            self._slots.reverse()
            if self._slots[-1].index != index:
                self._fetch(index, self._slots[-1])
        slot, rest = self._slots[-1], self._rests[index]
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.ready)
        rest.point_to(slot.held)
        own = self._own[index]
        for tensor in all_tensors(block):
            if id(tensor) not in own and tensor.device != self._device:
                tensor.data = tensor.data.to(self._device)  # an adapter's factors are small, and stay
        self._after[self._last] = index
        self._last = index
        following = self._after.get(index)
        if following is not None and following not in {slot.index for slot in self._slots}:
            self._fetch(following, self._slots[0])

    def _leave(self, index: int) -> None:
        self._rests[index].let_rest()
        if self._side is not None:
            self._slots[-1].left.record(torch.cuda.current_stream(self._device))

    def _open(self) -> None:
        size = max(len(rest.held) for rest in self._rests)
        self._slots = [_Slot(size, self._device) for _ in range(2)]
        self._own = [{id(place.tensor) for place in rest.places} for rest in self._rests]
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(self._device))  # the memory may have had another use until now

    def _fetch(self, index: int, slot: _Slot) -> None:
        """Copy a block's weights into a slot, after what computed with those that are in it."""
        source = self._rests[index].held
        slot.index = index
        if self._side is None:
            slot.held[: len(source)].copy_(source)
            return
        self._side.wait_event(slot.left)
        with torch.cuda.stream(self._side):
            slot.held[: len(source)].copy_(source, non_blocking=True)
        slot.ready.record(self._side)


class Lookup:
    """An embedding whose table stays in the host's memory: a few hundred rows of it are sent instead of 2 GB."""

    def __init__(self, embedding: Any, device: torch.device) -> None:
        """Serve ``embedding`` for what is on ``device``."""
        self._weight, self._embedding, self._device = embedding.weight, embedding, device
        self._handles: list[Any] = []
        self._held: torch.Tensor | None = None

    def attach(self) -> None:
        """Look up where the table rests."""
        if self._handles:
            return
        if self._held is None:
            self._held = self._weight.data.cpu()
        self._weight.data = self._held
        self._handles = [
            self._embedding.register_forward_pre_hook(lambda _module, inputs: (inputs[0].cpu(),)),
            self._embedding.register_forward_hook(lambda _module, _inputs, rows: rows.to(self._device)),
        ]

    def detach(self) -> None:
        """Look up on the device again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def tensors(self) -> set[int]:
        """Return the identity of the table while it stays."""
        return {id(self._weight)} if self._handles else set()


def all_tensors(module: Any) -> Iterator[torch.Tensor]:
    """Give the parameters and buffers of a module."""
    yield from module.parameters()
    yield from module.buffers()


def _own_tensors(module: Any) -> Iterator[torch.Tensor]:
    """Give the parameters and buffers of a module, without those of adapters."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if "lora_" not in name:
            yield tensor


def _lock(rest: _Rest, device: torch.device) -> None:
    """Lock memory in place until ``rest`` goes, so that the GPU reads it without the host's help.

    torch's own pinned memory rounds every size up to a power of two, which would be a third more.
    """
    address = rest.held.data_ptr()
    with torch.cuda.device(device):
        error = int(torch.cuda.cudart().cudaHostRegister(address, rest.held.nbytes, 0))
    if error:
        _log.warning("weights cannot be locked in the host's memory (CUDA error %d): they come to the GPU more slowly", error)
    else:
        weakref.finalize(rest, _unlock, address, device).atexit = False


def _unlock(address: int, device: torch.device) -> None:
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # a copy may still be reading it
        torch.cuda.cudart().cudaHostUnregister(address)
