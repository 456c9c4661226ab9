"""Latents to frames, by the arithmetic of diffusers' own pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wan_host import GenerationFailed

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


def decode(vae: Any, latents: torch.Tensor, processor: Any) -> NDArray[np.uint8]:
    """Return the frames of normalised latents (1, channels, T, h, w) as uint8 RGB of shape (frames, height, width, 3).

    The steps are those at the end of WanPipeline.__call__ (pipeline_wan.py:655), so the result equals its ``pil`` output; on
    the way the pixels become bytes on the device, a quarter of what float frames would take. Raise GenerationFailed where
    the latents are not finite: such a clip would be black or torn.
    """
    import torch

    if not bool(torch.isfinite(latents).all()):
        raise GenerationFailed("the latents hold NaN or infinity: the weights or the precision are at fault")
    latents = latents.to(vae.device, dtype=vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, latents.dtype)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.device, latents.dtype)
    video = vae.decode(latents / std + mean, return_dict=False)[0]
    frames = processor.postprocess_video(video, output_type="pt")[0]
    return (frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
