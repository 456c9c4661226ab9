"""Bring a part's weights from its safetensors straight to where they rest, with no second copy in the host's memory.

A module is built without weights (``outline``) and then filled (``fill``). For a CPU its tensors stay in the files' own pages,
mapped, unless their dtype must change. For a GPU a few threads read pieces of the files into pinned memory and send them from
there; the GPU itself changes the dtype.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wan_host import ModelLoadFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

_LENGTH_BYTES = 8
_PIECE_BYTES = 32 * 2**20
_THREADS = 8
_OLD_PREFIX = "vision_model."
"""Before each key of a CLIPVisionModel in files that transformers 4 wrote, the official ones among them."""
Places = dict[str, list[tuple[Any, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor as it lies in a file: mapped, not read yet. ``begin`` is its first byte."""

    path: Path
    begin: int
    mapped: torch.Tensor


def outline(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Build a module of diffusers or transformers by its configuration, with parameters on ``meta`` and real buffers.

    Parameters have the dtypes that ``from_pretrained(dtype=...)`` gives them.
    """
    import torch
    from accelerate import init_empty_weights

    of_diffusers = hasattr(cls, "load_config")
    config = cls.load_config(folder) if of_diffusers else cls.config_class.from_pretrained(folder, dtype=dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            module = cls.from_config(config) if of_diffusers else cls(config)
    finally:
        torch.set_default_dtype(before)
    # What diffusers keeps in float32, whatever the dtype; transformers' list of the same name is for float16 alone.
    kept = frozenset(cls._keep_in_fp32_modules or ()) if of_diffusers else frozenset()
    for key, owners in _places(module).items():
        wanted = torch.float32 if kept.intersection(key.split(".")) else dtype
        _put(owners, _first(owners).to(wanted))
    return module.eval()


def fill(module: Any, folder: Path, device: torch.device) -> None:
    """Give an outlined module its weights, on ``device``.

    Raise ModelLoadFailed where keys are missing or left over or a shape is another than the configuration's, and SafetensorError
    or OSError where a file cannot be read.
    """
    import torch

    places = _places(module)
    with ExitStack() as files:
        stored = _matched(module, places, _stored(folder, files), folder)
        if device.type == "cpu":
            filled = {key: stored[key].mapped.to(_first(places[key]).dtype) for key in stored}
        else:
            filled = {key: torch.empty_like(_first(places[key]), device=device) for key in stored}
            send([(stored[key], filled[key]) for key in stored], device)
    for key, tensor in filled.items():
        _put(places[key], tensor)
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = buffer.to(device)  # noqa: SLF001  # setattr goes the same way


def shards(folder: Path) -> list[Path]:
    """Return a part's safetensors: those that its index names, else those that are there."""
    index = next(folder.glob("*.safetensors.index.json"), None)
    if index is None:
        return sorted(folder.glob("*.safetensors"))
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def _places(module: Any) -> Places:
    """Return the owners and names of every parameter by its key in the files; tied parameters are one."""
    tied, places = _tied(module), Places()
    for prefix, owner in module.named_modules():
        for name, parameter in owner._parameters.items():  # noqa: SLF001  # torch has no public way to each owner of a tied one
            if parameter is not None:
                key = f"{prefix}.{name}".lstrip(".")
                places.setdefault(tied.get(key, key), []).append((owner, name))
    return places


def _first(owners: list[tuple[Any, str]]) -> torch.Tensor:
    owner, name = owners[0]
    found: torch.Tensor = owner._parameters[name]  # noqa: SLF001  # see _places
    return found


def _put(owners: list[tuple[Any, str]], tensor: torch.Tensor) -> None:
    import torch

    parameter = torch.nn.Parameter(tensor, requires_grad=False)
    for owner, name in owners:
        owner._parameters[name] = parameter  # noqa: SLF001  # see _places


def _tied(module: Any) -> dict[str, str]:
    """Return the keys that stand for another key's tensor."""
    found = getattr(module, "_tied_weights_keys", None)
    return found if isinstance(found, dict) else {}


def _stored(folder: Path, files: ExitStack) -> Iterator[tuple[str, Stored]]:
    """Give every tensor of a part by its key. safetensors checks the header, and that the file is as long as it says."""
    from safetensors import safe_open

    for path in shards(folder):
        handle = files.enter_context(safe_open(path, framework="pt"))
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
        for key in handle.keys():  # noqa: SIM118  # no dictionary
            begin = _LENGTH_BYTES + length + header[key]["data_offsets"][0]
            yield key, Stored(path=path, begin=begin, mapped=handle.get_tensor(key))


def _matched(module: Any, places: Places, found: Iterator[tuple[str, Stored]], folder: Path) -> dict[str, Stored]:
    """Return what is stored by the keys of ``places``. Raise ModelLoadFailed where the two differ."""
    tied = _tied(module)
    ignored = [re.compile(pattern) for pattern in module._keys_to_ignore_on_load_unexpected or ()]  # noqa: SLF001  # as above
    matched: dict[str, Stored] = {}
    unexpected: list[str] = []
    for key, stored in found:
        place = tied.get(key, key)
        if place not in places:
            place = place.removeprefix(_OLD_PREFIX)
        if place not in places:
            if not any(pattern.search(key) for pattern in ignored):
                unexpected.append(key)
            continue
        shape, wanted = tuple(stored.mapped.shape), tuple(_first(places[place]).shape)
        if shape != wanted:
            raise ModelLoadFailed(f"{folder}: {key} has the shape {shape}; by the configuration it is {wanted}")
        if key == place or place not in matched:
            matched[place] = stored
    for problem, keys in (("missing", places.keys() - matched.keys()), ("unexpected", unexpected)):
        if keys:
            raise ModelLoadFailed(f"{folder}: {len(keys)} {problem} keys, such as {min(keys)}")
    return matched


def send(wanted: list[tuple[Stored, torch.Tensor]], device: torch.device) -> None:
    """Fill tensors on ``device``: each thread reads a piece, sends it, waits for it, and takes the next."""
    import torch

    cuda = device.type == "cuda"
    pieces = iter(list(_pieces(wanted)))
    if cuda:
        torch.cuda.synchronize(device)  # the tensors' memory may have had another use, on another stream

    def work() -> None:
        stream = torch.cuda.Stream(device) if cuda else None
        room = torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=cuda)
        with ExitStack() as closing:
            if stream is not None:
                closing.enter_context(torch.cuda.stream(stream))
            files: dict[Path, Any] = {}
            for path, begin, target, dtype in pieces:
                if path not in files:
                    files[path] = closing.enter_context(path.open("rb", buffering=0))
                piece = room[: target.numel() * dtype.itemsize]
                _read(files[path].fileno(), piece, begin)
                target.copy_(piece.view(dtype), non_blocking=cuda)  # so asked, torch changes the dtype on the GPU
                if stream is not None:
                    stream.synchronize()

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="weights") as pool:
        for done in [pool.submit(work) for _ in range(_THREADS)]:
            done.result()


def _pieces(wanted: list[tuple[Stored, torch.Tensor]]) -> Iterator[tuple[Path, int, torch.Tensor, torch.dtype]]:
    """Cut tensors into pieces: the file, its first byte there, where it goes, and the dtype in which it is stored."""
    for stored, tensor in wanted:
        dtype, flat = stored.mapped.dtype, tensor.view(-1)
        most = _PIECE_BYTES // dtype.itemsize
        for first in range(0, flat.numel(), most):
            yield stored.path, stored.begin + first * dtype.itemsize, flat[first : first + most], dtype


def _read(file: int, piece: torch.Tensor, begin: int) -> None:
    """Read a piece in full. Raise OSError where the file has become shorter."""
    room, done = memoryview(piece.numpy()), 0
    while done < len(room):
        count = os.preadv(file, [room[done:]], begin + done)
        if count == 0:
            raise OSError(f"the file ends at byte {begin + done}, where weights should be")
        done += count
