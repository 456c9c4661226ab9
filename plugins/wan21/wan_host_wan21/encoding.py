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

    def reset(self) -> None:
        """Give the memory back that a cancelled clip left behind."""
        self._walk.drop()

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Return the moments (1, 2z, 1 + k, h, w) of a video (1, 3, 1 + 4k, height, width) in -1..1."""
        import torch

        self._walk.begin()
        made = []
        for begin, end in [(0, 1), *((at, at + _CHUNK) for at in range(1, video.shape[2], _CHUNK))]:
            self._watch()
            walk = self._walk.rest if begin else self._walk.first
            made.append(walk(video[:, :, begin:end]))
        self._walk.drop()
        moments: torch.Tensor = self._vae.quant_conv(torch.cat(made, dim=2))
        return moments
