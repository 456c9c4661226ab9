"""Speed presets: what each leaves out, that it is right on both transformers, and that it leaves no trace."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from safetensors.torch import save_file
from wan_host_wan21 import fp8
from wan_host_wan21.catalogue import offered_presets
from wan_host_wan21.decoding import Decoder, fused
from wan_host_wan21.generation import generate
from wan_host_wan21.memory import Placement
from wan_host_wan21.presets import Preset, Schedule, fast, thinned, whole
from wan_host_wan21.settings import Wan21Settings
from wan_host_wan21.step_cache import StepCache
from wan_host_wan21.turbo import read_turbo, scheduler_for, shifted

from wan_host import Lora, ModelLoadFailed, ReferenceMode, References, UnsupportedRequest


def inputs_of(module, seed: int) -> dict:
    source = torch.Generator().manual_seed(seed)
    given = {
        "hidden_states": torch.randn(1, 16, 3, 6, 4, generator=source),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 512, 32, generator=source),
    }
    if "vace_layers" in module.config:
        given["control_hidden_states"] = torch.randn(1, 96, 3, 6, 4, generator=source)
    return given


def view_of(vace, kind: str):
    return vace.components.plain if kind == "t2v" else vace.components.transformer


def scaled(module, scale: float | None) -> dict:
    return {} if scale is None else {"control_hidden_states_scale": torch.full((len(module.config.vace_layers),), scale)}


@pytest.mark.parametrize(("kind", "scale"), [("t2v", None), ("vace", 0.0), ("vace", 1.0)])
def test_identical_inputs_on_a_reused_step_reproduce_the_output(kind, scale, vace):
    """The probe that diffusers' FirstBlockCache and MagCache fail on VACE: their error is above 1 at a scale of 1."""
    module = view_of(vace, kind)
    given = inputs_of(module, 1) | scaled(module, scale)
    cache = StepCache([module])
    with torch.no_grad():
        plain = module(**given, return_dict=False)[0]
        cache.begin(Schedule(computed=(True, False), guided=(True, True)))
        computed = module(**given, return_dict=False)[0]
        cache.next_step()
        reused = module(**given, return_dict=False)[0]
        cache.end()
        assert torch.equal(module(**given, return_dict=False)[0], plain), "the forward is the module's own again"
    assert torch.equal(computed, plain)
    assert cache.passes == 1
    assert (reused - plain).abs().max() < 2e-6


@pytest.mark.parametrize("kind", ["t2v", "vace"])
def test_a_reused_step_follows_its_own_latents_and_timestep(kind, vace):
    """Where the blocks add nothing, a reused step is the whole model: the outer layers are computed, not remembered."""
    module = view_of(vace, kind)
    idle = Schedule(computed=(True, False), guided=(True, True))
    other = inputs_of(module, 2) | {"timestep": torch.tensor([250.0])}
    cache = StepCache([module])
    blocks, vace_layers = module.blocks, getattr(module, "vace_blocks", None)
    module.blocks = torch.nn.ModuleList()
    if vace_layers is not None:
        module.vace_blocks = torch.nn.ModuleList()
    try:
        with torch.no_grad():
            expected = module(**other, return_dict=False)[0]
            cache.begin(idle)
            module(**inputs_of(module, 1), return_dict=False)
            cache.next_step()
            assert torch.equal(module(**other, return_dict=False)[0], expected)
    finally:
        cache.end()
        module.blocks = blocks
        if vace_layers is not None:
            module.vace_blocks = vace_layers


def test_unguided_steps_leave_the_negative_prompt_out(vace):
    module = vace.components.plain
    cache = StepCache([module])
    positive, negative = inputs_of(module, 1), inputs_of(module, 2)
    with torch.no_grad():
        cache.begin(Schedule(computed=(True, True), guided=(True, False)))
        first = [module(**given, return_dict=False)[0] for given in (positive, negative)]
        cache.next_step()
        second = [module(**given, return_dict=False)[0] for given in (positive, negative)]
        cache.end()
    assert not torch.equal(*first)
    assert torch.equal(*second)
    assert cache.passes == 3


def test_a_step_that_reuses_nothing_is_refused(vace):
    module = vace.components.plain
    cache = StepCache([module])
    cache.begin(Schedule(computed=(True, False), guided=(True, True)), done=1)
    with torch.no_grad(), pytest.raises(RuntimeError, match="reuses what no step before it has computed"):
        module(**inputs_of(module, 1), return_dict=False)
    cache.end()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 12, 25, 50, 200])
