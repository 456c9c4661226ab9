"""Conditioning through VACE: diffusers' pipeline, with the half of the control latents kept that no reference changes."""

from __future__ import annotations

from collections import OrderedDict

import torch  # noqa: TID253  # only a lane imports this module
from diffusers import WanVACEPipeline  # noqa: TID253  # as above

from wan_host_wan21.latents import normalised_latents

_KEPT = 8
"""At 480x832 and 81 frames one entry takes 8 MiB."""


class VacePipeline(WanVACEPipeline):
    """WanVACEPipeline that encodes the ``reactive`` half of the control video once for a size, a length and a mask.

    VACE encodes two videos as long as the clip: ``inactive`` (the frames to keep) and ``reactive`` (what to change: grey
    everywhere, whatever the references are). ``keep_reactive`` names the second one; without a name nothing is kept.
    """

    keep_reactive: object = None
    _reactive: OrderedDict[object, torch.Tensor] | None = None

    def prepare_video_latents(
        self,
        video: torch.Tensor,
        mask: torch.Tensor | None,
        reference_images: list[list[torch.Tensor]] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """Return control latents (1, 2 * z_dim, R + T, h, w), R subject frames first, as pipeline_wan_vace.py:513 does."""
        if mask is None or self.keep_reactive is None or video.shape[0] != 1:
            return super().prepare_video_latents(video, mask, reference_images, generator, device)
        video = video.to(self.vae.dtype)
        mask = torch.where(mask > 0.5, 1.0, 0.0).to(self.vae.dtype)  # noqa: PLR2004  # the pipeline's threshold
        if self._reactive is None:  # an __init__ of its own would hide from diffusers which components there are
            self._reactive = OrderedDict()
        inactive, reactive = self._encode(video * (1 - mask)), self._reactive.get(self.keep_reactive)
        if reactive is None:
            reactive = self._reactive[self.keep_reactive] = self._encode(video * mask)
            if len(self._reactive) > _KEPT:
                self._reactive.popitem(last=False)
        self._reactive.move_to_end(self.keep_reactive)
        latents = torch.cat([inactive, reactive], dim=1)
        for image in (reference_images or [[]])[0]:
            subject = self._encode(image.to(self.vae.dtype)[None, :, None])
            latents = torch.cat([torch.cat([subject, torch.zeros_like(subject)], dim=1), latents], dim=2)
        return latents

    def prepare_masks(
        self,
        mask: torch.Tensor,
        reference_images: list[list[torch.Tensor]] | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return the masks (1, 64, R + T, h, w), zeros for the R subject frames.

        The pipeline cuts those zeros out of the mask, and so has too few where there are more subjects than latent frames.
        """
        masks = super().prepare_masks(mask, [[] for _ in mask], generator)
        subjects = len((reference_images or [[]])[0])
        return torch.cat([masks.new_zeros(*masks.shape[:2], subjects, *masks.shape[3:]), masks], dim=2)

    def _encode(self, video: torch.Tensor) -> torch.Tensor:
        """Return normalised latents in the VAE's dtype."""
        return normalised_latents(self.vae, video).to(self.vae.dtype)
