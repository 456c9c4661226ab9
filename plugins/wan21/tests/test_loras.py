"""Adapters of a job: from where they may come, that they act as they should, and that they leave no trace."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from wan_host_wan21.generation import generate
from wan_host_wan21.lora_files import find_fixed
from wan_host_wan21.lora_format import read_lora
from wan_host_wan21.settings import Wan21Settings

from wan_host import JobCancelled, Lora, ModelLoadFailed, ReferenceMode, References, RetryableError, UnsupportedRequest

LAYERS = {"blocks.0.attn1.to_q": "blocks.0.self_attn.q", "blocks.1.ffn.net.0.proj": "blocks.1.ffn.0"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def factors(vace):
    """Return the two factors of every layer, by diffusers' name of it."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for layer in LAYERS:
        rows, columns = vace.components.plain.get_submodule(layer).weight.shape
        made[layer] = torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator) * 0.3
    return made


@pytest.fixture
def folder(tmp_path, factors):
    """Return a folder with one adapter in every format."""
    folder = tmp_path / "loras"
    folder.mkdir()
    diffusers, peft, original, kohya = {}, {}, {}, {}
    for block in range(2):  # diffusers' conversion wants every layer of every block in Kohya's format
        for layer in (*(f"{kind}_attn_{name}" for kind in ("self", "cross") for name in "qkvo"), "ffn_0", "ffn_2"):
            rows, columns = {"ffn_0": (32, 24), "ffn_2": (24, 32)}.get(layer, (24, 24))
            musubi = f"lora_unet_blocks_{block}_{layer}"
            kohya |= {f"{musubi}.lora_down.weight": torch.zeros(4, columns), f"{musubi}.lora_up.weight": torch.zeros(rows, 4)}
            kohya[f"{musubi}.alpha"] = torch.tensor(4.0)
    for layer, (down, up) in factors.items():
        diffusers |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
        peft |= {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
        theirs = f"diffusion_model.{LAYERS[layer]}"
        original |= {f"{theirs}.lora_A.weight": down, f"{theirs}.lora_B.weight": up}
        musubi = "lora_unet_" + LAYERS[layer].replace(".", "_")
        kohya |= {f"{musubi}.lora_down.weight": down, f"{musubi}.lora_up.weight": up, f"{musubi}.alpha": torch.tensor(4.0)}
    for name, state in {"diffusers": diffusers, "peft": peft, "original": original, "kohya": kohya}.items():
        save_file({key: value.clone() for key, value in state.items()}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def model(vace, folder, monkeypatch):
    settings = Wan21Settings(loras_dir=folder, lora_repos=("me/*",))
    monkeypatch.setattr(vace.loras, "_settings", settings)
    yield vace
    vace.loras.remove()


@pytest.fixture
def made(model, recorder, image):
    """Return a function from adapters to the frames of a request."""

    def frames(*loras, **changes):
        request = image(loras=tuple(loras), **changes)
        return generate(request, model, recorder()).clips[0].frames

    return frames


def test_an_adapter_acts_by_its_scale(made):
    plain, half, full = made(), made(Lora(name="diffusers", scale=0.5)), made(Lora(name="diffusers"))
    assert len({plain.tobytes(), half.tobytes(), full.tobytes()}) == 3
    assert np.array_equal(made(Lora(name="diffusers", scale=0.0)), plain)


def test_an_adapter_does_what_adding_its_product_to_the_weights_does(model, factors, folder, recorder):
    hidden, text = torch.randn(1, 16, 1, 6, 4), torch.randn(1, 512, 32)
    inputs = {"hidden_states": hidden, "timestep": torch.tensor([500]), "encoder_hidden_states": text, "return_dict": False}
    plain = model.components.plain
    with torch.no_grad():
        model.loras.apply([Lora(name="diffusers", scale=0.7)], recorder())
        adapted = plain(**inputs)[0]
        model.loras.remove()
        before = {layer: plain.get_submodule(layer).weight.clone() for layer in LAYERS}
        for layer, (down, up) in factors.items():
            plain.get_submodule(layer).weight.add_(0.7 * up @ down)
        merged = plain(**inputs)[0]
        for layer, weight in before.items():
            plain.get_submodule(layer).weight.copy_(weight)
    assert torch.allclose(adapted, merged, atol=1e-5)


@pytest.mark.parametrize("form", ["peft", "original", "kohya"])
def test_every_format_means_the_same(form, made, folder):
    """As products: a format may put its strength into either factor. Layers that act on nothing may stand there too."""
    read, plain = (read_lora(folder / f"{name}.safetensors", name, "").factors for name in (form, "diffusers"))
    for layer in {key.rpartition(".lora_")[0] for key in read}:
        product, expected = (
            state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"] if f"{layer}.lora_A.weight" in state else None
            for state in (read, plain)
        )
        assert torch.allclose(product, torch.zeros(()) if expected is None else expected, atol=1e-6), layer
    assert set(plain) <= set(read)
    assert np.abs(made(Lora(name=form)).astype(int) - made(Lora(name="diffusers"))).max() <= 1


def test_the_next_job_without_it_is_bit_identical_to_one_before(made, model, picture):
    start = {"media": "video", "frames": 5, "reference_mode": ReferenceMode.START}
    references = References(first_frame=picture())
    weights = {name: parameter.data_ptr() for name, parameter in model.components.transformer.named_parameters()}
    before, conditioned = made(), made(**start, references=references)
    made(Lora(name="diffusers"))
    made(Lora(name="original", scale=0.4), Lora(name="diffusers"), **start, references=references)
    assert np.array_equal(made(), before)
    assert np.array_equal(made(**start, references=references), conditioned)
    assert {name: parameter.data_ptr() for name, parameter in model.components.transformer.named_parameters()} == weights


def test_an_attempt_does_not_go_on_with_an_adapter_whose_file_has_changed(model, folder, recorder, image):
    """The checkpoint was made with the other weights: the clip would be of both."""

    def made_with(*loras):
        context, given = recorder(), []
        context.resume = given.append
        generate(image(loras=loras), model, context)
        return given[0]["adapters"]

    plain, first = made_with(), made_with(Lora(name="diffusers"))
    (folder / "copy.safetensors").write_bytes((folder / "diffusers.safetensors").read_bytes())
    assert made_with(Lora(name="copy")) == first
    changed = {key: value * 2 for key, value in load_file(folder / "diffusers.safetensors").items()}
    save_file(changed, folder / "diffusers.safetensors")
    assert len({plain, first, made_with(Lora(name="diffusers"))}) == 3
    assert made_with() == plain


def test_an_attempt_does_not_go_on_with_an_adapter_of_the_model_that_is_weighed_anew(model, recorder, monkeypatch):
    """A job's own scales are in its request; those of the operator's table may be others at the next attempt."""
    digests = []
    for scale in (0.5, 0.5000001, 0.5):
        monkeypatch.setattr(model.loras, "_fixed", (Lora(name="diffusers", scale=scale),))
        model.loras.apply([], recorder())
        digests.append(model.loras.digest)
    assert digests[0] == digests[2] != digests[1]


def test_two_adapters_add_up_and_both_views_have_them(made, recorder, model, image, picture):
    one, both = made(Lora(name="diffusers")), made(Lora(name="diffusers"), Lora(name="original"))
    assert not np.array_equal(one, both)
    request = image(media="video", frames=5, reference_mode=ReferenceMode.START, references=References(first_frame=picture()))
    assert "loras" not in generate(request, model, recorder()).metadata


def test_an_adapter_that_stays_is_not_read_again(model, image, recorder):
    for expected in (True, False):
        context = recorder()
        generate(image(loras=(Lora(name="diffusers"),)), model, context)
        assert ("reading diffusers" in context.events) is expected


def test_the_files_used_last_are_kept(made, model, monkeypatch):
    monkeypatch.setattr("wan_host_wan21.loras._KEPT", 2)
    model.loras._read.clear()
    for name in ("diffusers", "original", "diffusers", "peft"):
        made(Lora(name=name), num_inference_steps=1)
    assert [file.path.stem for file in model.loras._read] == ["diffusers", "peft"]


def test_a_file_that_changed_is_read_again(made, folder):
    first = made(Lora(name="diffusers"))
    (folder / "diffusers.safetensors").write_bytes((folder / "original.safetensors").read_bytes())
    (folder / "peft.safetensors").replace(folder / "diffusers.safetensors")
    assert np.array_equal(made(Lora(name="diffusers")), first)


def test_a_file_that_was_trained_further_is_read_again_though_it_is_as_long(model, folder, recorder, image):
    state = load_file(folder / "diffusers.safetensors")
    generate(image(loras=(Lora(name="diffusers"),)), model, recorder())
    size = (folder / "diffusers.safetensors").stat().st_size
    save_file({key: value * 2 for key, value in state.items()}, folder / "diffusers.safetensors")
    assert (folder / "diffusers.safetensors").stat().st_size == size
    context = recorder()
    generate(image(loras=(Lora(name="diffusers"),)), model, context)
    assert "reading diffusers" in context.events


def test_a_configuration_that_changed_is_read_again(made, folder):
    trained = folder / "trained"
    trained.mkdir()
    (folder / "peft.safetensors").rename(trained / "adapter_model.safetensors")
    (trained / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4}))
    first = made(Lora(name="trained"))
    (trained / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    assert np.array_equal(made(Lora(name="trained")), made(Lora(name="diffusers", scale=0.5)))
    assert not np.array_equal(made(Lora(name="trained")), first)


def test_a_failure_in_the_middle_of_putting_adapters_in_leaves_none_in(made, model, monkeypatch):
    before, load, calls = made(), model.components.transformer.load_lora_adapter, []

    def failing(*args, **options):
        calls.append(options["adapter_name"])
        if len(calls) == 2:
            raise RuntimeError("no memory")
        load(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(model.components.transformer, "load_lora_adapter", failing)
        with pytest.raises(RuntimeError, match="no memory"):
            made(Lora(name="diffusers"), Lora(name="peft"))
    assert not model.loras.active
    assert not any("lora" in name for name, _ in model.components.transformer.named_parameters())
    assert np.array_equal(made(), before)


def test_outer_layers_are_adapted_in_both_views_and_given_back(made, folder, vace):
    rows, columns = vace.components.plain.proj_out.weight.shape
    state = {
        "transformer.proj_out.lora_A.weight": torch.ones(2, columns),
        "transformer.proj_out.lora_B.weight": torch.ones(rows, 2),
    }
    save_file(state, folder / "outer.safetensors")
    before = made()
    assert not np.array_equal(made(Lora(name="outer")), before)
    assert np.array_equal(made(), before)
    assert vace.components.plain.proj_out is vace.components.transformer.proj_out
    assert type(vace.components.plain.proj_out) is torch.nn.Linear


def test_what_does_not_fit_is_refused_and_nothing_stays(made, folder, factors):
    before = made()
    down, up = factors["blocks.0.attn1.to_q"]
    layer = "transformer.blocks.0.attn1.to_q"
    wrong = {
        "shape": {f"{layer}.lora_A.weight": torch.ones(4, 7), f"{layer}.lora_B.weight": up},
        "deep": {"transformer.blocks.9.attn1.to_q.lora_A.weight": down, "transformer.blocks.9.attn1.to_q.lora_B.weight": up},
        "half": {f"{layer}.lora_A.weight": down},
        "bias": {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, f"{layer}.lora_B.bias": torch.ones(7)},
        "other": {"unet.down.weight": down},
        "ranks": {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up[:, :2]},
        "empty": {f"{layer}.lora_A.weight": down[:0], f"{layer}.lora_B.weight": up[:, :0]},
        "flat": {f"{layer}.lora_A.weight": down[0], f"{layer}.lora_B.weight": up},
        "image": {f"{layer}.lora_A.weight": down[..., None, None], f"{layer}.lora_B.weight": up[..., None, None]},
        "norm": {
            "transformer.blocks.0.attn1.norm_q.lora_A.weight": down,
            "transformer.blocks.0.attn1.norm_q.lora_B.weight": up,
        },
        "kernel": {
            "transformer.patch_embedding.lora_A.weight": torch.ones(4, 16, 1, 1, 1),
            "transformer.patch_embedding.lora_B.weight": torch.ones(24, 4, 1, 1, 1),
        },
        "nan": {f"{layer}.lora_A.weight": down * float("nan"), f"{layer}.lora_B.weight": up},
        "alpha": {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, f"{layer}.alpha": torch.tensor(4.0)},
    }
    for name, state in wrong.items():
        save_file({key: value.clone() for key, value in state.items()}, folder / f"{name}.safetensors")
    (folder / "junk.safetensors").write_bytes(b"junk")
    for name, message in {
        "shape": "the wrong shape: blocks.0.attn1.to_q",
        "deep": "no layer blocks.9.attn1.to_q",
        "half": "one factor only",
        "bias": "the wrong shape: blocks.0.attn1.to_q",
        "other": "unet.down.weight",
        "ranks": r"the wrong shape: blocks.0.attn1.to_q is \(24, 24\), the factors \(4, 24\), \(24, 2\)",
        "empty": "the wrong shape: blocks.0.attn1.to_q",
        "flat": "the wrong shape: blocks.0.attn1.to_q",
        "image": "the wrong shape: blocks.0.attn1.to_q",
        "norm": "no layer blocks.0.attn1.norm_q",
        "kernel": "the wrong shape: patch_embedding",
        "nan": r"numbers that are not finite \(transformer.blocks.0.attn1.to_q.lora_A.weight\)",
        "alpha": "holds transformer.blocks.0.attn1.to_q.alpha, which is no adapter of a Wan transformer",
        "junk": "no safetensors file",
    }.items():
        with pytest.raises(UnsupportedRequest, match=rf"^config\.loras\[1\]: {name} .*{message}"):
            made(Lora(name="diffusers"), Lora(name=name))
    assert np.array_equal(made(), before)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "link", "nowhere", "folder", "zero\0byte", "long" * 100, "half a pair \ud83d"]
)
def test_only_files_in_the_folder_can_be_named(name, made, folder, tmp_path):
    (tmp_path / "secret.safetensors").write_bytes((folder / "diffusers.safetensors").read_bytes())
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "folder").mkdir()
    with pytest.raises(UnsupportedRequest, match=r"^config\.loras\[0\]: "):
        made(Lora(name=name))


