"""Latents to frames, by the arithmetic of diffusers' own pipelines, chunk by chunk."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from wan_host import GenerationFailed, ModelLoadFailed
from wan_host_wan21.chunks import Activate, DecoderWalk, channels_last, decoded, prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from wan_host_wan21.settings import Wan21Settings

_log = logging.getLogger(__name__)


class Decoder:
    """The VAE that decodes on a device, and what its layers look back on within a clip."""

    def __init__(
        self, vae: Any, device: torch.device, settings: Wan21Settings, activate: Activate | None, watch: Callable[[], None]
    ) -> None:
        """Take ``vae`` itself, or a copy as the settings say; ``watch`` is called before each chunk.

        ``activate`` is a kernel for norms and activations. Raise ModelLoadFailed for settings that this device cannot have.
        """
        self.vae = decoder_of(vae, device, settings)
        self.facts: dict[str, str | int | float | bool] = {}
        """What the report says of it, and frames depend on."""
        if activate is not None:
            self.facts["decode_fused"] = True
        if _copies(settings):
            self.facts["decode_dtype"] = settings.decode_dtype
        self._walk = DecoderWalk(self.vae.decoder, activate)
        self._watch = watch

    def reset(self) -> None:
        """Give the memory back that a clip left behind."""
        self._walk.drop()

    def decode(
        self, latents: torch.Tensor, room: Callable[[], NDArray[np.uint8]], ready: Callable[[int], None]
    ) -> NDArray[np.uint8]:
        """Return the frames of normalised latents (1, channels, T, h, w), as many as ``room()`` has room for, in that array.

        The steps are those at the end of WanPipeline.__call__ (pipeline_wan.py:655), so the result equals its ``pil`` output; the
        pixels become bytes on the device, a quarter of what float frames would take. ``ready`` is told how many frames are there.
        Raise GenerationFailed where the latents are not finite or make fewer frames: such a clip would be black or torn.
        """
        import torch

        if not bool(torch.isfinite(latents).all()):
            raise GenerationFailed("the latents hold NaN or infinity: the weights or the precision are at fault")
        chunks = decoded(self._walk, prepared(self.vae, latents), self._watch)
        return _collected(chunks if latents.device.type == "cpu" else _behind(chunks), room, ready)


def decoder_of(vae: Any, device: torch.device, settings: Wan21Settings) -> Any:
    """Return the VAE that decodes on ``device``: ``vae`` itself, or a copy in another precision, without an encoder.

    The one that encodes keeps its precision: in bfloat16 it would shift what is made of a reference. On CUDA the decoder's
    weights are laid out channels last: the same numbers, and faster convolutions.
    Raise ModelLoadFailed for settings that this device cannot have.
    """
    import torch

    if device.type != "cuda":
        if _copies(settings):
            raise ModelLoadFailed(
                f"WAN_HOST_WAN21_DECODE_DTYPE is a setting for CUDA; on {device.type} the decoder runs as it is"
            )
        return vae
    if _copies(settings):
        encoder, vae.encoder = vae.encoder, None
        try:
            copied = copy.deepcopy(vae)
        finally:
            vae.encoder = encoder
        vae = copied.to(device, getattr(torch, settings.decode_dtype))
    channels_last(vae.decoder)
    return vae


def copied_bytes(vae: Any, settings: Wan21Settings) -> int:
    """Return what `decoder_of` takes on the device beside ``vae``."""
    import torch

    if not _copies(settings):
        return 0
    numbers = sum(tensor.numel() for name, tensor in vae.named_parameters() if not name.startswith("encoder."))
    return numbers * int(getattr(torch, settings.decode_dtype).itemsize)


def fused(device: torch.device, settings: Wan21Settings) -> Activate | None:
    """Return the kernel for the VAE's norms and activations; None where it is not wanted or does not run.

    It is run here, before any job: Triton may be there without a C compiler, or not know this GPU.
    Raise ModelLoadFailed where the setting asks for it nevertheless, or for a device that cannot have it.
    """
    if device.type != "cuda":
        if settings.decode_fused:
            raise ModelLoadFailed(f"WAN_HOST_WAN21_DECODE_FUSED is a setting for CUDA; {device.type} has no such kernel")
        return None
    if settings.decode_fused is False:
        return None
    try:
        from wan_host_wan21.norms import norm_and_silu, try_out

        try_out(device)
    except Exception as error:  # whatever Triton, a compiler or a driver raises
        if settings.decode_fused:
            raise ModelLoadFailed(f"WAN_HOST_WAN21_DECODE_FUSED is true, but its kernel does not run: {error}") from error
        _log.warning("the VAE's norms are not fused, which takes longer: %s", error)
        return None
    return norm_and_silu


def _copies(settings: Wan21Settings) -> bool:
    return settings.decode_dtype != "float32"


def _collected(
    chunks: Iterable[torch.Tensor], room: Callable[[], NDArray[np.uint8]], ready: Callable[[int], None]
) -> NDArray[np.uint8]:
    """Write chunks, which are on the CPU, one behind the other until the room is full.

    Raise GenerationFailed where they do not fill it: the rest would be black.
    """
    frames, at = None, 0
    for chunk in chunks:
        if frames is None:  # only now: the device works on the first chunk meanwhile
            frames = room()
        count = min(len(chunk), len(frames) - at)
        frames[at : at + count] = chunk[:count].numpy()
        at += count
        ready(at)
    if frames is None:
        frames = room()
    if at != len(frames):
        raise GenerationFailed(f"the decoder made {at} frames; the clip has {len(frames)}")
    return frames


def _behind(chunks: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    """Yield copies of chunks in the host's memory, each once the device has the next one to work on."""
    import torch

    waiting: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for chunk in chunks:
        copied = torch.empty(chunk.shape, dtype=chunk.dtype, pin_memory=True)
        copied.copy_(chunk, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        if waiting is not None:
            waiting[1].synchronize()
            yield waiting[0]
        waiting = copied, event
    if waiting is not None:
        waiting[1].synchronize()
        yield waiting[0]
