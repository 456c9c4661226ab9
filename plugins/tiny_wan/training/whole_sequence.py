"""AutoencoderKLWan's encoder and decoder over a whole clip at once, on the official modules.

diffusers feeds the clip chunk by chunk through a cache of features, which is right for serving long clips and slow for
training: a hundred small launches a chunk. A causal convolution over the whole clip computes the same numbers. Only the
temporal resampling treats the first frame apart: going down, it passes through; going up, it is neither doubled nor
seen by its followers. `tests/test_whole_sequence.py` holds both against diffusers.

Clips are (batch, channels, frames, height, width); on a GPU they want the channels_last_3d memory format and bfloat16.
The weights are cast to the clip's type at use, so that the optimizer keeps them in float32.
"""

# ruff: noqa: ANN001, ANN205, D102, D401, N812, SLF001 - numerical scripts: shapes in docstrings say more than types, and formulas have many arguments and constants
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from torch import nn

# "volume": one 3D convolution. "stack": the three frames a tap sees stacked as channels of one 2D convolution. Equal
# numbers; which is faster depends on the GPU and cuDNN (see `train_vae.fastest_convolution`).
CONVOLUTION = {"kind": "volume"}


def encode(vae: nn.Module, clip: torch.Tensor) -> torch.Tensor:
    """The posterior's mean of clips with values in -1..1: (batch, 16, 1 + (frames - 1) / 4, height / 8, width / 8)."""
    x = _causal(vae.encoder.conv_in, clip)
    for layer in vae.encoder.down_blocks:
        x = _layer(layer, x)
    x = _middle(vae.encoder.mid_block, x)
    x = _causal(vae.encoder.conv_out, _norm_silu(vae.encoder.norm_out, x))
    return _causal(vae.quant_conv, x).chunk(2, dim=1)[0]


