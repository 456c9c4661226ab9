"""Tiny checkpoints of the real classes, built once, and a lane context that writes down what it is told."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wan_host import Checkpoint, GenerationRequest, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    # diffusers 0.42.1 hands tensors to np.array in its solvers; NumPy 2.4 deprecates how torch answers that.
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@dataclass
class Recorder:
    """A LaneContext. ``stop_at`` names an event (``step 2``, a stage, a note) at which it raises ``error``."""

    device: str = "cpu"
    events: list[str] = field(default_factory=list)
    stop_at: str | None = None
    error: Exception | None = None

    def check(self) -> None:
        pass

    def step(self, step: int, total: int) -> None:
        self._note(f"step {step}/{total}")

    def progress(self, note: str = "") -> None:
        self._note(note)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._note(f"stage {name}")
        yield

    def preview(self, image: Any) -> None:
        self._note("preview")

    def clip_frames(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.uint8)

    def frames_ready(self, seed: int, count: int) -> None:
        self._note(f"{count} frames ready")

    def resume(self, made_with: dict[str, str]) -> Checkpoint | None:
        return None

    def checkpoint(self, save: Callable[[], Checkpoint]) -> None:
        pass

    def _note(self, event: str) -> None:
        self.events.append(event)
        if event == self.stop_at and self.error is not None:
            raise self.error


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny checkpoint by its kind, written at its first use."""
    from wan_host_wan21.checkpoint import Kind
    from wan_host_wan21.fake import TINY, write_checkpoint

    written: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in written:
            path = tmp_path_factory.mktemp(kind)
            write_checkpoint(path, Kind(kind), TINY, progress=lambda _: None)
            written[kind] = path
        return written[kind]

    return folder


@pytest.fixture(scope="session")
def load_tiny(tiny_folder: Callable[[str], Path]) -> Callable[..., Any]:
    """Return a function that loads a new model of a kind."""
    from wan_host_wan21.model import load

    def loaded(kind: str, **info: Any) -> Any:
        return load(model_info(tiny_folder(kind), **info), Recorder())

    return loaded


@pytest.fixture(scope="session")
def t2v(load_tiny: Callable[..., Any]) -> Any:
    return load_tiny("t2v")


@pytest.fixture(scope="session")
def vace(load_tiny: Callable[..., Any]) -> Any:
    return load_tiny("vace")


def model_info(path: Path, **values: Any) -> ModelInfo:
    return ModelInfo(**{"name": "tiny", "family": "wan", "runner": "wan21", "path": str(path), **values})


@pytest.fixture
def info_of() -> Callable[..., ModelInfo]:
    """Return a function from a folder to a ModelInfo."""
    return model_info


VIDEO = GenerationRequest(
    job_id="job",
    job_type="video_fast",
    media="video",
    prompt="a red circle moves to the right",
    width=32,
    height=48,
    frames=9,
    fps=8,
    num_inference_steps=3,
    guidance_scale=4.0,
    sample_shift=5.0,
    sample_solver="dpm++",
    seed=7,
    negative_prompt="blurry",
)


@pytest.fixture
def video() -> Callable[..., GenerationRequest]:
    """Return a request for a video of 32x48 and 9 frames, with changes."""
    return lambda **changes: replace(VIDEO, **changes)


@pytest.fixture
def image() -> Callable[..., GenerationRequest]:
    """Return a request for an image of 32x48, with changes."""
    return lambda **changes: replace(VIDEO, **{"job_type": "image_fast", "media": "image", "frames": 1, **changes})


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """Return a smooth picture, uint8 RGB (height, width, 3), different for every seed."""

    def make(seed: int = 0, height: int = 48, width: int = 32) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        waves = [128 + 100 * np.sin(x * a / 9 + y * b / 11 + c) for a, b, c in rng.uniform(0.2, 1.5, (3, 3))]
        return np.stack(waves, axis=-1).astype(np.uint8)

    return make
