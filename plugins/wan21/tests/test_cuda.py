"""What only a GPU can show: placements, checkpoints, cancels, adapters, shortage of memory and presets, in bfloat16 on CUDA.

Where there is no GPU the same runs on the CPU in bfloat16, but for what CUDA alone has. On a machine with little beside torch,
diffusers and pytest (no plugins of pytest, no Redis):

    PYTHONPATH=.:plugins/wan21 python3 -m pytest -c /dev/null --rootdir . --import-mode importlib plugins/wan21/tests/test_cuda.py

The kernels' tests run without a GPU, too, in Triton's interpreter: TRITON_INTERPRET=1, with Triton on the path.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from safetensors.torch import save_file
from wan_host_wan21 import fp8
from wan_host_wan21.checkpoint import Kind
from wan_host_wan21.fake import TINY, write_checkpoint, write_turbo
from wan_host_wan21.generation import generate
from wan_host_wan21.memory import LADDER, Placement
from wan_host_wan21.model import load
from wan_host_wan21.resuming import restore, save
from wan_host_wan21.turbo import read_turbo

from wan_host import Checkpoint, JobCancelled, Lora, OutOfMemory, ReferenceMode, References

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
SMALL = replace(TINY, name="small", head_dim=64, ffn_dim=256, text_dim=64)
"""As small as 8-bit instructions and every attention kernel allow: rows of 128."""
TRAINED = Path(__file__).resolve().parents[2] / "tiny_wan" / "wan_host_tiny_wan" / "model"
needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU")
KERNEL_DTYPE = torch.float32 if DEVICE == "cpu" else torch.bfloat16
"""Triton's interpreter cuts bfloat16 off where a GPU rounds it."""
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or (DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"),
    reason="needs Triton, and a CUDA GPU or TRITON_INTERPRET=1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a VACE checkpoint with a turbo adapter of its own."""
    path = tmp_path_factory.mktemp("small")
    write_checkpoint(path, Kind.VACE, SMALL, progress=lambda _: None)
    from diffusers import WanVACETransformer3DModel

    transformer = WanVACETransformer3DModel.from_pretrained(path / "transformer")
    write_turbo(path / "turbo.safetensors", transformer, rank=4, sigmas=(1.0, 0.9, 0.5))
    return path


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return one folder for what is measured and compiled."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def load_model(data_dir, info_of, recorder, monkeypatch):
    """Return a function that loads a folder in bfloat16 on the device, by settings."""
    monkeypatch.setenv("WAN_HOST_DATA_DIR", str(data_dir))
    monkeypatch.setattr("wan_host_wan21.components.compute_dtype", lambda _device: torch.bfloat16)

    def loaded(path, **settings):
        for name, value in {"compile": False, **settings}.items():
            monkeypatch.setenv(f"WAN_HOST_WAN21_{name.upper()}", str(value))
        return load(info_of(path), recorder(device=DEVICE))

    return loaded


@pytest.fixture
def model(load_model, folder):
    """Return the model with everything resident and nothing compiled."""
    return load_model(folder, placement="resident")


@pytest.fixture
def place(monkeypatch):
    """Return a function that has every further job of a model placed in one way."""

    def chosen(model, placement):
        monkeypatch.setattr(model.placer, "_settings", model.settings.model_copy(update={"placement": placement}))
        model.embeddings.forget()

    return chosen


@pytest.fixture
def frames(recorder):
    """Return a function from a request and a model to the pixels of its first clip."""
    return lambda request, model: generate(request, model, recorder(device=DEVICE)).clips[0].frames


@pytest.fixture
def requests(video, image, picture):
    """Return a text-to-video, an image and a conditioned request."""
    start = {"reference_mode": ReferenceMode.START, "references": References(first_frame=picture())}
    return {"text": video(), "image": image(sample_solver="unipc"), "start": video(frames=5, **start)}


def write_lora(path, transformer):
    source = torch.Generator().manual_seed(3)
    state = {}
    for block in range(len(transformer.blocks)):
        for layer in (f"blocks.{block}.attn1.to_q", f"blocks.{block}.ffn.net.0.proj"):
            rows, columns = transformer.get_submodule(layer).weight.shape
            state[f"transformer.{layer}.lora_A.weight"] = torch.randn(4, columns, generator=source) * 0.3
            state[f"transformer.{layer}.lora_B.weight"] = torch.randn(rows, 4, generator=source) * 0.3
    save_file(state, path)


def test_the_model_is_on_the_device_in_bfloat16(model):
    devices = {str(tensor.device) for module in model.components.modules() for tensor in module.parameters()}
    assert devices == {DEVICE}
    assert model.components.transformer.dtype is torch.bfloat16
    assert model.components.vae.dtype is torch.float32


@pytest.mark.parametrize("placement", [placement for placement in LADDER if placement is not Placement.RESIDENT])
def test_every_placement_gives_the_same_frames_there_and_back(*, placement, model, place, frames, requests, recorder):
    expected = {name: frames(request, model) for name, request in requests.items()}
    place(model, placement)
    for name, request in requests.items():
        made = generate(request, model, recorder(device=DEVICE))
        assert made.metadata["placement"] == placement
        assert np.array_equal(made.clips[0].frames, expected[name]), name
    place(model, Placement.RESIDENT)
    for name, request in requests.items():
        assert np.array_equal(frames(request, model), expected[name]), name


def test_stored_in_8_bits_results_are_near_and_the_same_every_time(model, load_model, folder, frames, requests):
    rounded = load_model(folder, placement="fp8")
    for request in requests.values():
        made = frames(request, rounded)
        assert np.array_equal(frames(request, rounded), made)
        assert 0 < np.abs(made.astype(int) - frames(request, model)).mean() < 16


class Stop:
    """A lane context that keeps checkpoints as a file would, and stops after a step or goes on from one."""

    def __init__(self, recorder, *, after=None, going_on_from=None):
        self._recorder, self._after, self._from = recorder(device=DEVICE), after, going_on_from
        self.kept = None

    def __getattr__(self, name):
        return getattr(self._recorder, name)

    def resume(self, _made_with):
        return self._from

    def checkpoint(self, save):
        kept = save()
        if kept.step == self._after:
            assert {array.dtype.kind for array in kept.arrays.values()} <= set("fiu"), "what safetensors' numpy side can hold"
            arrays = {name: array.copy() for name, array in kept.arrays.items()}
            self.kept = Checkpoint(step=kept.step, arrays=arrays, values=kept.values)
            raise JobCancelled("stop")


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        (2, {"sample_solver": "unipc", "num_inference_steps": 5}),
        (3, {"sample_solver": "dpm++", "num_inference_steps": 5}),
        (5, {"sample_solver": "unipc", "num_inference_steps": 20, "preset": "fast"}),
        (1, {"preset": "turbo"}),
        (2, {"preset": "turbo"}),
    ],
)
def test_a_job_goes_on_from_a_checkpoint_with_the_same_bits(*, after, changes, model, video, frames, recorder):
    request = video(**changes)
    expected = frames(request, model)
    stopped = Stop(recorder, after=after)
    with pytest.raises(JobCancelled):
        generate(request, model, stopped)
    made = generate(request, model, Stop(recorder, going_on_from=stopped.kept))
    assert np.array_equal(made.clips[0].frames, expected)


