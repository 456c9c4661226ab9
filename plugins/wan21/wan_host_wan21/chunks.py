"""Diffusers' Wan 2.1 VAE walked chunk by chunk: the same layers and the same arithmetic, with less copying.

Stock takes one latent frame at a time, keeps what its causal convolutions look back on in a list, pads every input by a copy
and joins what it made so far once for every chunk. Here a chunk may have several latent frames, every convolution keeps its
past frames in a tensor of its own (zeros before the first frame, which is what stock pads with), borders are padded inside
the convolution, and each decoded chunk leaves as bytes. Shapes are the same for every chunk of a length, so that one can be
compiled or captured in a CUDA graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PAST = 2
"""Frames that a causal convolution over three frames looks back on."""
Activate = Callable[[Any, "torch.Tensor", "torch.Tensor"], None]


class Walk(ABC):
    """Layers of a VAE (batch 1) and the past frames of their convolutions. Not safe across threads."""

    def __init__(self, layers: Any, activate: Activate | None = None) -> None:
        """``activate(norm, x, out)`` writes what a norm and the SiLU after it make of ``x``, both channels last."""
        self._layers = layers
        self._activate = activate
        self._past: list[torch.Tensor] = []
        self._next = 0

    def begin(self) -> None:
        """Forget what came before: the next chunk is a clip's first, of one latent frame."""
        for past in self._past:
            past.zero_()

    def drop(self) -> None:
        """Give the memory of the past frames back."""
        self._past.clear()

    def first(self, x: torch.Tensor) -> torch.Tensor:
        """Return what becomes of a clip's first chunk, one frame or latent frame."""
        return self._walk(x, first=True)

    def rest(self, x: torch.Tensor) -> torch.Tensor:
        """Return what becomes of a following chunk."""
        return self._walk(x, first=False)

    @abstractmethod
    def _walk(self, x: torch.Tensor, *, first: bool) -> torch.Tensor: ...

    def _enter(self, x: torch.Tensor, sizes: Iterator[tuple[Any, int, int]]) -> torch.Tensor:
        """Return what the first convolution makes of a chunk. ``sizes``: parts in order, with their frames' height and width."""
        self._next = 0
        # Before all else: scattered among the first chunk's tensors they would leave holes that later ones do not fit.
        self._past = self._past or _past_frames(sizes, x)
        return self._causal(self._layers.conv_in, x)

    def _middle(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self._layers.mid_block.resnets
        x = self._residual(first, x)
        for attention, resnet in zip(self._layers.mid_block.attentions, others, strict=True):
            x = self._residual(resnet, attention(x))
        return x

    def _leave(self, x: torch.Tensor) -> torch.Tensor:
        return self._activated(self._layers.norm_out, self._layers.conv_out, x)

    def _residual(self, block: Any, x: torch.Tensor) -> torch.Tensor:
        import torch

        shortcut = x if isinstance(block.conv_shortcut, torch.nn.Identity) else self._causal(block.conv_shortcut, x)
        # One inside the other, so that nobody holds what is between them: half a GiB at 480x832.
        x = self._activated(block.norm2, block.conv2, self._activated(block.norm1, block.conv1, x))
        return x.add_(shortcut)

    def _activated(self, norm: Any, conv: Any, x: torch.Tensor) -> torch.Tensor:
        """Return what ``conv`` makes of ``norm`` and the SiLU after it, written straight behind the past frames."""
        import torch

        layout = torch.channels_last_3d if self._activate else _layout(x)
        if self._activate:
            x = x.contiguous(memory_format=layout)
        batch, channels, count, height, width = x.shape
        shape = (batch, channels, _PAST + count, height, width)
        behind = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        past = self._next_past()
        behind[:, :, :_PAST] = past
        (self._activate or _norm_and_silu)(norm, x, behind[:, :, _PAST:])
        del x  # freed before the convolution takes memory, where nobody else holds it
        past.copy_(behind[:, :, -_PAST:])
        return _convolved(conv, behind)

    def _causal(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        return _convolved(conv, self._behind(x) if conv.kernel_size[0] > 1 else x)

    def _behind(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` behind the past frames of the next convolution, and keep its last ones for the next chunk."""
        import torch

        past = self._next_past()
        behind = torch.cat([past, x], dim=2)
        past.copy_(behind[:, :, -past.shape[2] :])
        return behind

    def _next_past(self) -> torch.Tensor:
        """Return the past frames of the next convolution."""
        self._next += 1
        return self._past[self._next - 1]


class DecoderWalk(Walk):
    """``vae.decoder``: the first latent frame (1, z, 1, h, w) becomes (1, 3, 1, 8h, 8w), n following ones (1, 3, 4n, 8h, 8w)."""

    def _walk(self, x: torch.Tensor, *, first: bool) -> torch.Tensor:
        x = self._middle(self._enter(x, self._sizes(*x.shape[-2:])))
        for block in self._layers.up_blocks:
            for resnet in block.resnets:
                x = self._residual(resnet, x)
            for upsampler in block.upsamplers or ():
                # Step by step, so that nobody holds what the step before was given.
                if upsampler.mode == "upsample3d" and first:
                    self._next_past()  # the first chunk passes by: the past of what follows is found by its place
                elif upsampler.mode == "upsample3d":
                    x = self._causal(upsampler.time_conv, x)
                    x = _doubled(x)
                x = _enlarged(x)
                x = _frames(upsampler.resample[1](x))
        return self._leave(x)

    def _sizes(self, height: int, width: int) -> Iterator[tuple[Any, int, int]]:
        decoder = self._layers
        for part in (decoder.conv_in, decoder.mid_block, *decoder.up_blocks, decoder.conv_out):
            yield part, height, width
            if getattr(part, "upsamplers", None):
                height, width = 2 * height, 2 * width


class EncoderWalk(Walk):
    """``vae.encoder``, of Wan 2.1's kind, with no attention but in the middle.

    The first frame (1, 3, 1, 8h, 8w) becomes moments (1, 2z, 1, h, w), 4n following ones (1, 2z, n, h, w).
    """

    def _walk(self, x: torch.Tensor, *, first: bool) -> torch.Tensor:
        x = self._enter(x, self._sizes(*x.shape[-2:]))
        for layer in self._layers.down_blocks:
            if not hasattr(layer, "resample"):
                x = self._residual(layer, x)
                continue
            x = layer.resample[0](_images(x))  # step by step, as above
            x = _frames(layer.resample[1](x))
            if layer.mode == "downsample3d" and first:
                self._next_past().copy_(x)  # it stands alone; the next chunk looks back on it
            elif layer.mode == "downsample3d":
                x = self._causal(layer.time_conv, x)
        return self._leave(self._middle(x))

    def _sizes(self, height: int, width: int) -> Iterator[tuple[Any, int, int]]:
        encoder = self._layers
        for part in (encoder.conv_in, *encoder.down_blocks, encoder.mid_block, encoder.conv_out):
            if hasattr(part, "resample"):
                height, width = height // 2, width // 2
            yield part, height, width


def _doubled(x: torch.Tensor) -> torch.Tensor:
    """Return frames (1, 2c, n, h, w), each with its successor behind it in the channels, as (1, c, 2n, h, w)."""
    batch, channels, count, height, width = x.shape
    channels //= 2
    if x.is_contiguous():
        x = x.view(batch, 2, channels, count, height, width).permute(0, 2, 3, 1, 4, 5)
        return x.reshape(batch, channels, 2 * count, height, width)
    x = x.permute(0, 2, 3, 4, 1).reshape(batch, count, height, width, 2, channels).permute(0, 1, 4, 2, 3, 5)
    return x.reshape(batch, 2 * count, height, width, channels).permute(0, 4, 1, 2, 3)


def _enlarged(x: torch.Tensor) -> torch.Tensor:
    """Return frames (1, c, n, h, w) as images of twice the size, (n, c, 2h, 2w)."""
    import torch

    return torch.nn.functional.interpolate(_images(x), scale_factor=2.0, mode="nearest-exact")


def _images(x: torch.Tensor) -> torch.Tensor:
    """Return frames (1, c, n, h, w) as images (n, c, h, w)."""
    batch, channels, count, height, width = x.shape
    return x.permute(0, 2, 1, 3, 4).reshape(batch * count, channels, height, width)


def _frames(images: torch.Tensor) -> torch.Tensor:
    """Return images (n, c, h, w) as frames (1, c, n, h, w)."""
    return images.unsqueeze(0).permute(0, 2, 1, 3, 4)


def _past_frames(sizes: Iterator[tuple[Any, int, int]], x: torch.Tensor) -> list[torch.Tensor]:
    """Return frames of zeros for every convolution that looks back, in their order."""
    import torch

    made = []
    for part, height, width in sizes:
        for conv in part.modules():
            if isinstance(conv, torch.nn.Conv3d) and conv.kernel_size[0] > 1:
                # One that steps by two frames has seen the one before the last already.
                shape = (len(x), conv.in_channels, conv.kernel_size[0] - conv.stride[0], height, width)
                past = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(conv.weight))
                made.append(past.zero_())
    return made


def decoded(walk: DecoderWalk, prepared: torch.Tensor, watch: Callable[[], None]) -> Iterator[torch.Tensor]:
    """Yield the frames of latents (1, z, T, h, w), ``post_quant_conv`` behind them, in chunks as uint8 (n, height, width, 3).

    The first chunk has one frame, the others four, of one latent frame each: more at once gain little for much memory.
    ``watch`` is called before each.
    """
    walk.begin()
    watch()
    yield as_bytes(walk.first(prepared[:, :, :1]))
    for place in range(1, prepared.shape[2]):
        watch()
        yield as_bytes(walk.rest(prepared[:, :, place : place + 1]))


def channels_last(module: Any) -> None:
    """Lay the weights of a module's convolutions out channels last: the same numbers, and faster convolutions on CUDA."""
    import torch

    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels (1, 3, n, height, width) around -1 to 1 as uint8 RGB (n, height, width, 3), as diffusers rounds them."""
    import torch

    frames = (pixels.float().clamp(-1.0, 1.0) * 0.5 + 0.5).clamp(0, 1)
    return (frames[0].permute(1, 2, 3, 0) * 255).round().to(torch.uint8)


def prepared(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return normalised latents as the decoder takes them: scaled back, and through ``post_quant_conv``."""
    import torch

    latents = latents.to(vae.device, dtype=vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, latents.dtype)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.device, latents.dtype)
    made: torch.Tensor = vae.post_quant_conv(latents / std + mean)
    return made


def _norm_and_silu(norm: Any, x: torch.Tensor, out: torch.Tensor) -> None:
    """Write into ``out`` what ``norm`` (a WanRMS_norm without bias) and SiLU make of ``x``."""
    import torch
    from torch.nn.functional import normalize, silu

    if x.dtype == torch.float32 and _layout(x) == torch.channels_last_3d:
        # Both as dense rows of channels: torch.compile takes no other `out`.
        normalize(x.permute(0, 2, 3, 4, 1), dim=-1, out=out.permute(0, 2, 3, 4, 1))
        silu(out.mul_(norm.scale).mul_(norm.gamma), inplace=True)
    else:  # not in `out`: a norm of halves computes in float32, and a CPU rounds by where a row of numbers ends
        made = normalize(x, dim=1).mul_(norm.scale).mul_(norm.gamma) if x.dtype == torch.float32 else norm(x)
        out.copy_(silu(made, inplace=True))


def _convolved(conv: Any, x: torch.Tensor) -> torch.Tensor:
    import torch

    width, _, height, *_ = conv._padding  # noqa: SLF001  # the padding that the layer itself applies by a copy
    return torch.nn.functional.conv3d(x, conv.weight, conv.bias, stride=conv.stride, padding=(0, height, width))


def _layout(x: torch.Tensor) -> torch.memory_format:
    import torch

    last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    return torch.channels_last_3d if last else torch.contiguous_format
