"""Image-to-video checkpoints (I2V, FLF2V, Fun-InP): diffusers' pipeline, with what Fun-InP needs."""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253  # only a lane imports this module
from diffusers import WanImageToVideoPipeline  # noqa: TID253  # as above


class AnimatePipeline(WanImageToVideoPipeline):
    """WanImageToVideoPipeline that shows the image encoder one image where the transformer was trained with one."""

    def encode_image(self, image: Any, device: torch.device | None = None) -> torch.Tensor:
        """Return image embeddings (N, tokens, width): N is 2 for FLF2V, which learned positions for two images, else 1.

        Given a last frame, the pipeline encodes two images for every transformer, and those of Fun-InP cannot take them.
        """
        if isinstance(image, list) and self.transformer.config.pos_embed_seq_len is None:
            image = image[0]
        return super().encode_image(image, device)