def test_latents_in_bfloat16_are_kept_bit_for_bit():
    """As a scheduler leaves them that returns the prediction's dtype."""

    class Solver:
        model_outputs = (torch.randn(2, 3, device=DEVICE, dtype=torch.bfloat16), torch.randn(2, 3, device=DEVICE))
        last_sample = torch.randn(2, 3, device=DEVICE, dtype=torch.bfloat16)

    latents = torch.randn(1, 2, 3, device=DEVICE, dtype=torch.bfloat16)
    kept = save(step=1, done=1, clips=(), latents=latents, generator=torch.Generator(), scheduler=Solver())
    start = restore(kept).start
    assert torch.equal(start.latents, latents.cpu())
    found = {"model_outputs.0": Solver.model_outputs[0], "model_outputs.1": Solver.model_outputs[1]}
    for name, value in (found | {"last_sample": Solver.last_sample}).items():
        assert start.solver[name].dtype is value.dtype
        assert torch.equal(start.solver[name], value.cpu())


@pytest.mark.parametrize("placement", LADDER)
@pytest.mark.parametrize("moment", ["encoding the prompt", "step 2/3", "decoding"])
def test_a_cancel_leaves_no_trace(*, moment, placement, model, place, frames, requests, video, recorder):
    expected = frames(requests["start"], model)
    place(model, placement)
    context = recorder(device=DEVICE, stop_at=moment, error=JobCancelled("stop"))
    with pytest.raises(JobCancelled):
        generate(video(prompt=f"cancelled at {moment}", seed=99), model, context)
    assert np.array_equal(frames(requests["start"], model), expected)