def test_a_folder_with_one_file_can_be_named(made, folder):
    (folder / "trained").mkdir()
    (folder / "diffusers.safetensors").rename(folder / "trained" / "pytorch_lora_weights.safetensors")
    assert np.array_equal(made(Lora(name="trained")), made(Lora(name="trained/pytorch_lora_weights.safetensors")))


@pytest.mark.parametrize(
    ("name", "message"),
    [(f"you/lora@{COMMIT}", "WAN_HOST_WAN21_LORA_REPOS"), ("me/lora@main", "not pinned")],
)
def test_hub_adapters_must_be_allowed_and_pinned(name, message, made):
    with pytest.raises(UnsupportedRequest, match=message):
        made(Lora(name=name))


def test_a_pinned_hub_adapter_comes_from_the_cache(made, folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--me--lora" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "a.safetensors").write_bytes((folder / "diffusers.safetensors").read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    expected = made(Lora(name="diffusers"))
    assert np.array_equal(made(Lora(name=f"me/lora@{COMMIT}")), expected)
    assert np.array_equal(made(Lora(name=f"me/lora@{COMMIT}:a.safetensors")), expected)
    with pytest.raises(RetryableError, match="could not be fetched"):
        made(Lora(name=f"me/other@{COMMIT}"))
    (snapshot.parent / "outside.safetensors").write_bytes((folder / "diffusers.safetensors").read_bytes())
    with pytest.raises(UnsupportedRequest, match=r"holds no safetensors file '\.\./outside\.safetensors'"):
        made(Lora(name=f"me/lora@{COMMIT}:../outside.safetensors"))


@pytest.mark.parametrize(
    "file", ["{tmp_path}/secret.safetensors", "*", "*.safetensors", "a/../../x.safetensors", "a.pt", "sub.safetensors/"]
)
def test_a_hub_adapter_is_one_file_of_its_repository_and_nothing_else_is_fetched(file, made, folder, tmp_path, monkeypatch):
    (tmp_path / "secret.safetensors").write_bytes((folder / "diffusers.safetensors").read_bytes())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_args, **_options: pytest.fail("something was fetched"))
    with pytest.raises(UnsupportedRequest, match=r"^config\.loras\[0\]: me/lora@.* holds no safetensors file"):
        made(Lora(name=f"me/lora@{COMMIT}:{file.format(tmp_path=tmp_path)}"))


