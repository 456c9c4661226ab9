"""The walks over the VAE: what they keep between chunks and which tensors they hold, which is what they take of a GPU."""

from __future__ import annotations

import pytest
import torch  # noqa: TID253  # a test of torch code
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: TID253
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: TID253
from wan_host_wan21.chunks import DecoderWalk, EncoderWalk, _norm_and_silu, channels_last
from wan_host_wan21.encoding import Encoder


@pytest.fixture
def vae():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval().requires_grad_(requires_grad=False)


@pytest.fixture
def decoder(vae):
    return vae.decoder


class Operations(TorchDispatchMode):
    """Writes down the names of operations, and how many convolutions of images begin with what was enlarged still there."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.enlarged = self.held = 0
        self._small: StorageWeakRef | None = None

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        name = operation.name()
        self.names.append(name)
        if name == "aten::_upsample_nearest_exact2d":
            self.enlarged += 1
            self._small = StorageWeakRef(args[0].untyped_storage())
        elif name == "aten::convolution" and self._small is not None:
            self.held += not self._small.expired()
            self._small = None
        return operation(*args, **(kwargs or {}))


def clip(walk, latents):
    walk.begin()
    return [walk.first(latents[:, :, :1]), *(walk.rest(latents[:, :, at : at + 1]) for at in range(1, latents.shape[2]))]


def test_past_frames_are_there_before_anything_is_computed_and_stay(decoder):
    """Scattered among the first chunk's tensors they leave holes that the others' do not fit."""
    walk, latents = DecoderWalk(decoder), torch.randn(1, 16, 1, 2, 4)
    with Operations() as operations:
        walk.first(latents)
    names = operations.names
    convolutions = sum(isinstance(part, torch.nn.Conv3d) and part.kernel_size[0] > 1 for part in decoder.modules())
    assert names[: names.index("aten::convolution")].count("aten::zero_") == names.count("aten::zero_") == convolutions
    with Operations() as operations:
        walk.rest(latents)
    assert "aten::zero_" not in operations.names


def test_frames_are_let_go_of_once_they_are_enlarged(decoder):
    walk, latents = DecoderWalk(decoder), torch.randn(1, 16, 2, 2, 4)
    with Operations() as operations:
        clip(walk, latents)
    assert (operations.enlarged, operations.held) == (6, 0)


@pytest.mark.parametrize("last", [False, True])
def test_a_clip_is_the_same_after_another_and_after_one_of_another_size(decoder, last):
    if last:
        channels_last(decoder)
    walk, large, small = DecoderWalk(decoder), torch.randn(1, 16, 3, 4, 6), torch.randn(1, 16, 2, 3, 2)
    wanted_large, wanted_small = (clip(DecoderWalk(decoder), latents) for latents in (large, small))
    clip(walk, large + 1)
    same = clip(walk, large)
    walk.drop()
    other = clip(walk, small)
    assert [chunk.shape for chunk in same] == [(1, 3, 1, 32, 48), (1, 3, 4, 32, 48), (1, 3, 4, 32, 48)]
    for made, wanted in zip([*same, *other], [*wanted_large, *wanted_small], strict=True):
        assert torch.equal(made, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("channels", [96, 40])
def test_a_norm_and_its_activation_keep_every_bit_where_they_are_written(channels, layout, dtype):
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

    norm = WanRMS_norm(channels, images=False).to(dtype).requires_grad_(requires_grad=False)
    torch.nn.init.normal_(norm.gamma)
    x = (torch.randn(1, channels, 3, 7, 5) * 3).to(dtype, memory_format=layout)
    made = torch.full((1, channels, 5, 7, 5), 9.0, dtype=dtype).contiguous(memory_format=layout)
    with Operations() as operations:
        _norm_and_silu(norm, x, made[:, :, 2:])
    assert torch.equal(made[:, :, 2:], torch.nn.functional.silu(norm(x)))
    assert (made[:, :, :2] == 9).all(), "what is before it is left alone"
    direct = layout == torch.channels_last_3d and dtype is torch.float32
    assert ("aten::copy_" not in operations.names) == direct, "no tensor between, as on a GPU"


CPU, CUDA = torch.device("cpu"), torch.device("cuda")
"""On ``CUDA`` nothing is put here: it says which layout the weights get."""


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 48), (5, 48, 32), (17, 16, 16)])
def test_a_video_is_encoded_as_diffusers_does(vae, frames, height, width):
    video, watched = torch.rand(1, 3, frames, height, width) * 2 - 1, []
    wanted = vae.encode(video).latent_dist.mode()
    encoder = Encoder(vae, CPU, None, lambda: watched.append(None))
    made = vae.encode(video).latent_dist.mode()
    assert made.std() > 0
    assert torch.equal(made, wanted)
    assert len(watched) == 1 + frames // 4
    other = vae.encode(torch.rand(1, 3, 5, 16, 32)).latent_dist.mode()
    assert other.shape == (1, 16, 2, 2, 4)
    assert torch.equal(vae.encode(video).latent_dist.mode(), wanted), "after one of another size"
    assert not encoder._walk._past, "nothing stays on the device after a clip"


@pytest.mark.parametrize("fused", [False, True])
def test_encoding_in_the_layout_of_a_gpu_is_as_near_as_rounding(vae, fused):
    asked = []

    def activate(norm, x, out):
        asked.append(x.is_contiguous(memory_format=torch.channels_last_3d))
        out.copy_(torch.nn.functional.silu(norm(x)))

    video = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    wanted = vae.encode(video).latent_dist.mode()
    Encoder(vae, CUDA, activate if fused else None, lambda: None)
    assert (vae.encode(video).latent_dist.mode() - wanted).abs().max() < 1e-5 * wanted.std()
    assert bool(asked) is fused
    assert all(asked)


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (2, 3, 5, 16, 16)])
def test_a_video_of_another_length_or_a_batch_is_refused(vae, shape):
    Encoder(vae, CPU, None, lambda: None)
    with pytest.raises(ValueError, match=r"is not one clip of 4k \+ 1 frames"):
        vae.encode(torch.zeros(shape))


def test_past_frames_of_the_encoder_are_there_before_anything_is_computed(vae):
    walk, encoder = EncoderWalk(vae.encoder), vae.encoder
    with Operations() as operations:
        walk.first(torch.randn(1, 3, 1, 16, 16))
    names = operations.names
    convolutions = sum(isinstance(part, torch.nn.Conv3d) and part.kernel_size[0] > 1 for part in encoder.modules())
    assert names[: names.index("aten::convolution")].count("aten::zero_") == names.count("aten::zero_") == convolutions
