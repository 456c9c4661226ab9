"""Latents to frames, by the arithmetic of diffusers' own pipelines."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from wan_host import GenerationFailed, ModelLoadFailed

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from wan_host_wan21.settings import Wan21Settings


def decoder_of(vae: Any, device: torch.device, settings: Wan21Settings) -> Any:
    """Return the VAE that decodes on ``device``: ``vae`` itself, or a copy as the settings say, without an encoder.

    The one that encodes stays as it was loaded: in bfloat16 it would shift what is made of a reference.
    """
    import torch

    if settings.decode_dtype == "float32" and not settings.decode_channels_last and not settings.decode_compile:
        return vae
    if device.type != "cuda":
        raise ModelLoadFailed(f"WAN_HOST_WAN21_DECODE_* are settings for CUDA; on {device.type} the decoder runs as it is")
    encoder, vae.encoder = vae.encoder, None
    try:
        copied = copy.deepcopy(vae)
    finally:
        vae.encoder = encoder
    return refined(
        copied.to(device, getattr(torch, settings.decode_dtype)),
        channels_last=settings.decode_channels_last,
        compiles=settings.decode_compile,
    )


def refined(vae: Any, *, channels_last: bool, compiles: bool) -> Any:
    """Return a decoder with its weights laid out channels last, and with compiled norms.

    Its blocks keep lists of features between chunks and would be compiled anew for every place in the list; the norms are
    pure, and most of the memory traffic beside the convolutions is theirs.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in vae.parameters() if channels_last else ():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    for module in vae.decoder.modules() if compiles else ():
        if isinstance(module, WanRMS_norm):
            module.compile(dynamic=False)
    return vae


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
    video = vae.decode(latents / std + mean, return_dict=False)[0].float()
    frames = processor.postprocess_video(video, output_type="pt")[0]
    # in order already on the device: the host takes a tenth of a second for 81 frames, with the device at rest
    return (frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).contiguous().cpu().numpy()
