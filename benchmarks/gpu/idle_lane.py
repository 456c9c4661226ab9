"""The plugin of ``idle.py``: wan21's runner with marks on its first and last piece of work, and a publisher that takes its time.

A mark is a CUDA event on the stream that computes: it bears the time at which the GPU came to it, costs microseconds, and waits
for nothing. On a CPU it is the clock. A job's first mark stands before the first pass of text encoder or transformer; each
prompt is new, so that a job begins with the first. Its last one stands behind the last pass of the VAE's decoder, so that all
that follows counts as waiting; where the plugin computes with the decoder's layers by itself, it stands at the end of the
stage ``decode``, the copy of the last frames to the host included.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_host import Generation, GenerationRequest, HookContext, LaneContext, ModelInfo, OutputFile, PublishedFile, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = "subject"
CHECKPOINT, MARKS, PUBLISH_SECONDS = "IDLE_CHECKPOINT", "IDLE_MARKS", "IDLE_PUBLISH_SECONDS"


@dataclass(eq=False)
class Measured:
    """A model with its marks: of the job that runs, and the one that all are told from."""

    model: Any
    mark: Callable[[], Any]
    origin: Any
    first: Any = None
    last: Any = None
    passed: bool = False
    """Whether the decoder made a pass as a module in this job."""
    clock: dict[str, float] = field(default_factory=dict)
    """Times of ``time.monotonic``, which host and lane share."""

    def begins(self, *_: object) -> None:
        """Mark the first piece of work of a job."""
        if self.first is None:
            self.first = self.mark()
            self.clock["first"] = time.monotonic()

    def decodes(self, *_: object) -> None:
        """Mark what may be the last piece."""
        self.passed, self.last = True, self.mark()

    def decoded(self) -> None:
        """Mark the end of the stage, where no pass was seen."""
        if not self.passed:
            self.last = self.mark()

    def begin(self) -> None:
        """Begin a job."""
        self.first = self.last = None
        self.passed, self.clock = False, {"called": time.monotonic()}

    def seconds(self, mark: Any) -> float:
        """Return when a mark was passed."""
        if isinstance(mark, float):
            return mark - self.origin
        mark.synchronize()
        return self.origin.elapsed_time(mark) / 1e3

    def close(self) -> None:
        """Close the model."""
        self.model.close()


class Watched:
    """A lane's context that tells when the stage ``decode`` ends."""

    def __init__(self, context: LaneContext, model: Measured) -> None:
        """Everything else is the context's own."""
        self._context, self._model = context, model

    def __getattr__(self, name: str) -> Any:
        """Return what the context has."""
        return getattr(self._context, name)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Pass a stage on."""
        with self._context.stage(name):
            yield
            if name == "decode":
                self._model.decoded()


@hookimpl
def list_models() -> Iterator[ModelInfo]:
    """Offer the checkpoint that the environment names."""
    from wan_host_wan21.catalogue import describe
    from wan_host_wan21.checkpoint import recognise

    if os.environ.get(CHECKPOINT):
        found = describe(MODEL, recognise(Path(os.environ[CHECKPOINT])), "under test", presets=("exact", "fast"))
        yield replace(found, runner="idle")


@hookimpl
def load_model(model: ModelInfo, context: LaneContext) -> Measured:
    """Load it as wan21 does, and mark its modules."""
    import torch
    from wan_host_wan21.model import load

    def event() -> Any:
        made = torch.cuda.Event(enable_timing=True)
        made.record()
        return made

    loaded = load(model, context)
    mark = event if loaded.device.type == "cuda" else time.monotonic
    measured = Measured(loaded, mark, mark())
    components = loaded.components
    for module in {components.text_encoder, components.plain, components.transformer}:
        module.register_forward_pre_hook(measured.begins)
    components.vae.decoder.register_forward_hook(measured.decodes)
    return measured


@hookimpl
def generate(request: GenerationRequest, model: Measured, context: LaneContext) -> Generation:
    """Generate as wan21 does, and write down when."""
    from wan_host_wan21.generation import generate as run

    model.begin()
    made = run(request, model.model, Watched(context, model))
    model.clock["returned"] = time.monotonic()
    row = {
        "job": request.job_id,
        "first": model.seconds(model.first),
        "last": model.seconds(model.last),
        "end": "decoder" if model.passed else "stage",
        "clock": model.clock,
    }
    with Path(os.environ[MARKS]).open("a", encoding="utf-8") as marks:
        marks.write(json.dumps(row) + "\n")
    return made


@hookimpl
def publish(file: OutputFile, context: HookContext) -> PublishedFile:
    """Pretend to upload for some seconds."""
    until = time.monotonic() + float(os.environ[PUBLISH_SECONDS])
    while (left := until - time.monotonic()) > 0:
        context.check()
        time.sleep(min(left, 0.05))
    return PublishedFile(url=file.key, file_size_bytes=file.file_size_bytes)
