"""What the transformer denoises: the VAE's latents, normalised channel by channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def normalised_latents(vae: Any, video: torch.Tensor) -> torch.Tensor:
    """Return float32 latents (1, z_dim, T, h, w) of a video (1, 3, F, height, width) in -1..1."""
    import torch

    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=video.device, dtype=torch.float32).view(shape)
    std = 1.0 / torch.tensor(vae.config.latents_std, device=video.device, dtype=torch.float32).view(shape)
    return (vae.encode(video).latent_dist.mode().float() - mean) * std
