"""While Python imports what a model needs, no garbage is looked for, and a GPU is made ready; afterwards all is as before."""

from __future__ import annotations

import builtins
import gc
import shutil
import subprocess
import sys
import threading
from contextlib import nullcontext

import pytest
import torch  # noqa: TID253  # a plugin's test
import wan_host_wan21
from wan_host_wan21 import waking
from wan_host_wan21.waking import grow_segments, imported_meanwhile, uncollected, wake

from wan_host import ModelLoadFailed


class Asked:
    """A lane's context that writes down, at every note, whether garbage is collected."""

    device = "cpu"

    def __init__(self, context):
        self._context, self.collects = context, {}

    def __getattr__(self, name):
        return getattr(self._context, name)

    def progress(self, note=""):
        self.collects[note] = gc.isenabled()


def test_collecting_goes_on_after_the_imports(tiny_folder, info_of, recorder):
    asked = Asked(recorder())
    wan_host_wan21.load_model(info_of(tiny_folder("t2v")), asked)
    assert asked.collects["tokenizer loaded"] is False
    assert asked.collects["transformer loaded"] is True, "loading itself is no import"
    assert gc.isenabled()


def test_collecting_goes_on_where_loading_fails(tiny_folder, info_of, recorder, tmp_path):
    broken = shutil.copytree(tiny_folder("t2v"), tmp_path / "broken")
    (broken / "transformer" / "config.json").write_text("no configuration")
    with pytest.raises(ModelLoadFailed):
        wan_host_wan21.load_model(info_of(broken), recorder())
    assert gc.isenabled()


def test_whoever_has_switched_collecting_off_keeps_it_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.fixture
def slow_module(tmp_path, monkeypatch):
    """A module whose import waits for the test, and says on which thread it is."""
    (tmp_path / "brought_slowly.py").write_text("import builtins\nbuiltins.slow_import()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "brought_slowly"
    sys.modules.pop("brought_slowly", None)


def test_a_module_is_imported_beside_what_is_inside_and_waited_for(slow_module, monkeypatch):
    go, threads = threading.Event(), []

    def slow_import():
        threads.append(threading.current_thread().name)
        assert go.wait(30)

    monkeypatch.setattr(builtins, "slow_import", slow_import, raising=False)
    with imported_meanwhile(slow_module, wanted=True):
        go.set()  # the import waits for what is inside, so that one of the two would wait for ever if both were in a row
    assert threads == ["import"]
    assert slow_module in sys.modules
    assert gc.isenabled()


def test_a_module_that_is_not_wanted_or_cannot_be_imported_is_left_to_whoever_needs_it(slow_module):
    with imported_meanwhile(slow_module, wanted=False):
        pass
    with imported_meanwhile("there_is_no_such_module", wanted=True):
        pass
    assert slow_module not in sys.modules
    with pytest.raises(ValueError, match="inside"), imported_meanwhile("json", wanted=True):
        raise ValueError("inside")


def test_nothing_is_woken_for_a_cpu(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(threading, "Thread", lambda **given: pytest.fail(f"a thread was made: {given}"))
        wake("cpu")


def test_what_wakes_a_device_can_be_computed(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(waking, "suppress", lambda *_: nullcontext())
    waking._use(torch.device("cpu"))
    assert waited == [torch.device("cpu")]


def test_whatever_goes_wrong_is_left_for_the_loading_to_complain_about(monkeypatch):
    class DeferredCudaCallError(Exception):
        """Torch's own is no RuntimeError, either."""

    def broken(_device):
        raise DeferredCudaCallError("of a call before")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    waking._use(torch.device("cpu"))


def test_waking_imports_no_library_but_torch():
    """What it imports is not yet overlapped with anything."""
    told = "import sys; from wan_host_wan21.waking import wake; wake('cpu'); print(*({'diffusers', 'torch'} & set(sys.modules)))"
    asked = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert asked.stdout.split() == ["torch"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be woken")
def test_a_gpu_that_is_not_there_is_left_for_the_loading_to_complain_about(monkeypatch):
    complaints = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)
    wake("cuda:0")
    for thread in threading.enumerate():
        if thread.name == "wake":
            thread.join(20)
    assert not complaints


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_is_as_the_environment_says_where_it_says_anything(variable, monkeypatch):
    asked = []
    monkeypatch.setattr("torch._C._accelerator_setAllocatorSettings", asked.append)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    grow_segments()
    assert asked == ["expandable_segments:True"]
    monkeypatch.setenv(variable, "max_split_size_mb:512")
    grow_segments()
    assert len(asked) == 1
