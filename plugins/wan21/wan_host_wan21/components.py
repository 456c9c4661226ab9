"""Load the parts of a checkpoint, each once, in the dtype and on the device where it runs."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wan_host import ModelLoadFailed
from wan_host_wan21.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from wan_host import LaneContext

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
        modules = (self.text_encoder, self.vae, self.transformer, self.image_encoder)
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


def load_components(checkpoint: Checkpoint, context: LaneContext) -> Components:
    """Load every part from the folder into the CPU's memory.

    Raise ModelLoadFailed, naming the part, where a file is corrupt or keys are missing.
    """
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
    from diffusers.utils import logging as diffusers_logging
    from transformers import AutoTokenizer, UMT5EncoderModel
    from transformers.utils import logging as transformers_logging

    # A lane's progress goes through its context; bars on its standard error would only tear the host's log.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    path, dtype, adapter = checkpoint.path, compute_dtype(context.device), checkpoint.adapter
    loaded: dict[str, Any] = {"image_encoder": None, "image_processor": None}
    with _naming(path / "tokenizer"):
        loaded["tokenizer"] = AutoTokenizer.from_pretrained(path / "tokenizer")
    if (path / "image_processor").is_dir():
        from transformers import AutoImageProcessor

        with _naming(path / "image_processor"):
            loaded["image_processor"] = AutoImageProcessor.from_pretrained(path / "image_processor", backend="pil")
    context.progress("tokenizer loaded")
    parts: list[tuple[Any, str, torch.dtype]] = [
        (UMT5EncoderModel, "text_encoder", dtype),
        # Encoding in bfloat16 shifts trajectories (hao-ai-lab/FastVideo#1472): the VAE stays in float32.
        (AutoencoderKLWan, "vae", torch.float32),
        (WanVACETransformer3DModel if adapter else WanTransformer3DModel, "transformer", dtype),
    ]
    if (path / "image_encoder").is_dir():
        from transformers import CLIPVisionModel

        parts.append((CLIPVisionModel, "image_encoder", torch.float32))
    for cls, name, kept in parts:
        loaded[name] = _load(cls, path / name, kept).eval().requires_grad_(requires_grad=False)
        context.progress(f"{name} loaded")
    text_encoder = loaded["text_encoder"]
    if text_encoder.shared.weight is not text_encoder.encoder.embed_tokens.weight:
        # transformers 5.0-5.22 left the embedding at zeros (huggingface/transformers#43992): output without any prompt.
        raise ModelLoadFailed(f"{path / 'text_encoder'}: the token embedding is not tied; use transformers>=5.23")
    return Components(**loaded, adapter=adapter)


def _load(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load one module and refuse weights that do not fit its configuration exactly."""
    with _naming(folder):
        # Given as an argument, dtype respects the modules that must stay in float32; a later .to(dtype) would flatten them.
        module, info = cls.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info.get(problem, ()))
        if keys:
            raise ModelLoadFailed(f"{folder}: {len(keys)} {problem.replace('_', ' ')}, such as {keys[0]}")
    return module


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
