"""Small pictures of the unfinished clip: latents to RGB by a linear map, which costs next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wan_host_wan21.latents import normalised_latents

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_PER_CLIP = 8
_PATCHES = 8
"""The map is fitted to a picture of 8x8 patches of random colours, each four latent cells wide."""
_PATCH_CELLS = 4
_CELL = 8


class Previews:
    """Pictures of one model's latents: one pixel a latent cell, of the middle latent frame."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        """Fit nothing yet: the first picture does."""
        self._vae, self._device = vae, device
        self._map: torch.Tensor | None = None

    def wanted(self, step: int, total: int) -> bool:
        """Whether a picture is due after ``step`` of ``total``: about eight in a clip, and none at its end."""
        every = max(1, total // _PER_CLIP)
        return step < total and step % every == 0

    def picture(self, scheduler: Any) -> NDArray[np.uint8] | None:
        """Return what the solver takes the finished clip to be, uint8 RGB (height / 8, width / 8, 3); None before it knows."""
        import torch

        outputs = getattr(scheduler, "model_outputs", None)
        if not outputs or outputs[-1] is None:
            return None
        clean = outputs[-1][0].float()  # both solvers keep predictions of the clean latents
        middle = clean[:, clean.shape[1] // 2]
        cells = torch.cat([middle, torch.ones_like(middle[:1])]).permute(1, 2, 0)
        rgb = cells @ self._fitted()
        return ((rgb + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    def _fitted(self) -> torch.Tensor:
        """Return the map from latent channels and 1 to RGB in -1..1, shape (channels + 1, 3), by least squares."""
        import torch

        if self._map is None:
            colours = torch.rand(3, _PATCHES, _PATCHES, generator=torch.Generator().manual_seed(0)) * 2 - 1
            cells = colours.repeat_interleave(_PATCH_CELLS, 1).repeat_interleave(_PATCH_CELLS, 2)
            pixels = cells.repeat_interleave(_CELL, 1).repeat_interleave(_CELL, 2)[None, :, None]
            latents = normalised_latents(self._vae, pixels.to(self._device, self._vae.dtype))[0, :, 0].cpu().double()
            known = torch.cat([latents, torch.ones_like(latents[:1])]).flatten(1).T
            self._map = torch.linalg.lstsq(known, cells.flatten(1).T.double(), driver="gelsd").solution.float().to(self._device)
        return self._map