def test_the_schedule_of_fast_begins_and_ends_with_computed_steps(steps):
    schedule = fast(steps)
    assert len(schedule.computed) == len(schedule.guided) == steps
    assert (schedule.computed[0], schedule.computed[-1], schedule.guided[0]) == (True, True, True)
    assert schedule.guided == tuple(sorted(schedule.guided, reverse=True)), "guided steps are the first ones"
    assert "FFFFF" not in "".join("FT"[computed] for computed in schedule.computed), "at most four steps reuse the same change"


@pytest.mark.parametrize(
    ("steps", "computed"),
    [
        (12, "xxx.x.x.x.xx"),
        (24, "xxx..x..x..x..x..x..x..x"),
        (50, "xxxxx...x...x...x...x...x...x...x...x...x...x...xx"),
    ],
)
def test_the_schedule_of_fast_is_the_documented_one(steps, computed):
    """Whoever changes it judges it anew: another one, nearer to ``exact`` in pixels, lost colours (docs/decisions.md)."""
    assert "".join(".x"[it] for it in fast(steps).computed) == computed


def test_passes_are_counted():
    assert whole(10).passes(guidance=True) == 20
    assert whole(10).passes(guidance=False) == 10
    schedule = thinned(10, first=2, stride=2, guided=0.5)
    assert schedule.computed == (True, True, False, True, False, True, False, True, False, True)
    assert schedule.passes(guidance=True) == 6 + 3
    assert [step for step in range(11) if schedule.restartable(step)] == [0, 1, 3, 5, 7, 9, 10]


def test_fast_is_near_exact_deterministic_and_leaves_no_trace(vace, video, picture, recorder):
    references = {"reference_mode": ReferenceMode.START, "references": References(first_frame=picture())}
    for changes in ({}, references):
        wanted = video(num_inference_steps=20, **changes)
        before = generate(wanted, vace, recorder())
        first = generate(video(num_inference_steps=20, preset="fast", **changes), vace, recorder())
        second = generate(video(num_inference_steps=20, preset="fast", **changes), vace, recorder())
        after = generate(wanted, vace, recorder())
        assert np.array_equal(first.clips[0].frames, second.clips[0].frames)
        assert np.array_equal(before.clips[0].frames, after.clips[0].frames)
        assert 0 < first.metadata["transformer_passes"] < 40
        assert "steps_computed" not in before.metadata


def test_eight_bit_layers_are_near_and_come_out_without_a_trace(t2v):
    """On the CPU, where torch emulates the instruction, for arithmetic alone."""
    block = torch.nn.ModuleDict({"ffn": torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 32))})
    hidden = torch.randn(2, 10, 64)
    with torch.no_grad():
        plain = block["ffn"](hidden)
        layers = fp8.Fp8Layers(iter([block]))
        layers.put_in()
        rounded = block["ffn"](hidden)
        layers.take_out()
        assert len(layers) == 2
        assert torch.equal(block["ffn"](hidden), plain)
    assert 0 < (rounded - plain).norm() / plain.norm() < 0.1
    assert rounded.dtype == plain.dtype


def test_eight_bit_layers_come_out_before_adapters_do(vace, tmp_path, recorder, monkeypatch):
    """Taken out the other way round, an adapter's layers would come back with the originals."""
    monkeypatch.setattr(fp8, "_ALIGNED", 1)
    monkeypatch.setattr(fp8, "why_not", lambda _device: None)
    monkeypatch.setattr(vace.loras, "_settings", Wan21Settings(loras_dir=tmp_path))
    turbo_file(tmp_path / "one.safetensors", vace.components.transformer)
    given = inputs_of(vace.components.plain, 1)
    with torch.no_grad():
        before = vace.components.plain(**given, return_dict=False)[0]
        vace.loras.apply([Lora(name="one")], recorder())
        facts = vace.acceleration.enter(Preset.FAST, Placement.RESIDENT, tokens=18, adapters=True)
        assert facts["fp8_layers"] > 0
        vace.loras.remove()
        assert torch.equal(vace.components.plain(**given, return_dict=False)[0], before)


