"""Videos to latents: the VAE's encoder walked chunk by chunk, in place of the VAE's own loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wan_host_wan21.chunks import Activate, EncoderWalk, channels_last

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_CHUNK = 4
"""Frames of a latent frame, after the first which stands alone."""


class Encoder:
    """The encoder of a VAE, as ``vae.encode`` calls it from now on: every pipeline of diffusers comes by there."""

    def __init__(self, vae: Any, device: torch.device, activate: Activate | None, watch: Callable[[], None]) -> None:
        """``activate`` is a kernel for norms and activations; ``watch`` is called before each chunk."""
        if device.type == "cuda":
            channels_last(vae.encoder)
        self._vae, self._walk, self._watch = vae, EncoderWalk(vae.encoder, activate), watch
        vae._encode = self.encode  # noqa: SLF001  # AutoencoderKLWan.encode makes a distribution of what this returns

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Return the moments (1, 2z, 1 + k, h, w) of a video (1, 3, 1 + 4k, height, width) in -1..1; ValueError for others."""
        import torch

        if len(video) != 1 or video.shape[2] % _CHUNK != 1:
            raise ValueError(f"a video of shape {tuple(video.shape)} is not one clip of 4k + 1 frames")
        try:
            first = self._next(self._walk.first, video[:, :, :1])
            rest = video[:, :, 1:].split(_CHUNK, dim=2) if video.shape[2] > 1 else ()
            made = [first, *(self._next(self._walk.rest, chunk) for chunk in rest)]
        finally:
            self._walk.drop()
        moments: torch.Tensor = self._vae.quant_conv(torch.cat(made, dim=2))
        return moments

    def _next(self, walk: Callable[[torch.Tensor], torch.Tensor], chunk: torch.Tensor) -> torch.Tensor:
        self._watch()
        return walk(chunk)
