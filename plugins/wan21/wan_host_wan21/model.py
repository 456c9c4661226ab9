"""A loaded model: its components, the pipelines over them, and what must be put back after a job."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_host import Lora, OutOfMemory
from wan_host_wan21.acceleration import COMPILER, Acceleration, compiles_on
from wan_host_wan21.checkpoint import Checkpoint, recognise
from wan_host_wan21.components import Components, fill_components, outline_components
from wan_host_wan21.decoding import Decoder, fused
from wan_host_wan21.embeddings import PromptEmbeddings
from wan_host_wan21.encoding import Encoder
from wan_host_wan21.hub import fetch, parse
from wan_host_wan21.loras import Loras
from wan_host_wan21.memory import STILL, Placement
from wan_host_wan21.placement import Placer, empty_cache
from wan_host_wan21.previews import Previews
from wan_host_wan21.references import Route
from wan_host_wan21.sampling import generated_frames
from wan_host_wan21.settings import Wan21Settings, read_settings
from wan_host_wan21.turbo import find_turbo
from wan_host_wan21.waking import grow_segments, imported_meanwhile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wan_host import LaneContext, ModelInfo


_HUB_FILES = ("*.json", "*.safetensors", "*.model")
"""What is loaded of a repository: no pickles."""


class Wan21:
    """What ``load_model`` returns. One job at a time: a lane calls its hooks one after another.

    The pipelines are constructed over shared components, never with ``from_pipe``, which casts every module to float32
    (diffusers 0.42.1, pipeline_utils.py:2127). None of them has the text encoder: prompts arrive as embeddings.
    """

    def __init__(
        self, info: ModelInfo, checkpoint: Checkpoint, components: Components, device: str, settings: Wan21Settings
    ) -> None:
        """``device`` as torch names it."""
        import torch
        from diffusers.video_processor import VideoProcessor

        self.info, self.checkpoint, self.components, self.settings = info, checkpoint, components, settings
        self.device = torch.device(device)
        fixed: Any = info.options.get("adapters", ())
        self.acceleration = Acceleration(components, self.device, settings)
        self.turbo = find_turbo(checkpoint.path, settings.turbo_path)
        self.loras = Loras(components, settings, [Lora(name=name, scale=scale) for name, scale in fixed])
        self.loras.before_change = self.acceleration.leave
        self.placer = Placer(components, self.device, settings)
        self.acceleration.streamed = self.placer.transformer_blocks
        self.embeddings = PromptEmbeddings(components, self.device)
        self.previews = Previews(components.vae, self.device)
        activate = fused(self.device, settings)
        self.decoder = Decoder(components.vae, self.device, settings, activate, lambda: self._progress("decoding"))
        # After the decoder, which may copy the VAE: what stands in for a method is no part of a copy.
        self.encoder = Encoder(components.vae, self.device, activate, lambda: self._progress("encoding with the VAE"))
        self.processor = VideoProcessor(vae_scale_factor=components.vae.config.scale_factor_spatial)
        self.pipelines = _pipelines(checkpoint, components)
        for pipeline in self.pipelines.values():
            pipeline.set_progress_bar_config(disable=True)
        self._context: LaneContext | None = None
        self._watch()

    @contextmanager
    def job(self, context: LaneContext) -> Iterator[None]:
        """Run a job inside: pieces of work report to ``context``, and the state is as before when it ends, however it ends.

        Raise OutOfMemory where the device's memory was too small.
        """
        import torch

        self._context = context
        try:
            with torch.no_grad():
                yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{self.info.name} on {self.device}: {error}") from error
        finally:
            self._context = None
            self.reset()

    def reset(self) -> None:
        """Drop what a raised cancel leaves behind: caches and slots of the transformer, and past frames of the decoder."""
        for pipeline in self.pipelines.values():
            pipeline.maybe_free_model_hooks()
        self.placer.transformer_blocks.release()
        self.decoder.reset()
        self.acceleration.end()

    def close(self) -> None:
        """Give the memory back."""
        import gc

        device = self.device
        vars(self).clear()
        self.device = device
        gc.collect()
        empty_cache(device)

    def _watch(self) -> None:
        """Report, and stop where the job was cancelled, between pieces of work.

        Layers of the text encoder and passes of a step; the VAE's two halves are told whom to tell.
        Hooks on the transformer's blocks would break their compiled graphs.
        """
        encoder = self.components.text_encoder.encoder
        transformers = {id(module): module for module in (self.components.transformer, self.components.plain)}
        for note, modules in (
            ("encoding the prompt", encoder.block),
            ("denoising", transformers.values()),
        ):
            for module in modules:
                module.register_forward_pre_hook(lambda *_, note=note: self._progress(note))

    def _progress(self, note: str) -> None:
        if self._context is not None:
            self._context.progress(note)


def _pipelines(checkpoint: Checkpoint, components: Components) -> dict[Route, Any]:
    """Return the pipelines of a checkpoint by the route that runs them."""
    from diffusers import WanPipeline, WanVideoToVideoPipeline

    from wan_host_wan21.vace import VacePipeline

    shared: dict[str, Any] = {"tokenizer": None, "text_encoder": None, "vae": components.vae, "scheduler": None}
    if checkpoint.animates:
        from wan_host_wan21.animate import AnimatePipeline

        images = {"image_encoder": components.image_encoder, "image_processor": components.image_processor}
        return {Route.ANIMATE: AnimatePipeline(transformer=components.transformer, **images, **shared)}
    pipelines = {
        Route.TEXT: WanPipeline(transformer=components.plain, **shared),
        Route.IMAGE: WanVideoToVideoPipeline(transformer=components.plain, **shared),
    }
    if checkpoint.adapter:
        pipelines[Route.CONDITIONED] = VacePipeline(transformer=components.transformer, **shared)
    return pipelines


def load(info: ModelInfo, context: LaneContext) -> Wan21:
    """Load the folder at ``info.path``. Raise ModelLoadFailed where it is no usable checkpoint."""
    hub = parse(info.path)
    folder = Path(info.path).expanduser() if hub is None else fetch(hub, _HUB_FILES, f"model {info.name}", context)
    checkpoint = recognise(folder)
    with context.stage("load"):
        import torch

        settings = read_settings()
        if torch.device(context.device).type == "cuda":
            grow_segments()
        components, device = outline_components(checkpoint, context), torch.device(context.device)
        placement = Placer(components, device, settings).admit_largest(info)
        warms_up = settings.warm_up and placement in STILL
        with imported_meanwhile(COMPILER, wanted=warms_up and compiles_on(device, settings)):
            fill_components(components, checkpoint, context, resting=_resting(placement))
        model = Wan21(info, checkpoint, components, context.device, settings)
        model.placer.place(placement)
        context.progress(f"placed: {model.placer.current}")
        if warms_up and not model.loras.differ(()):
            shapes = {
                (1 if kind.media == "image" else generated_frames(kind.frames), kind.width, kind.height)
                for kind in info.job_types.values()
            }
            model.acceleration.warm_up(shapes, context.progress)
    return model


def _resting(placement: Placement) -> frozenset[str]:
    """Return the parts whose weights rest in the host's memory under a placement."""
    if placement is Placement.RESIDENT:
        return frozenset()
    return frozenset({"text_encoder", "transformer"} if placement is Placement.LEAN else {"text_encoder"})