def decode(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Clips from latents, not clamped."""
    x = _causal(vae.decoder.conv_in, _causal(vae.post_quant_conv, latents))
    x = _middle(vae.decoder.mid_block, x)
    for block in vae.decoder.up_blocks:
        for layer in (*block.resnets, *(block.upsamplers or ())):
            x = _layer(layer, x)
    return _causal(vae.decoder.conv_out, _norm_silu(vae.decoder.norm_out, x))


def _middle(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = _layer(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _layer(resnet, _layer(attention, x))
    return x


def _layer(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, WanResidualBlock):
        h = x if isinstance(layer.conv_shortcut, nn.Identity) else _causal(layer.conv_shortcut, x)
        x = _causal(layer.conv1, _norm_silu(layer.norm1, x))
        return _causal(layer.conv2, _norm_silu(layer.norm2, x)) + h
    if isinstance(layer, WanResample):
        return _resample(layer, x)
    if isinstance(layer, WanAttentionBlock):
        return _attention(layer, x)
    raise TypeError(f"no whole-clip form of {type(layer).__name__}")


def _resample(layer: WanResample, x: torch.Tensor) -> torch.Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        batch, channels, frames, height, width = x.shape
        later = _causal(layer.time_conv, x[:, :, 1:])
        later = later.view(batch, 2, channels, frames - 1, height, width).permute(0, 2, 3, 1, 4, 5)
        later = later.reshape(batch, channels, 2 * (frames - 1), height, width)
        x = torch.cat([x[:, :, :1], later], dim=2)
    frames, convolution = _frames(x), layer.resample[1]
    weight, bias = convolution.weight.to(x.dtype), convolution.bias.to(x.dtype)
    if layer.mode.startswith("upsample"):
        frames = F.conv2d(F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"), weight, bias, padding=1)
    else:
        frames = F.conv2d(F.pad(frames, (0, 1, 0, 1)), weight, bias, stride=2)
    x = _clip(frames, x.shape[0])
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        time = layer.time_conv
        later = F.conv3d(x, time.weight.to(x.dtype), time.bias.to(x.dtype), stride=time.stride)
        x = torch.cat([x[:, :, :1], later], dim=2)
    return x


def _attention(layer: WanAttentionBlock, x: torch.Tensor) -> torch.Tensor:
    """Every pixel of a frame attends to every other of the same frame, with one head."""
    frames = _frames(x)
    normal = _normalise(frames.permute(0, 2, 3, 1), layer.norm.gamma.flatten()).flatten(1, 2)
    qkv, proj = layer.to_qkv, layer.proj
    q, k, v = F.linear(normal, qkv.weight.flatten(1).to(x.dtype), qkv.bias.to(x.dtype)).unsqueeze(1).chunk(3, dim=-1)
    out = F.scaled_dot_product_attention(q, k, v).squeeze(1)
    out = F.linear(out, proj.weight.flatten(1).to(x.dtype), proj.bias.to(x.dtype))
    out = out.view(frames.shape[0], *frames.shape[2:], -1).permute(0, 3, 1, 2)
    return x + _clip(out, x.shape[0])


def _causal(convolution: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """A convolution that sees this frame and the ones before it; zeros before the first."""
    weight, bias = convolution.weight.to(x.dtype), convolution.bias.to(x.dtype)
    taps, height, width = weight.shape[2:]
    space = (height // 2, width // 2)
    if x.shape[2] == 1 or taps == 1:
        return _clip(F.conv2d(_frames(x), weight[:, :, -1], bias, padding=space), x.shape[0])
    if CONVOLUTION["kind"] == "stack":
        padded = F.pad(x, (0, 0, 0, 0, taps - 1, 0))
        seen = torch.cat([padded[:, :, i : i + x.shape[2]] for i in range(taps)], dim=1)
        weight = weight.transpose(1, 2).flatten(1, 2)
        return _clip(F.conv2d(_frames(seen), weight, bias, padding=space), x.shape[0])
    return F.conv3d(F.pad(x, (0, 0, 0, 0, taps - 1, 0)), weight, bias, padding=(0, *space))


def _frames(x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, frames, height, width) to (batch * frames, channels, height, width); a view in channels_last_3d."""
    return x.transpose(1, 2).flatten(0, 1)


def _clip(frames: torch.Tensor, batch: int) -> torch.Tensor:
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def _norm_silu(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if FUSED and x.dtype == torch.bfloat16:
        return FusedNormSilu.apply(x, norm.gamma.flatten())
    return F.silu(_normalise(x.movedim(1, -1), norm.gamma.flatten())).movedim(-1, 1)


def _normalise(rows: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """WanRMS_norm over the last dimension, in float32."""
    return (F.normalize(rows.float(), dim=-1) * (rows.shape[-1] ** 0.5) * gamma).to(rows.dtype)


# The norms, taken one operation at a time, cost as much as the convolutions. Compiled, they are one pass each way.
FUSED: dict[str, Callable] = {}


def compile_norms() -> None:
    """Fuse norm and SiLU on bfloat16 clips: one graph a channel count, for any number of rows."""
    FUSED.update(forward=torch.compile(_rows_forward), backward=torch.compile(_rows_backward))


class FusedNormSilu(torch.autograd.Function):
    """silu(norm(x) * gamma) for x in channels_last_3d. Saves x only.

    Compilers guard on what a view is a view of; `.data` is a view of nothing, so each channel count compiles once.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, gamma)
        rows = _rows(x)
        return FUSED["forward"](rows, gamma.data).view(x.movedim(1, -1).shape).movedim(-1, 1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, gamma = ctx.saved_tensors
        dx, dgamma = FUSED["backward"](_rows(x), gamma.data, _rows(grad))
        return dx.view(x.movedim(1, -1).shape).movedim(-1, 1), dgamma


def _rows(x: torch.Tensor) -> torch.Tensor:
    rows = x.movedim(1, -1).reshape(-1, x.shape[1]).contiguous().data
    torch._dynamo.mark_dynamic(rows, 0)
    return rows


def _rows_forward(rows: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    x = rows.float()
    z = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) * (rows.shape[1] ** 0.5) * gamma
    return (z * torch.sigmoid(z)).to(rows.dtype)


def _rows_backward(rows: torch.Tensor, gamma: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, scale = rows.float(), rows.shape[1] ** 0.5
    length = x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit = x / length
    z = unit * scale * gamma
    s = torch.sigmoid(z)
    dz = grad.float() * s * (1 + z * (1 - s))
    du = dz * scale * gamma
    dx = (du - unit * (unit * du).sum(dim=1, keepdim=True)) / length
    return dx.to(rows.dtype), (dz * unit).sum(dim=0) * scale