def test_a_repository_that_the_hub_does_not_have_is_refused_and_a_cancel_while_it_is_fetched_is_a_cancel(
    made, model, image, recorder, monkeypatch
):
    def unknown(*_args, **_options):
        response = SimpleNamespace(headers={}, status_code=404, request=None)
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", unknown)
    with pytest.raises(UnsupportedRequest, match=rf"^config\.loras\[0\]: me/lora@{COMMIT} is not on the hub"):
        made(Lora(name=f"me/lora@{COMMIT}"))
    context = recorder(stop_at="fetching me/lora", error=JobCancelled("stop"))
    with pytest.raises(JobCancelled):
        generate(image(loras=(Lora(name=f"me/lora@{COMMIT}"),)), model, context)


def test_alpha_and_biases_of_the_original_format_act(made, folder, factors, model, recorder):
    """Alpha 2 at rank 4 halves the product; a ``diff_b`` is added to the bias. Step-distilled adapters have both."""
    down, up = factors["blocks.0.attn1.to_q"]
    layer = "diffusion_model.blocks.0.self_attn.q"
    state = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(2.0)}
    state |= {f"{layer}.diff_b": torch.full((24,), 0.3), "diffusion_model.blocks.0.norm3.diff_b": torch.zeros(24)}
    save_file(state, folder / "distilled.safetensors")
    before, target = made(), model.components.plain.get_submodule("blocks.0.attn1.to_q")
    inputs = torch.randn(1, 5, 24)
    expected = torch.nn.functional.linear(inputs, target.weight + 0.5 * up @ down, target.bias + 0.3)
    model.loras.apply([Lora(name="distilled")], recorder())
    adapted = model.components.plain.get_submodule("blocks.0.attn1.to_q")(inputs)
    assert torch.allclose(adapted, expected, atol=1e-5)
    assert np.array_equal(made(), before)