@pytest.mark.parametrize("placement", LADDER)
def test_an_adapter_leaves_no_trace_and_acts_alike_under_every_placement(
    *, placement, model, place, frames, video, tmp_path, monkeypatch
):
    write_lora(tmp_path / "one.safetensors", model.components.transformer)
    monkeypatch.setattr(model.loras, "_settings", model.settings.model_copy(update={"loras_dir": tmp_path}))
    adapted = video(loras=(Lora(name="one", scale=0.7),))
    plain, changed = frames(video(), model), frames(adapted, model)
    assert not np.array_equal(plain, changed)
    place(model, placement)
    for request, expected in ((video(), plain), (adapted, changed), (video(), plain)):
        assert np.array_equal(frames(request, model), expected)


@pytest.mark.parametrize("preset", ["exact", "fast", "turbo"])
def test_presets_give_the_same_frames_whatever_ran_before(*, preset, model, frames, video, requests, recorder):
    wanted = video(preset=preset, num_inference_steps=12)
    first = generate(wanted, model, recorder(device=DEVICE))
    for other in ("turbo", "exact", "fast"):
        frames(replace(requests["start"], preset=other), model)
    assert np.array_equal(frames(wanted, model), first.clips[0].frames)
    rounded = preset != "exact" and fp8.why_not(torch.device(DEVICE)) is None
    assert ("fp8_layers" in first.metadata) == rounded
    if rounded:
        assert first.metadata["fp8_layers"] > 0


@pytest.mark.parametrize("placement", ["resident", "lean"])
def test_compiled_passes_of_vace_are_near_and_the_same_every_time(
    *, placement, model, load_model, folder, frames, requests, recorder
):
    compiled = load_model(folder, placement=placement, compile=True)
    if DEVICE == "cpu":
        compiled.acceleration.compiles_with |= {"backend": "eager"}
    for name, request in requests.items():
        made = generate(request, compiled, recorder(device=DEVICE))
        assert made.metadata["compiled"] is True
        assert np.abs(made.clips[0].frames.astype(int) - frames(request, model)).mean() < 4, name
        assert np.array_equal(frames(request, compiled), made.clips[0].frames), name
    graphs = compiled.acceleration.cache.graphs
    assert (graphs is not None) == (DEVICE != "cpu" and placement == "resident")
    if graphs is not None:
        assert not graphs._refused
        assert len(graphs._kept) >= len(requests)


