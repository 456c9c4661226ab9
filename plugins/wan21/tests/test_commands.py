"""``wan-host models fake`` and ``pull``."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
import torch  # noqa: TID253  # a test of torch code
from click.testing import CliRunner
from wan_host_wan21.checkpoint import Kind, recognise
from wan_host_wan21.commands import offered_commands
from wan_host_wan21.commands.fake import fake
from wan_host_wan21.commands.pull import pull
from wan_host_wan21.fake import REAL, _text_encoder, _transformer, _vae
from wan_host_wan21.layout import whole_folder


@pytest.fixture(autouse=True)
def data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_HOST_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("WAN_HOST_WAN21_MODELS_DIR", raising=False)


def test_the_commands_are_below_models_and_their_help_imports_nothing_heavy():
    assert {(offered.group, offered.command.name) for offered in offered_commands()} == {
        ("models", "pull"),
        ("models", "fake"),
        ("models", "import"),
    }
    code = (
        "import sys\n"
        "from wan_host_wan21.commands import offered_commands\n"
        "from click.testing import CliRunner\n"
        "assert all(CliRunner().invoke(o.command, ['--help']).exit_code == 0 for o in offered_commands())\n"
        "assert not {'torch', 'diffusers', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)


def test_fake_writes_a_checkpoint_that_says_that_it_is_random(tmp_path):
    done = CliRunner().invoke(fake, ["wan2.1-vace-1.3b", "--size", "tiny", "--text-layers", "1", "--seed", "4"])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "models" / "wan2.1-vace-1.3b"
    assert recognise(folder).random_weights
    assert "random weights" in (folder / "README.md").read_text()
    assert "random weights" in done.output
    again = CliRunner().invoke(fake, ["wan2.1-vace-1.3b", "--size", "tiny"])
    assert again.exit_code == 1
    assert "exists already" in again.output


def test_a_seed_of_a_fake_means_its_weights(tmp_path):
    def written(name, seed):
        arguments = ["wan2.1-t2v-1.3b", "--size", "tiny", "--seed", seed, "--output", str(tmp_path / name)]
        assert CliRunner().invoke(fake, arguments).exit_code == 0
        return (tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()

    assert written("one", "4") == written("again", "4") != written("other", "5")


def test_the_real_size_is_the_architecture_of_the_official_checkpoints():
    """Counts of Wan's own weights: T2V 825 tensors and 1.4190 B, VACE 1264 and 2.154 B, UMT5-XXL 5.681 B, VAE 126.9 M."""
    with torch.device("meta"):
        plain, adapter, text, vae = _transformer(Kind.T2V, REAL), _transformer(Kind.VACE, REAL), _text_encoder(REAL), _vae(REAL)
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in
             {"plain": plain, "adapter": adapter, "text": text, "vae": vae}.items()}  # fmt: skip
    assert (len(plain.state_dict()), len(adapter.state_dict())) == (825, 1264)
    assert set(plain.state_dict()) < set(adapter.state_dict())
    assert {name: round(value / 1e9, 3) for name, value in count.items()} == {
        "plain": 1.419,
        "adapter": 2.154,
        "text": 5.681,
        "vae": 0.127,
    }


def test_the_list_shows_sizes_modes_and_that_weights_are_random(tiny_folder, tmp_path):
    (tmp_path / "models").mkdir()
    for kind in ("vace", "t2v"):
        (tmp_path / "models" / f"wan2.1-{kind}-1.3b").symlink_to(tiny_folder(kind))
    environment = {"PYTHONPATH": ":".join(sys.path), "WAN_HOST_DATA_DIR": str(tmp_path), "COLUMNS": "250"}
    command = [sys.executable, "-m", "wan_host", "models", "list"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    vace, plain = (next(line for line in said.splitlines() if f"wan2.1-{kind}-1.3b" in line) for kind in ("vace", "t2v"))
    assert re.search(r"MB .* none, single, start, end, both .* image to image, up to 4 subjects, random weights", vace)
    assert re.search(r"│ none +│ image to image, random weights +│", plain)


@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "neither OWNER/REPO"), ("wan2.1-t2v-1.3b", "could not be fetched"), ("a/b@c", "could not")]
)
def test_pull_says_why_nothing_came(name, message):
    done = CliRunner().invoke(pull, [name])
    assert done.exit_code == 1
    assert message in done.output


def test_a_folder_that_was_not_finished_is_not_left_behind_and_does_not_replace_a_whole_one(tmp_path):
    target = tmp_path / "models" / "mine"
    with whole_folder(target, replace=False) as folder:
        (folder / "model_index.json").touch()

    def interrupted() -> None:
        with whole_folder(target, replace=True) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [str(path.relative_to(tmp_path / "models")) for path in sorted((tmp_path / "models").rglob("*"))] == [
        "mine",
        "mine/model_index.json",
    ]


def test_an_empty_folder_is_written_into(tmp_path):
    (tmp_path / "mine").mkdir()
    with whole_folder(tmp_path / "mine", replace=False) as folder:
        (folder / "model_index.json").touch()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["model_index.json"]


def test_only_a_checkpoint_can_be_replaced_and_only_there_is_it_offered(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "trained.safetensors").touch()
    for replace in (False, True):
        with pytest.raises(click.ClickException) as raised, whole_folder(tmp_path / "mine", replace=replace):
            pytest.fail("it was begun")
        assert str(raised.value) == (
            f"{tmp_path}/mine is no checkpoint in the diffusers layout, so it is not replaced; choose another --output"
        )
    (tmp_path / "mine" / "model_index.json").touch()
    with pytest.raises(click.ClickException, match="--replace writes it anew"), whole_folder(tmp_path / "mine", replace=False):
        pytest.fail("it was begun")


def test_what_came_into_an_empty_folder_meanwhile_is_not_deleted(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "mine", replace=False):
        (tmp_path / "mine" / "trained.safetensors").touch()
    assert (tmp_path / "mine" / "trained.safetensors").is_file()