def test_eight_bit_layers_have_the_adapters_in_them(vace, tmp_path, recorder, monkeypatch):
    transformer = vace.components.transformer
    layer = "blocks.0.ffn.net.0.proj"
    weight = transformer.get_submodule(layer).weight
    state = {
        f"transformer.{layer}.lora_A.weight": torch.randn(4, weight.shape[1]),
        f"transformer.{layer}.lora_B.weight": torch.randn(weight.shape[0], 4),
    }
    save_file(state, tmp_path / "one.safetensors")
    monkeypatch.setattr(vace.loras, "_settings", Wan21Settings(loras_dir=tmp_path))
    monkeypatch.setattr(fp8, "_ALIGNED", 1)
    hidden = torch.randn(5, weight.shape[1])
    with torch.no_grad():
        vace.loras.apply([Lora(name="one", scale=0.5)], recorder())
        adapted = transformer.get_submodule(layer)(hidden)
        merged, _bias = fp8._merged(transformer.get_submodule(layer))
        vace.loras.apply([], recorder())
    down, up = state[f"transformer.{layer}.lora_A.weight"], state[f"transformer.{layer}.lora_B.weight"]
    assert torch.allclose(merged, weight + 0.5 * up @ down, atol=1e-5)
    assert torch.allclose(adapted, hidden @ merged.T + transformer.get_submodule(layer).bias, atol=1e-4)


def test_a_cpu_says_why_it_has_no_eight_bit_layers():
    assert fp8.why_not(torch.device("cpu")) == "cpu has no 8-bit matrix instructions"


def test_compiled_and_fused_blocks_give_what_they_gave(load_tiny, video, picture, recorder, monkeypatch):
    """With torch.compile's own interpreter in place of a code generator: the graphs, their breaks and the way back."""
    monkeypatch.setenv("WAN_HOST_WAN21_COMPILE", "true")
    model = load_tiny("vace")
    model.acceleration.compiles_with |= {"backend": "eager"}
    wanted = video(reference_mode=ReferenceMode.START, references=References(first_frame=picture()))
    fused = generate(wanted, model, recorder())
    assert fused.metadata["compiled"] is True
    assert all(block._compiled_call_impl is not None for block in model.components.transformer.blocks)
    model.acceleration.leave()
    assert all(block._compiled_call_impl is None for block in model.components.transformer.blocks)
    monkeypatch.setattr(model.acceleration, "_settings", model.settings.model_copy(update={"compile": False}))
    plain = generate(wanted, model, recorder())
    assert np.abs(fused.clips[0].frames.astype(int) - plain.clips[0].frames).max() <= 1