@pytest.mark.parametrize("where", ["header", "beside"])
@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 2, "ffn.net.0.proj": 2}}, 0.5),
    ],
)
def test_the_strength_that_training_wrote_down_is_kept(*, where, config, scale, made, folder):
    """Without it an adapter trained with alpha other than its rank would act too weakly or too strongly, in silence."""
    trained = folder / "trained"
    trained.mkdir()
    if where == "header":
        header = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
        save_file(load_file(folder / "diffusers.safetensors"), trained / "a.safetensors", metadata=header)
    else:
        save_file(load_file(folder / "peft.safetensors"), trained / "a.safetensors")
        (trained / "adapter_config.json").write_text(json.dumps(config))
    kept, plain = (
        read_lora(path, path.stem, "").factors for path in (trained / "a.safetensors", folder / "diffusers.safetensors")
    )
    for key, value in plain.items():
        assert torch.allclose(kept[key], value * (scale if "lora_B" in key else 1.0)), key
    assert np.abs(made(Lora(name="trained")).astype(int) - made(Lora(name="diffusers", scale=scale))).max() <= 1


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": "16"},
        {"alpha_pattern": {"(": 1}},
        {"alpha_pattern": {"attn1.to_q": "x"}},
        [4],
        {"lora_alpha": float("nan")},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(config, made, folder):
    header = {"lora_adapter_metadata": json.dumps(config)}
    save_file(load_file(folder / "diffusers.safetensors"), folder / "odd.safetensors", metadata=header)
    with pytest.raises(UnsupportedRequest, match=r"^config\.loras\[0\]: odd "):
        made(Lora(name="odd"))


