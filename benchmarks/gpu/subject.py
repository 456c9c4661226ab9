"""One model and two ways to run it: diffusers' own pipeline, and the plugin under a preset."""

from __future__ import annotations

import copy
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # noqa: TID253  # a script on torch
from ceilings import wait
from diffusers import UniPCMultistepScheduler, WanPipeline  # noqa: TID253  # as above
from wan_host_wan21.checkpoint import Checkpoint, Kind, recognise
from wan_host_wan21.components import fill_components, outline_components
from wan_host_wan21.fake import REAL, TINY, random_components, write_turbo
from wan_host_wan21.generation import generate
from wan_host_wan21.memory import Placement
from wan_host_wan21.model import Wan21
from wan_host_wan21.presets import Preset
from wan_host_wan21.sampling import generated_frames
from wan_host_wan21.settings import Wan21Settings
from wan_host_wan21.turbo import shifted
from wan_host_wan21.waking import grow_segments

from wan_host import GenerationRequest, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

STOCK = "stock"
PROMPT = "a large red circle moving to the right on a blue background"
NEGATIVE = "blurry"
GUIDANCE, SHIFT, SEED, TURBO_STEPS = 5.0, 3.0, 7, 4


@dataclass(frozen=True)
class Case:
    """What is made."""

    name: str
    frames: int
    width: int
    height: int
    steps: int

    @property
    def latent(self) -> tuple[int, int, int]:
        """Latent frames, height and width."""
        return (self.frames - 1) // 4 + 1, self.height // 8, self.width // 8

    @property
    def tokens(self) -> int:
        """The length of the transformer's sequence."""
        frames, height, width = self.latent
        return frames * (height // 2) * (width // 2)


@dataclass
class Watch:
    """A lane's context that times the stages and the steps, and keeps the last latents."""

    device: torch.device
    stages: dict[str, float] = field(default_factory=dict)
    steps: list[Any] = field(default_factory=list)
    latents: np.ndarray | None = None
    total: int = 0

    def check(self) -> None:
        """Never cancel."""

    def progress(self, note: str = "") -> None:
        """Say nothing."""

    def preview(self, image: Any) -> None:
        """Look at no picture."""

    def clip_frames(self, _seed: int, shape: tuple[int, ...]) -> np.ndarray:
        """Share the frames with no host: there is none."""
        return np.empty(shape, np.uint8)

    def frames_ready(self, _seed: int, _count: int) -> None:
        """Tell nobody."""

    def resume(self, made_with: Any) -> None:
        """Begin anew."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage from an idle device to an idle device."""
        wait(self.device)
        begun = time.perf_counter()
        yield
        wait(self.device)
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - begun

    def step(self, _step: int, total: int) -> None:
        """Mark the moment on the device's own clock, without waiting for it."""
        self.total = total
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.steps.append(event)
        else:
            self.steps.append(time.perf_counter())

    def checkpoint(self, save: Any) -> None:
        """Take the latents of the last step."""
        if len(self.steps) == self.total:
            self.latents = save().arrays["latents"]

    def step_seconds(self) -> list[float]:
        """Return how long each step took, but for the first, whose beginning nobody marked."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        if self.device.type == "cuda":
            return [one.elapsed_time(other) / 1e3 for one, other in pairs]
        return [other - one for one, other in pairs]


class Subject:
    """The model under test."""

    def __init__(self, checkpoint: Path | None, size: str, device: torch.device, folder: Path, **settings: Any) -> None:
        """Load ``checkpoint``, or make a text-to-video model of a size with random weights on the device."""
        self.device = device
        folder.mkdir(parents=True, exist_ok=True)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        watch = Watch(device)
        if device.type == "cuda":
            grow_segments()  # as the plugin does when it loads; stock gains by it, too
        if checkpoint is None:
            found = Checkpoint(
                path=folder, kind=Kind.T2V, heads=TINY.heads if size == "tiny" else REAL.heads, random_weights=True
            )
            components = random_components(Kind.T2V, TINY if size == "tiny" else REAL, device, dtype)
        else:
            found = recognise(checkpoint)
            watch.device = str(device)
            components = outline_components(found, watch)
            fill_components(components, found, watch)
            for module in components.modules():
                module.to(device)
            components.share_modules()
        self.random = found.random_weights
        turbo = folder / "turbo.safetensors"
        if self.random and not turbo.is_file():
            write_turbo(turbo, components.transformer, sigmas=shifted(TURBO_STEPS, 5.0))
        info = ModelInfo(name="subject", family="wan", runner="wan21", path=str(found.path))
        chosen = Wan21Settings(data_dir=folder, previews=False, **settings)
        self.components = components
        # The plugin lays its own out in another way. Each of the two is on the device only where it works: memory is measured.
        vae = copy.deepcopy(components.vae).to("cpu")
        self.model = Wan21(info, found, components, str(device), chosen)
        for pipeline in self.model.pipelines.values():
            pipeline.set_progress_bar_config(disable=True)
        self.pipeline = WanPipeline(
            tokenizer=components.tokenizer,
            text_encoder=components.text_encoder,
            vae=vae,
            transformer=components.plain,
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=SHIFT
            ),
        )
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def config(self) -> Any:
        """The transformer's."""
        return self.components.plain.config

    def run(self, variant: str, case: Case) -> dict[str, Any]:
        """Make one clip; return what was measured, and its latents under ``latents``."""
        watch = Watch(self.device)
        self.model.embeddings.forget()
        self._place(variant, case)
        adapter_seconds = self._adapt(variant)
        self.forget_peaks()
        wait(self.device)
        begun = time.perf_counter()
        facts = self._stock(case, watch) if variant == STOCK else self._preset(variant, case, watch)
        wait(self.device)
        seconds = time.perf_counter() - begun
        steps = watch.step_seconds()
        return {
            "seconds": seconds,
            "stages": watch.stages,
            "step_seconds": steps,
            "passes": int(facts.get("transformer_passes", 2 * case.steps)),
            "adapter_seconds": adapter_seconds,
            "facts": facts,
            "latents": watch.latents,
        } | self._peaks()

    def _place(self, variant: str, case: Case) -> None:
        """Have the weights where the variant wants them, as a job of the same kind before this one would have left them."""
        placer = self.model.placer
        placement = Placement.RESIDENT if variant == STOCK else placer.admit(self.request(variant, case))
        if variant == STOCK or placer.moves_transformer(placement):
            self.model.acceleration.leave()
        placer.place(placement)
        self.pipeline.vae.to(self.device if variant == STOCK else "cpu")
        if variant == STOCK:
            self.components.vae.to("cpu")  # place() brings it back
            with placer.encoding():
                pass  # the text encoder is back, to stay

    def _adapt(self, variant: str) -> float | None:
        """Have in what adapter the variant wants, likewise; return what putting it in takes, None where it is in or none is."""
        if variant != Preset.TURBO or self.model.turbo is None:
            self.model.loras.remove()
            return None
        known = self.model.loras.active
        wait(self.device)
        begun = time.perf_counter()
        with torch.no_grad():
            self.model.loras.apply((), Watch(self.device), self.model.turbo.path)
        wait(self.device)
        return None if known else time.perf_counter() - begun

    def request(self, preset: str, case: Case) -> GenerationRequest:
        """Return what a preset is asked for."""
        return GenerationRequest(
            job_id="benchmark",
            job_type="video",
            media="image" if case.frames == 1 else "video",
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            width=case.width,
            height=case.height,
            frames=case.frames,
            fps=16,
            num_inference_steps=case.steps,
            guidance_scale=GUIDANCE,
            sample_shift=SHIFT,
            sample_solver="unipc",
            seed=SEED,
            preset=preset,
        )

    def _preset(self, preset: str, case: Case, watch: Watch) -> dict[str, Any]:
        assert generated_frames(case.frames) == case.frames
        return dict(generate(self.request(preset, case), self.model, watch).metadata)

    def _stock(self, case: Case, watch: Watch) -> dict[str, Any]:
        """Call diffusers' pipeline as it comes, in three pieces so that its stages can be timed."""
        pipeline = self.pipeline

        def marked(_pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            watch.step(index + 1, case.steps)
            return tensors

        with torch.no_grad():
            with watch.stage("text_encode"):
                positive, negative = pipeline.encode_prompt(
                    prompt=PROMPT, negative_prompt=NEGATIVE, max_sequence_length=512, device=self.device
                )
            with watch.stage("denoise"):
                latents = pipeline(
                    prompt_embeds=positive,
                    negative_prompt_embeds=negative,
                    height=case.height,
                    width=case.width,
                    num_frames=case.frames,
                    num_inference_steps=case.steps,
                    guidance_scale=GUIDANCE,
                    generator=torch.Generator().manual_seed(SEED),
                    callback_on_step_end=marked,
                    output_type="latent",
                ).frames
            watch.latents = latents.float().cpu().numpy()
            with watch.stage("decode"):
                config, vae = pipeline.vae.config, pipeline.vae
                mean, std = (
                    torch.tensor(values, device=self.device, dtype=vae.dtype).view(1, -1, 1, 1, 1)
                    for values in (config.latents_mean, config.latents_std)
                )
                video = vae.decode(latents.to(vae.dtype) * std + mean, return_dict=False)[0]
                pipeline.video_processor.postprocess_video(video, output_type="np")
        return {}

    def forget_peaks(self) -> None:
        """Begin to count the device's memory anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peaks(self) -> dict[str, float | None]:
        if self.device.type != "cuda":
            return {"allocated_gib": None, "reserved_gib": None}
        return {
            "allocated_gib": torch.cuda.max_memory_allocated(self.device) / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved(self.device) / 2**30,
        }


def warmed(case: Case) -> Case:
    """Return a case that compiles and records what ``case`` needs: its shape, and a few steps of each kind."""
    return replace(case, steps=min(case.steps, 4))


def error(latents: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative distance of two clips' latents."""
    return float(np.linalg.norm(latents - expected) / np.linalg.norm(expected))
