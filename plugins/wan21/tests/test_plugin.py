"""The package as the host sees it: light to import, and its hooks fit the host's specifications."""

from __future__ import annotations

import subprocess
import sys

import pluggy
import wan_host_wan21

from wan_host import ModelInfo, hookspecs


def test_importing_and_listing_imports_nothing_heavy(tiny_folder, tmp_path):
    (tmp_path / "wan2.1-vace-1.3b").symlink_to(tiny_folder("vace"))
    code = (
        "import sys, wan_host_wan21\n"
        "models = list(wan_host_wan21.list_models())\n"
        "assert [m.name for m in models] == ['wan2.1-vace-1.3b'], models\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'peft', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "WAN_HOST_WAN21_MODELS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_hook_is_one_that_the_host_specifies():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(wan_host_wan21)
    manager.check_pending()


def test_the_hooks_load_and_generate(tiny_folder, video, recorder):
    info = ModelInfo(name="mine", family="wan", runner="wan21", path=str(tiny_folder("t2v")))
    context = recorder()
    model = wan_host_wan21.load_model(model=info, context=context)
    assert context.events == ["stage load", "tokenizer loaded", "text_encoder loaded", "vae loaded", "transformer loaded",
                              "placed: resident"]  # fmt: skip
    assert wan_host_wan21.generate(request=video(), model=model, context=context).clips[0].frames.shape == (9, 48, 32, 3)
    model.close()
    assert not hasattr(model, "components")