def blocks_of_odd_sizes():
    """Return a transformer of rows that are no power of two, and two different samples for it."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 96, "num_layers": 2, "ffn_dim": 320, "text_dim": 32, "freq_dim": 32}
    model = WanTransformer3DModel(**shape, in_channels=4, out_channels=4, qk_norm="rms_norm_across_heads")
    for block in model.blocks:
        for norm in (block.attn1.norm_q, block.attn1.norm_k, block.norm2):
            torch.nn.init.normal_(norm.weight)
    model = model.to(DEVICE, KERNEL_DTYPE).eval().requires_grad_(requires_grad=False)
    inputs = (torch.randn(2, 4, 3, 8, 8), torch.tensor([500, 20]), torch.randn(2, 7, 32))
    return model, tuple(value.to(DEVICE, KERNEL_DTYPE) for value in inputs)


@needs_triton
@pytest.mark.parametrize("ends", [(17, 90), (1, 99), (100, 64)])
def test_attention_to_a_padded_text_is_attention_to_all_of_its_rows(ends):
    from wan_host_wan21.text_attention import attend_to_text

    source = torch.Generator().manual_seed(1)
    texts, weight, query = (torch.randn(*size, generator=source) for size in ((2, 100, 30), (30, 96), (2, 150, 2, 24)))
    for text, end in zip(texts, ends, strict=True):
        text[end:] = text[-1].clone()
    key, value = (part.unflatten(2, (2, 24)) for part in (texts @ weight * 0.3).to(DEVICE, KERNEL_DTYPE).chunk(2, dim=-1))
    query, texts = (tensor.to(DEVICE, KERNEL_DTYPE) for tensor in (query, texts))
    sides = (tensor.transpose(1, 2).float() for tensor in (query, key, value))
    wanted = torch.nn.functional.scaled_dot_product_attention(*sides).transpose(1, 2)
    made = attend_to_text(query, key, value, texts).float()
    assert float((made - wanted).norm() / wanted.norm()) < (1e-4 if DEVICE == "cpu" else 0.01)


@needs_triton
def test_what_the_padding_of_a_text_holds_is_not_computed_row_by_row():
    """Keys and values behind the text's end are not looked at: they are the last row's."""
    from wan_host_wan21.text_attention import attend_to_text

    text = torch.zeros(1, 100, 30, device=DEVICE, dtype=KERNEL_DTYPE)
    text[:, :5] = 1
    query, key, value = (torch.randn(1, rows, 2, 24, device=DEVICE).to(KERNEL_DTYPE) for rows in (7, 100, 100))
    whole = attend_to_text(query, key, value, text)
    key[:, 6:], value[:, 6:] = float("nan"), float("nan")
    assert torch.equal(attend_to_text(query, key, value, text), whole)


@needs_triton
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_blocks_with_kernels_compute_what_the_modules_compute(*, compiled, fused):
    from wan_host_wan21.kernels import Kernels

    model, (latents, timestep, text) = blocks_of_odd_sizes()
    text[:, 3:] = 0
    plain = model(latents, timestep, text, return_dict=False)[0].float()
    if fused:
        model.fuse_qkv_projections()
    kernels = Kernels(model.blocks)
    assert all("forward" in vars(block) for block in model.blocks)
    if compiled:
        for block in model.blocks:
            block.compile(backend="eager" if DEVICE == "cpu" else "inductor", fullgraph=True, dynamic=False)
    made = model(latents, timestep, text, return_dict=False)[0].float()
    assert float((made - plain).norm() / plain.norm()) < (1e-4 if DEVICE == "cpu" else 0.01)
    kernels.take_out()
    model.unfuse_qkv_projections()
    for block in model.blocks:
        block._compiled_call_impl = None
        assert "forward" not in vars(block)
    assert torch.equal(model(latents, timestep, text, return_dict=False)[0].float(), plain), "all of them are out again"


@needs_triton
@pytest.mark.parametrize("channels", [96, 192, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if DEVICE != "cpu" else [torch.float32])
def test_a_norm_and_its_activation_in_one_kernel_compute_what_the_modules_compute(channels, dtype):
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
    from wan_host_wan21.norms import norm_and_silu

    norm = WanRMS_norm(channels, images=False).to(DEVICE, dtype).requires_grad_(requires_grad=False)
    torch.nn.init.normal_(norm.gamma)
    last = {"device": DEVICE, "dtype": dtype, "memory_format": torch.channels_last_3d}
    x = (torch.randn(1, channels, 3, 7, 5) * 3).to(**last)
    x[..., 0, 0] = 0  # a pixel without length is no division by zero
    made = torch.full((1, channels, 5, 7, 5), 9.0).to(**last)
    norm_and_silu(norm, x, made[:, :, 2:])
    wanted = torch.nn.functional.silu(norm(x)).float()
    error = (made[:, :, 2:].float() - wanted).abs().max() / wanted.abs().max()
    assert error < (1e-5 if dtype is torch.float32 else 0.02)
    assert (made[:, :, :2] == 9).all(), "what is before it is left alone"


@needs_triton
def test_the_kernel_that_is_tried_before_any_job_runs_here():
    from wan_host_wan21.norms import try_out

    try_out(torch.device(DEVICE))


@needs_triton
def test_a_decoder_with_fused_norms_makes_the_frames_of_one_without(model):
    from wan_host_wan21.chunks import DecoderWalk, channels_last, decoded, prepared
    from wan_host_wan21.norms import norm_and_silu

    vae = copy.deepcopy(model.components.vae)
    channels_last(vae.decoder)
    with torch.no_grad():
        latents = prepared(vae, torch.randn(1, 16, 3, 4, 6, device=DEVICE))
        plain, fused = (
            torch.cat(list(decoded(DecoderWalk(vae.decoder, activate), latents, lambda: None))).float()
            for activate in (None, norm_and_silu)
        )
    assert plain.std() > 0
    assert float((fused - plain).abs().max()) <= 1


@needs_triton
def test_an_encoder_with_fused_norms_makes_the_latents_of_diffusers(model):
    from wan_host_wan21.encoding import Encoder
    from wan_host_wan21.norms import norm_and_silu

    own, stock = (copy.deepcopy(model.components.vae) for _ in range(2))
    del stock._encode
    Encoder(own, torch.device("cuda"), norm_and_silu, lambda: None)
    video = torch.rand(1, 3, 9, 32, 48, device=DEVICE) * 2 - 1
    with torch.no_grad():
        wanted, made = (vae.encode(video).latent_dist.mode() for vae in (stock, own))
    assert wanted.std() > 0
    assert float((made - wanted).norm() / wanted.norm()) < 2e-3, "what products in TF32 round"


@needs_cuda
def test_blocks_in_8_bits_with_kernels_compute_what_the_modules_compute():
    from wan_host_wan21.kernels import Kernels, bias_gelu_round

    model, inputs = blocks_of_odd_sizes()
    model.fuse_qkv_projections()
    fp8.Fp8Layers(model.blocks).put_in()
    rounded = model(*inputs, return_dict=False)[0].float()
    Kernels(model.blocks)
    again = model(*inputs, return_dict=False)[0].float()
    assert float((again - rounded).norm() / rounded.norm()) < 0.03

    hidden, bias = torch.randn(7, 320, device=DEVICE).bfloat16() * 3, torch.randn(320, device=DEVICE)
    codes, scale = bias_gelu_round(hidden, bias, fp8.LARGEST, fp8.SMALLEST_SCALE)
    wanted = torch.nn.functional.gelu((hidden.float() + bias).bfloat16(), approximate="tanh").float()
    assert float((codes.float() * scale - wanted).abs().max() / wanted.abs().max()) < 0.035


@needs_cuda
def test_what_rests_is_locked_until_its_model_goes(load_model, folder):
    kept = load_model(folder, placement="lean")
    held = [rest.held for rest in kept.placer.transformer_blocks._rests]
    assert held
    assert all(one.is_pinned() for one in held)
    kept.close()
    assert not any(one.is_pinned() for one in held)


@needs_cuda
def test_too_little_memory_is_told_as_such_and_the_next_job_runs(model, frames, requests, video, recorder):
    expected = frames(requests["start"], model)
    total = torch.cuda.get_device_properties(0).total_memory
    model.acceleration.leave()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + 48 * 2**20) / total, 0)
    try:
        with pytest.raises(OutOfMemory, match="tiny on cuda:0: CUDA out of memory"):
            generate(video(width=512, height=512, frames=17), model, recorder(device=DEVICE))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert np.array_equal(frames(requests["start"], model), expected)


@needs_cuda
def test_a_closed_model_gives_its_memory_back(load_model, folder, frames, requests):
    kept = load_model(folder, placement="resident")
    frames(requests["text"], kept)
    weights = kept.placer.weights
    held = weights.transformer + weights.text_encoder + weights.vae
    before = torch.cuda.memory_allocated(0)
    kept.close()
    assert before - torch.cuda.memory_allocated(0) >= held


@pytest.mark.skipif(not (TRAINED / "model_index.json").is_file(), reason="needs plugins/tiny_wan beside this plugin")
def test_a_trained_model_makes_the_clip_that_float32_on_a_cpu_makes(*, load_model, info_of, recorder, video, frames, monkeypatch):
    request = video(prompt="a large red circle moving to the right on a blue background", width=64, height=64, guidance_scale=5.0)
    low = frames(request, load_model(TRAINED)).astype(float)
    monkeypatch.setattr("wan_host_wan21.components.compute_dtype", lambda _device: torch.float32)
    exact = generate(request, load(info_of(TRAINED), recorder()), recorder()).clips[0].frames
    assert 10 * np.log10(255**2 / ((low - exact) ** 2).mean()) > 25


def test_the_turbo_adapter_of_these_tests_is_one(folder):
    assert read_turbo(folder / "turbo.safetensors").sigmas == (1.0, 0.9, 0.5)