def test_what_of_an_adapter_has_no_effect_is_in_the_report(model, folder, factors, recorder, image):
    """diffusers passes by differences to whole weights, which step-distilled adapters have, with a line in the log at most."""
    down, up = factors["blocks.0.attn1.to_q"]
    layer = "diffusion_model.blocks.0.self_attn.q"
    state = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, f"{layer}.diff_b": torch.ones(24)}
    state |= {"diffusion_model.head.head.diff": torch.ones(64, 24), "diffusion_model.head.head.diff_b": torch.ones(64)}
    state |= {
        "diffusion_model.patch_embedding.diff": torch.ones(24, 16, 1, 2, 2),
        "diffusion_model.blocks.0.modulation.diff": up + 1,
    }
    state |= {"diffusion_model.time_projection.1.diff_b": torch.ones(144), "diffusion_model.blocks.0.norm3.diff": torch.zeros(24)}
    save_file(state, folder / "distilled.safetensors")
    said = (
        "diffusion_model.blocks.0.modulation.diff, diffusion_model.patch_embedding.diff, diffusion_model.time_projection.1.diff_b"
    )
    for _ in range(2):  # also when it is in already
        made = generate(image(loras=(Lora(name="distilled"),)), model, recorder()).metadata
        assert made["loras_left_out"] == ", ".join(f"distilled: {key}" for key in said.split(", "))
    made = generate(image(loras=(Lora(name="distilled.safetensors"),)), model, recorder()).metadata
    assert made["loras_left_out"] == ", ".join(f"distilled.safetensors: {key}" for key in said.split(", ")), (
        "as this job names it"
    )
    assert "loras_left_out" not in generate(image(loras=(Lora(name="diffusers"),)), model, recorder()).metadata
    assert "loras_left_out" not in generate(image(), model, recorder()).metadata