def test_blocks_that_come_for_their_own_pass_are_compiled_too(load_tiny, video, picture, recorder, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_PLACEMENT", "lean")
    monkeypatch.setenv("WAN_HOST_WAN21_COMPILE", "true")
    model = load_tiny("vace")
    model.acceleration.compiles_with |= {"backend": "eager"}
    requests = [video(), video(reference_mode=ReferenceMode.START, references=References(first_frame=picture()))]
    made = [generate(request, model, recorder()) for request in requests]
    assert [one.metadata.get("compiled") for one in made] == [True, True]
    assert not model.components.transformer.blocks[0].attn1.fused_projections
    monkeypatch.setattr(model.acceleration, "compiles", False)
    model.acceleration.leave()
    for request, compiled in zip(requests, made, strict=True):
        plain = generate(request, model, recorder())
        assert "compiled" not in plain.metadata
        assert np.array_equal(plain.clips[0].frames, compiled.clips[0].frames)
    resident = model.settings.model_copy(update={"placement": Placement.RESIDENT})
    monkeypatch.setattr(model.placer, "_settings", resident)
    assert np.array_equal(generate(requests[0], model, recorder()).clips[0].frames, made[0].clips[0].frames)
    assert all(block._compiled_call_impl is None for block in model.components.transformer.blocks)


def test_warming_up_compiles_every_default_shape_at_load(tiny_folder, info_of, recorder, monkeypatch):
    from wan_host_wan21 import acceleration
    from wan_host_wan21.model import load

    from wan_host import JobDefaults

    compiled, made = torch.compile, []

    def compiles(*args, **options):
        made.append(options)
        return compiled(*args, **options | {"backend": "eager"})

    monkeypatch.setattr(torch, "compile", compiles)
    monkeypatch.setenv("WAN_HOST_WAN21_COMPILE", "true")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    types = {
        "video": JobDefaults(media="video", width=32, height=48, frames=7),
        "image": JobDefaults(media="image", width=32, height=32),
    }
    context = recorder()
    load(info_of(tiny_folder("vace"), job_types=types), context)
    warmed = [event for event in context.events if event.startswith("warming up")]
    assert warmed == ["warming up 32x32, 1 frames"] * 2 + ["warming up 32x48, 9 frames"] * 2
    assert all(options["dynamic"] is False and options["fullgraph"] for options in made)
    assert acceleration.os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith("wan21/inductor")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_compiled_kernels_are_kept_in_the_data_folder_unless_somebody_says_where(chosen, tiny_folder, tmp_path):
    """In a process of its own: what a lane imports writes a folder for temporary files into the environment."""
    told = """
import os, sys
from contextlib import nullcontext
from types import SimpleNamespace
from wan_host import ModelInfo
from wan_host_wan21 import load_model

lane = SimpleNamespace(device="cpu", progress=lambda note: None, stage=nullcontext)
load_model(ModelInfo(name="m", family="wan", runner="wan21", path=sys.argv[1]), lane)
print(os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"WAN_HOST_DATA_DIR": str(tmp_path), "WAN_HOST_WAN21_COMPILE": "true", "WAN_HOST_WAN21_WARM_UP": "false"}
    if chosen:
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / chosen)
    command = [sys.executable, "-c", told, tiny_folder("t2v")]
    asked = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert asked.stdout.split()[-1] == str(tmp_path / (chosen or "wan21/inductor"))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"COMPILE": "true"}, True),
        ({}, False),
        ({"COMPILE": "true", "WARM_UP": "false"}, False),
        ({"COMPILE": "true", "PLACEMENT": "lean"}, False),
    ],
)
def test_the_compiler_is_imported_beside_the_weights_where_it_is_needed(settings, wanted, load_tiny, monkeypatch):
    asked = []

    @contextmanager
    def meanwhile(name, *, wanted):
        assert importlib.util.find_spec(name)
        asked.append(wanted)
        yield

    monkeypatch.setattr("wan_host_wan21.model.imported_meanwhile", meanwhile)
    monkeypatch.setattr("wan_host_wan21.acceleration.Acceleration.warm_up", lambda *_: None)
    for name, value in settings.items():
        monkeypatch.setenv(f"WAN_HOST_WAN21_{name}", value)
    load_tiny("t2v")
    assert asked == [wanted]


def turbo_file(path, transformer, **header):
    torch.manual_seed(3)
    state = {}
    for index in range(len(transformer.blocks)):
        name = f"blocks.{index}.attn1.to_q"
        rows, columns = transformer.get_submodule(name).weight.shape
        state[f"transformer.{name}.lora_A.weight"] = torch.randn(4, columns)
        state[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, 4)
    save_file(state, path, metadata={"wan_host_turbo": json.dumps(header)} if header else {"format": "pt"})
    return path


@pytest.fixture
def distilled(vace, tmp_path, monkeypatch):
    """Return a function that gives the model an adapter with a sampler."""

    def give(sampler: str):
        path = turbo_file(
            tmp_path / f"{sampler}.safetensors", vace.components.transformer, sampler=sampler, sigmas=[1.0, 0.9, 0.5]
        )
        monkeypatch.setattr(vace, "turbo", read_turbo(path))
        return vace

    return give


@pytest.mark.parametrize("sampler", ["euler", "lcm"])
def test_turbo_runs_the_adapters_steps_without_guidance(*, sampler, distilled, video, picture, image, recorder):
    model = distilled(sampler)
    exact = generate(video(), model, recorder()).clips[0].frames
    for changes in ({}, {"reference_mode": ReferenceMode.START, "references": References(first_frame=picture())}):
        context = recorder()
        made = generate(video(preset="turbo", num_inference_steps=50, **changes), model, context)
        assert made.metadata["steps_run"] == made.metadata["transformer_passes"] == 3
        assert [event for event in context.events if event.startswith("step")] == ["step 1/3", "step 2/3", "step 3/3"]
        again = generate(video(preset="turbo", num_inference_steps=50, **changes), model, recorder())
        assert np.array_equal(made.clips[0].frames, again.clips[0].frames)
    source = image(
        preset="turbo", reference_mode=ReferenceMode.SINGLE, references=References(image=picture()), denoise_strength=0.7
    )
    assert generate(source, model, recorder()).metadata["steps_run"] == 2
    assert np.array_equal(generate(video(), model, recorder()).clips[0].frames, exact), "the adapter is out again"


def test_turbo_without_an_adapter_is_refused_by_name(vace, video, recorder):
    with pytest.raises(
        UnsupportedRequest, match=r"config\.preset: turbo needs a step-distilled adapter, and model tiny has none"
    ):
        generate(video(preset="turbo"), vace, recorder())


def test_euler_follows_the_velocity_to_the_clean_latents():
    turbo = read_turbo_of("euler", sigmas=(1.0, 0.6, 0.2))
    clean, noise = torch.randn(1, 16, 1, 2, 2), torch.randn(1, 16, 1, 2, 2)
    scheduler = scheduler_for(turbo, torch.Generator())
    scheduler.set_timesteps(3)
    assert torch.allclose(scheduler.timesteps, torch.tensor([1000.0, 600.0, 200.0]))
    sample = noise
    for timestep in scheduler.timesteps:
        sample = scheduler.step(noise - clean, timestep, sample, return_dict=False)[0]
    assert torch.allclose(sample, clean, atol=1e-5)


def test_lcm_noises_the_clean_latents_anew_from_the_clips_own_generator():
    turbo = read_turbo_of("lcm", sigmas=(1.0, 0.5))
    clean, noise = torch.randn(1, 16, 1, 2, 2), torch.randn(1, 16, 1, 2, 2)
    made = []
    for _ in range(2):
        scheduler = scheduler_for(turbo, torch.Generator().manual_seed(5))
        scheduler.set_timesteps(2)
        sample = scheduler.step(noise - clean, scheduler.timesteps[0], noise, return_dict=False)[0]
        fresh = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
        assert torch.allclose(sample, 0.5 * clean + 0.5 * fresh, atol=1e-5)
        made.append(scheduler.step((sample - clean) / 0.5, scheduler.timesteps[1], sample, return_dict=False)[0])
    assert torch.allclose(made[0], clean, atol=1e-5)
    assert torch.equal(*made)


def read_turbo_of(sampler, sigmas):
    from pathlib import Path

    from wan_host_wan21.turbo import Turbo

    return Turbo(path=Path("none"), sampler=sampler, sigmas=sigmas)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "no step-distilled adapter: its header has no wan_host_turbo, and its name is not known"),
        ({"sampler": "ddim", "sigmas": [1.0]}, "sampler is 'ddim'; it must be one of euler, lcm"),
        ({"sampler": "lcm", "sigmas": [0.5, 0.9]}, r"sigmas is \[0.5, 0.9\]; it must be 1 to 16 numbers that fall"),
        ({"sampler": "lcm", "sigmas": [1.0, 0.0]}, "it must be 1 to 16 numbers that fall"),
        ({"sampler": "lcm", "sigmas": []}, "it must be 1 to 16 numbers that fall"),
    ],
)
def test_what_is_no_usable_turbo_adapter_is_refused(header, message, vace, tmp_path):
    path = turbo_file(tmp_path / "some.safetensors", vace.components.transformer, **header)
    with pytest.raises(ModelLoadFailed, match=message):
        read_turbo(path)


def test_known_adapters_are_recognised_by_name(vace, tmp_path):
    path = turbo_file(tmp_path / "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors", vace.components.transformer)
    assert read_turbo(path).sigmas == shifted(8, 8.0)


def test_presets_are_offered_as_they_can_be_had(vace, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert offered_presets(folder, Wan21Settings()) == ("exact", "fast")
    assert offered_presets(folder, Wan21Settings(preset="fast")) == ("fast", "exact")
    turbo_file(folder / "turbo.safetensors", vace.components.transformer, sampler="lcm", sigmas=[1.0])
    assert offered_presets(folder, Wan21Settings(preset=Preset.TURBO)) == ("turbo", "exact", "fast")
    turbo_file(folder / "turbo.safetensors", vace.components.transformer)
    assert offered_presets(folder, Wan21Settings()) == ("exact", "fast")


def test_nothing_is_put_in_on_a_cpu_for_exact(vace):
    assert vace.acceleration.enter(Preset.EXACT, Placement.RESIDENT, tokens=18, adapters=False) == {}
    assert vace.acceleration.cache.graphs is None


def test_a_decoder_in_another_layout_decodes_the_same(tiny_folder):
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(tiny_folder("t2v") / "vae").eval()
    latents = torch.randn(1, 16, 3, 4, 4)
    with torch.no_grad():
        frames = [
            Decoder(vae, torch.device(device), Wan21Settings(), None, lambda: None).decode(
                latents, lambda: np.empty((9, 32, 32, 3), np.uint8), lambda _: None
            )
            for device in ("cpu", "cuda")
        ]
    assert frames[0].std() > 0
    assert np.abs(frames[0].astype(int) - frames[1]).max() <= 1
    for part, last in ((vae.decoder, True), (vae.encoder, False)):
        weights = [weight for weight in part.parameters() if weight.ndim == 5 and weight[0, 0].numel() > 1]
        assert weights
        assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) == last for weight in weights)


@pytest.mark.parametrize(
    ("runs", "settings", "wanted"),
    [(True, {}, True), (True, {"decode_fused": True}, True), (True, {"decode_fused": False}, False), (False, {}, False)],
)
def test_norms_of_the_decoder_are_fused_where_the_kernel_runs_unless_a_setting_forbids_it(
    *, runs, settings, wanted, tiny_folder, monkeypatch, caplog
):
    """With the kernel's arithmetic in torch: what runs where, and what the report says."""
    from diffusers import AutoencoderKLWan

    asked = []

    def activate(norm, x, out):
        asked.append(x.shape)
        out.copy_(torch.nn.functional.silu(norm(x)))

    def try_out(_device):
        if not runs:
            raise RuntimeError("no C compiler")

    monkeypatch.setitem(sys.modules, "wan_host_wan21.norms", SimpleNamespace(norm_and_silu=activate, try_out=try_out))
    latents = torch.randn(1, 16, 3, 4, 4)
    made = []
    for device, chosen in (("cpu", {}), ("cuda", settings)):
        vae = AutoencoderKLWan.from_pretrained(tiny_folder("t2v") / "vae").eval()
        place, asks = torch.device(device), Wan21Settings(**chosen)
        decoder = Decoder(vae, place, asks, fused(place, asks), lambda: None)
        assert not asked
        with torch.no_grad():
            made.append(decoder.decode(latents, lambda: np.empty((9, 32, 32, 3), np.uint8), lambda _: None).astype(int))
    assert bool(asked) is wanted
    assert decoder.facts == ({"decode_fused": True} if wanted else {})
    assert ("the VAE's norms are not fused, which takes longer: no C compiler" in caplog.text) is not runs
    assert made[0].std() > 0
    assert np.abs(made[0] - made[1]).max() <= 1


def test_both_halves_of_the_vae_run_the_kernel(load_tiny, video, picture, recorder, monkeypatch):
    asked = []

    def activate(norm, x, out):
        asked.append(norm)
        out.copy_(torch.nn.functional.silu(norm(x)))

    monkeypatch.setattr("wan_host_wan21.model.fused", lambda *_: activate)
    model = load_tiny("vace")
    wanted = video(reference_mode=ReferenceMode.START, references=References(first_frame=picture()), num_inference_steps=1)
    generate(wanted, model, recorder())
    vae = model.components.vae
    for half in (vae.encoder, vae.decoder):
        assert any(norm is half.norm_out for norm in asked)


@pytest.mark.parametrize(("name", "value"), [("DTYPE", "bfloat16"), ("FUSED", "true")])
def test_settings_of_the_decoder_are_refused_where_there_is_no_cuda(name, value, load_tiny, monkeypatch):
    monkeypatch.setenv(f"WAN_HOST_WAN21_DECODE_{name}", value)
    with pytest.raises(ModelLoadFailed, match=f"WAN_HOST_WAN21_DECODE_{name} is a setting for CUDA; "):
        load_tiny("t2v")


def test_fused_norms_are_refused_by_the_name_of_their_setting_where_the_kernel_does_not_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "wan_host_wan21.norms", None)  # as without Triton
    with pytest.raises(ModelLoadFailed, match="WAN_HOST_WAN21_DECODE_FUSED is true, but its kernel does not run: import of"):
        fused(torch.device("cuda"), Wan21Settings(decode_fused=True))
