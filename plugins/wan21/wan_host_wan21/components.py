"""Load the parts of a checkpoint, each once, in the dtype and on the device where it runs."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wan_host import ModelLoadFailed
from wan_host_wan21.checkpoint import Checkpoint
from wan_host_wan21.waking import uncollected
from wan_host_wan21.weights import fill, outline

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import torch

    from wan_host import LaneContext

PARTS = ("text_encoder", "vae", "transformer", "image_encoder")
"""Folders of a checkpoint with weights, and attributes of Components: the largest first."""
_PLAIN_MODULES = ("rope", "patch_embedding", "condition_embedder", "blocks", "norm_out", "proj_out", "scale_shift_table")


class Components:
    """The loaded modules. ``transformer`` is what the checkpoint holds; ``plain`` is text-to-video over the same modules.

    At a VACE checkpoint ``plain`` is a view whose submodules are the adapter model's own objects: no second copy in
    memory, and bit-identical to the text-to-video model that VACE was built on. Elsewhere both are one object.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        transformer: Any,
        adapter: bool,
        image_encoder: Any = None,
        image_processor: Any = None,
    ) -> None:
        """``adapter``: the transformer is a WanVACETransformer3DModel. Image encoders come with I2V checkpoints."""
        self.image_encoder, self.image_processor = image_encoder, image_processor
        self.tokenizer, self.text_encoder, self.vae, self.transformer = tokenizer, text_encoder, vae, transformer
        self.adapter = adapter
        self.plain = _plain_view(transformer) if adapter else transformer

    def modules(self) -> tuple[Any, ...]:
        """Return every distinct torch module that holds weights."""
        modules = (getattr(self, name) for name in PARTS)
        return tuple(module for module in modules if module is not None)

    def share_modules(self) -> None:
        """Point the view at the adapter model's modules again, after something replaced them (a LoRA on an outer layer)."""
        if self.adapter:
            for name in _PLAIN_MODULES:
                setattr(self.plain, name, getattr(self.transformer, name))


def compute_dtype(device: str) -> torch.dtype:
    """Return the dtype of transformer and text encoder: float32 on a CPU, bfloat16 elsewhere. The VAE is float32 always."""
    import torch

    return torch.float32 if device.partition(":")[0] == "cpu" else torch.bfloat16


def outline_components(checkpoint: Checkpoint, context: LaneContext) -> Components:
    """Build every part by its configuration, in the dtypes for ``context.device`` and without weights: nothing large is read.

    Raise ModelLoadFailed, naming the part, where a configuration or the tokenizer is unusable.
    """
    with uncollected():  # most of its time imports the classes
        return _outlined(checkpoint, context)


def _outlined(checkpoint: Checkpoint, context: LaneContext) -> Components:
    from diffusers.utils import logging as diffusers_logging
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    # A lane's progress goes through its context; bars on its standard error would only tear the host's log.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    path = checkpoint.path
    built: dict[str, Any] = {}
    with _naming(path / "tokenizer"):
        built["tokenizer"] = AutoTokenizer.from_pretrained(path / "tokenizer")
    if (path / "image_processor").is_dir():
        from transformers import AutoImageProcessor

        with _naming(path / "image_processor"):
            built["image_processor"] = AutoImageProcessor.from_pretrained(path / "image_processor", backend="pil")
    context.progress("tokenizer loaded")
    for name, (cls, dtype) in _classes(checkpoint, compute_dtype(context.device)).items():
        with _naming(path / name):
            built[name] = outline(cls, path / name, dtype)
    return Components(**built, adapter=checkpoint.adapter)


def fill_components(
    components: Components, checkpoint: Checkpoint, context: LaneContext, *, resting: Collection[str] = ()
) -> None:
    """Read the weights of outlined parts straight to ``context.device``; those of the parts in ``resting`` to the host's memory.

    Raise ModelLoadFailed, naming the part, where a file is corrupt, keys are missing or left over, or a shape is wrong.
    """
    import torch

    for name in PARTS:
        module, folder = getattr(components, name), checkpoint.path / name
        if module is not None:
            with _naming(folder):
                fill(module, folder, torch.device("cpu" if name in resting else context.device))
            context.progress(f"{name} loaded")
    components.share_modules()


def _classes(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, tuple[Any, torch.dtype]]:
    """Return the class and the dtype of every part with weights."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
    from transformers import UMT5EncoderModel

    parts: dict[str, tuple[Any, torch.dtype]] = {
        "text_encoder": (UMT5EncoderModel, dtype),
        # Encoding in bfloat16 shifts trajectories (hao-ai-lab/FastVideo#1472): the VAE stays in float32.
        "vae": (AutoencoderKLWan, torch.float32),
        "transformer": (WanVACETransformer3DModel if checkpoint.adapter else WanTransformer3DModel, dtype),
    }
    if (checkpoint.path / "image_encoder").is_dir():
        from transformers import CLIPVisionModel

        parts["image_encoder"] = (CLIPVisionModel, torch.float32)
    return parts


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise over bad files into a ModelLoadFailed that names the folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelLoadFailed(f"{folder} could not be loaded: {error}") from error


def _plain_view(transformer: Any) -> Any:
    """Return a WanTransformer3DModel made of the VACE transformer's own modules."""
    import torch
    from diffusers import WanTransformer3DModel

    accepted = set(inspect.signature(WanTransformer3DModel.__init__).parameters) - {"self"}
    with torch.device("meta"):
        view = WanTransformer3DModel(**{key: value for key, value in transformer.config.items() if key in accepted})
    for name in _PLAIN_MODULES:
        setattr(view, name, getattr(transformer, name))
    return view.eval()
