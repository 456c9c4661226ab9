"""Conditioning through VACE: diffusers' pipeline, given bytes, which keeps the control latents that no reference changes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # only a lane imports this module
from diffusers import WanVACEPipeline  # noqa: TID253  # as above

from wan_host_wan21.latents import normalised_latents

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KEPT = 8
"""At 480x832 and 81 frames one entry takes 8 MiB."""


class VacePipeline(WanVACEPipeline):
    """WanVACEPipeline that encodes the ``reactive`` half of the control video once for a size, a length and a mask.

    VACE encodes two videos as long as the clip: ``inactive`` (the frames to keep) and ``reactive`` (what to change: grey
    everywhere, whatever the references are). ``keep_reactive`` names the second one.
    Video and mask are given as bytes of the clip's size, and go to the device as such: made of images, one by one, they would
    take the host most of a second, and several times the clip in float32 on the device.
    """

    keep_reactive: object
    _reactive: OrderedDict[object, torch.Tensor] | None = None

    def preprocess_conditions(  # noqa: PLR0917  # as the pipeline passes them
        self,
        video: NDArray[np.uint8] | None = None,
        mask: NDArray[np.uint8] | None = None,
        reference_images: Any = None,
        batch_size: int = 1,
        height: int = 480,
        width: int = 832,
        num_frames: int = 81,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, list[list[torch.Tensor]]]:
        """Return video (1, 3, F, height, width), mask (1, 1, F, height, width) as bool, and subjects as the pipeline does.

        ``video`` is (F, height, width, 3) and stays uint8; ``mask`` is (F, height, width): 0 keeps, all else generates. Without
        them everything is generated, of the pipeline's mid-grey: zeros in float.
        """
        sizes = (batch_size, height, width, 1, dtype, device)  # one frame: what is made of it is thrown away
        _, _, subjects = super().preprocess_conditions(None, None, reference_images, *sizes)
        if video is None or mask is None:
            shape = (num_frames, height, width)
            grey, generated = torch.zeros((), dtype=dtype, device=device), torch.ones((), dtype=torch.bool, device=device)
            return grey.expand(1, 3, *shape), generated.expand(1, 1, *shape), subjects
        shown, hidden = torch.from_numpy(video).to(device), torch.from_numpy(mask).to(device)
        return shown.permute(3, 0, 1, 2)[None], hidden.bool()[None, None], subjects

    def prepare_video_latents(
        self,
        video: torch.Tensor,
        mask: torch.Tensor,
        reference_images: list[list[torch.Tensor]],
        generator: torch.Generator | None = None,  # noqa: ARG002  # nothing is drawn: latents are the distribution's mode
        device: torch.device | None = None,  # noqa: ARG002  # the video's
    ) -> torch.Tensor:
        """Return control latents (1, 2 * z_dim, R + T, h, w), R subject frames first, as pipeline_wan_vace.py:513 does."""
        if self._reactive is None:  # an __init__ of its own would hide from diffusers which components there are
            self._reactive = OrderedDict()
        inactive, reactive = self._encode(_shown(video, ~mask)), self._reactive.get(self.keep_reactive)
        if reactive is None:
            reactive = self._reactive[self.keep_reactive] = self._encode(_shown(video, mask))
            if len(self._reactive) > _KEPT:
                self._reactive.popitem(last=False)
        self._reactive.move_to_end(self.keep_reactive)
        latents = torch.cat([inactive, reactive], dim=1)
        for image in reference_images[0]:
            subject = self._encode(image.to(self.vae.dtype)[None, :, None])
            latents = torch.cat([torch.cat([subject, torch.zeros_like(subject)], dim=1), latents], dim=2)
        return latents

    def prepare_masks(
        self,
        mask: torch.Tensor,
        reference_images: list[list[torch.Tensor]],
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return the masks (1, 64, R + T, h, w), zeros for the R subject frames.

        The pipeline cuts those zeros out of the mask, and so has too few where there are more subjects than latent frames.
        """
        masks = super().prepare_masks(mask.float(), [[]], generator)
        subjects = masks.new_zeros(*masks.shape[:2], len(reference_images[0]), *masks.shape[3:])
        return torch.cat([subjects, masks], dim=2)

    def _encode(self, video: torch.Tensor) -> torch.Tensor:
        """Return normalised latents in the VAE's dtype."""
        return normalised_latents(self.vae, video).to(self.vae.dtype)


def _shown(video: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return a video in -1..1, by the arithmetic of diffusers' image processor, and zeros where it is not ``kept``."""
    if video.dtype is not torch.uint8:
        return video * kept
    white = torch.full((), 255.0, device=video.device)  # by a plain number a GPU multiplies with the reciprocal
    return video.float().div_(white).mul_(2).sub_(1).mul_(kept)