def test_what_has_no_effect_is_counted_where_it_is_too_much_for_a_report(model, folder, factors, recorder, image):
    down, up = factors["blocks.0.attn1.to_q"]
    layer = "diffusion_model.blocks.0.self_attn.q"
    state = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    state |= {f"diffusion_model.blocks.{block}.modulation.diff": torch.ones(24) for block in range(60)}
    save_file(state, folder / "distilled.safetensors")
    made = generate(image(loras=(Lora(name="distilled"),)), model, recorder()).metadata
    shown = ", ".join(f"distilled: diffusion_model.blocks.{block}.modulation.diff" for block in (0, 1, 10, 11, 12))
    assert made["loras_left_out"] == f"60 keys, such as {shown}"


def test_what_would_be_left_out_in_silence_is_refused(made, folder, factors):
    down, up = factors["blocks.0.attn1.to_q"]
    layer = "diffusion_model.blocks.0.self_attn.q"
    state = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    save_file(state | {f"{layer}.dora_scale": torch.ones(24)}, folder / "dora.safetensors")
    save_file(state | {"diffusion_model.blocks.0.norm3.diff": torch.ones(24)}, folder / "norm.safetensors")
    (folder / "told").mkdir()
    save_file(load_file(folder / "peft.safetensors"), folder / "told" / "a.safetensors")
    (folder / "told" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4, "use_dora": True}))
    for name, message in {"dora": "is a DoRA", "told": "is a DoRA", "norm": "changes a norm"}.items():
        with pytest.raises(UnsupportedRequest, match=message):
            made(Lora(name=name))


def test_a_models_own_adapters_act_in_every_job(*, load_tiny, made, folder, recorder, image, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_LORAS_DIR", str(folder))
    model = load_tiny("vace", options={"adapters": (("diffusers", 0.5),)})
    own = generate(image(), model, recorder()).clips[0].frames
    assert np.array_equal(own, made(Lora(name="diffusers", scale=0.5)))
    more = generate(image(loras=(Lora(name="peft"),)), model, recorder())
    assert np.array_equal(more.clips[0].frames, made(Lora(name="diffusers", scale=0.5), Lora(name="peft")))
    assert more.metadata["loras"] == "peft (1)"


def test_an_adapter_of_the_model_below_nobodys_home_is_one_clear_line(tmp_path):
    with pytest.raises(
        ModelLoadFailed, match=r"^the adapter '~nobody-of-this-name/a' of the model is no path: Could not determine"
    ):
        find_fixed("~nobody-of-this-name/a", Wan21Settings(loras_dir=tmp_path))
