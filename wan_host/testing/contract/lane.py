"""What holds for the hooks of lanes: generating, enhancing, changing frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from wan_host.encoding import encode_asset
from wan_host.errors import JobCancelled
from wan_host.hooks import Hooks
from wan_host.model import MediaKind, ModelInfo
from wan_host.request import Clip, EnhanceRequest, Generation, GenerationRequest
from wan_host.testing import instant
from wan_host.testing.contract.base import Contract
from wan_host.testing.lane import FakeLane
from wan_host.testing.samples import is_there, sample_context, sample_request

_PROMPTS = ("a cat sleeps on a red sofa", "Ein Hund läuft über die Straße, 走る犬", "x", "word " * 700)


class _ModelInLane(Contract):
    """A lane that holds the model that ``model_info`` returns."""

    @pytest.fixture(scope="class")
    @classmethod
    def lane(cls, model_info: ModelInfo) -> Iterator[FakeLane]:
        """Return a lane that holds the model."""
        with FakeLane(cls.installed_hooks(), models={model_info.name: model_info}) as lane:
            lane.load(model_info.name)
            yield lane


class RunnerContract(_ModelInLane):
    """``load_model`` and ``generate``. Override ``model_info`` where no model that runs on a CPU is offered."""

    @pytest.fixture(scope="class")
    @classmethod
    def model_info(cls) -> ModelInfo:
        """Return a model that this plugin runs, small enough for a CPU: by default the smallest that is offered."""
        models = [model for model in cls.installed_hooks().models().values() if _runs(model, cls.plugin)]
        if not models:
            cls.missing("no model that it runs is offered here and small enough to be tried on a CPU; override model_info")
        return min(models, key=lambda model: model.vram_mib)

    @pytest.fixture
    def request_(self, model_info: ModelInfo) -> GenerationRequest:
        """Return a small request for the model."""
        return sample_request(model_info, media=_media(model_info))

    def test_what_comes_back_is_what_was_asked_for(
        self, lane: FakeLane, model_info: ModelInfo, request_: GenerationRequest
    ) -> None:
        """Number, size, type and seed of the clips: the lane checks them."""
        (clip,) = lane.generate(model_info.name, request_).clips
        assert clip.frames.shape == (request_.frames, request_.height, request_.width, 3)

    def test_every_denoising_step_is_a_sign_of_life(
        self, lane: FakeLane, model_info: ModelInfo, request_: GenerationRequest
    ) -> None:
        """Progress, estimates and the watchdog live on them; the total counts down to the end."""
        lane.generate(model_info.name, request_)
        assert lane.steps, "context.step was never called"
        total = lane.steps[0][1]
        assert lane.steps == [(step, total) for step in range(1, total + 1)]

    def test_the_same_request_gives_the_same_frames_whatever_ran_before(
        self, lane: FakeLane, model_info: ModelInfo, request_: GenerationRequest
    ) -> None:
        """A second attempt makes the same file."""
        first = lane.generate(model_info.name, request_)
        other = lane.generate(model_info.name, sample_request(model_info, media=_media(model_info), seed=8))
        second = lane.generate(model_info.name, request_)
        assert _equal(first, second)
        assert not _equal(first, other), "another seed gave the same frames"

    def test_frames_that_were_said_to_be_final_stay_as_they_were(
        self, lane: FakeLane, model_info: ModelInfo, request_: GenerationRequest
    ) -> None:
        """They are in the file by the time that the others are made."""
        clips = lane.generate(model_info.name, request_).clips
        if not lane.early:
            pytest.skip("it shows no frames before the end")
        for number, shown in lane.early.items():
            for frames in shown:
                assert np.array_equal(clips[number].frames[: len(frames)], frames), f"{len(frames)} frames of clip {number}"

    def test_image_i_comes_from_seed_plus_i(self, lane: FakeLane, model_info: ModelInfo) -> None:
        """So that one of several can be made again alone."""
        if not _serves(model_info, "image"):
            pytest.skip("it makes no images")
        pair = lane.generate(model_info.name, sample_request(model_info, media="image", seed=7, num_images=2))
        alone = lane.generate(model_info.name, sample_request(model_info, media="image", seed=8))
        assert np.array_equal(pair.clips[1].frames, alone.clips[0].frames)

    def test_a_cancelled_job_ends_within_a_step_and_harms_no_other(
        self, lane: FakeLane, model_info: ModelInfo, request_: GenerationRequest
    ) -> None:
        """Cancels and deadlines act inside the denoising loop, and leave the model as it was."""
        calm = lane.generate(model_info.name, request_)
        first_step = next(number for number, beat in enumerate(lane.beats, start=1) if beat in lane.steps)
        with pytest.raises(JobCancelled):
            lane.generate(model_info.name, request_, cancel_at=first_step)
        assert len(lane.steps) <= 1, "it went on after it was cancelled"
        assert _equal(lane.generate(model_info.name, request_), calm)

    def test_it_can_be_unloaded_and_loaded_again(
        self, lane: FakeLane, model_info: ModelInfo, request_: GenerationRequest
    ) -> None:
        """The host takes turns with models that do not fit together."""
        before = lane.generate(model_info.name, request_)
        lane.unload(model_info.name)
        assert model_info.name not in lane.loaded
        lane.load(model_info.name)
        assert _equal(lane.generate(model_info.name, request_), before)


class EnhancerContract(_ModelInLane):
    """``load_model`` and ``enhance_prompt``. Override ``model_info`` where no model is offered."""

    @pytest.fixture(scope="class")
    @classmethod
    def model_info(cls) -> ModelInfo:
        """Return the model that enhances."""
        models = cls.installed_hooks().models().values()
        found = next((model for model in models if model.kind == "enhance" and model.runner == cls.plugin), None)
        if found is None:
            cls.missing("it offers no model of kind 'enhance' here; override model_info")
        return found

    @pytest.fixture(params=_PROMPTS, ids=["plain", "other scripts", "one letter", "long"])
    def request_(self, request: pytest.FixtureRequest) -> EnhanceRequest:
        """Return a prompt to enhance."""
        return _enhance_request(request.param)

    def test_it_gives_a_prompt_or_says_why_not(self, lane: FakeLane, model_info: ModelInfo, request_: EnhanceRequest) -> None:
        """What is no good is the original with ``source="none"`` and a reason."""
        result = lane.enhance(self.plugin, model_info.name, request_)
        assert result.prompt.strip()
        assert result.source
        if result.source == "none":
            assert result.prompt == request_.prompt
            assert result.reason

    def test_another_attempt_gets_the_same_prompt(self, lane: FakeLane, model_info: ModelInfo) -> None:
        """In another lane, which remembers nothing: every attempt of a job makes the same file."""
        first = lane.enhance(self.plugin, model_info.name, _enhance_request(_PROMPTS[0]))
        lane.unload(model_info.name)
        lane.load(model_info.name)
        assert lane.enhance(self.plugin, model_info.name, _enhance_request(_PROMPTS[0])) == first

    def test_a_cancelled_job_ends_inside_the_writing(self, lane: FakeLane, model_info: ModelInfo) -> None:
        """An enhancer that gives signs of life ends at the next one."""
        lane.enhance(self.plugin, model_info.name, _enhance_request("a boat on a lake"))
        if len(lane.beats) < 2:  # noqa: PLR2004  # one to cancel at, one to end at
            pytest.skip("it is done before it gives a second sign of life")
        with pytest.raises(JobCancelled):
            lane.enhance(self.plugin, model_info.name, _enhance_request("a boat on the sea"), cancel_at=1)
        assert len(lane.beats) == 1


class FrameContract(Contract):
    """``process_frames``. Override ``request_`` where the processor looks at it."""

    @pytest.fixture
    def request_(self) -> GenerationRequest:
        """Return the request whose frames are processed."""
        (model,) = instant.list_models()
        return sample_request(model)

    @pytest.fixture
    def clip(self, request_: GenerationRequest, hooks: Hooks) -> Clip:
        """Return what the processor is given to make that of."""
        processor = hooks.frame_processors()[self.plugin]
        width, height = request_.width // processor.scale, request_.height // processor.scale
        return instant.draw(width, height, processor.frames_needed(request_.frames), request_.seed)

    @pytest.fixture
    def lane(self, hooks: Hooks) -> FakeLane:
        """Return a lane."""
        return FakeLane(hooks)

    def test_what_comes_back_can_be_encoded(
        self, lane: FakeLane, clip: Clip, request_: GenerationRequest, tmp_path: Path
    ) -> None:
        """Frames that the host's encoder takes, from the clip's own seed."""
        result = lane.process_frames(self.plugin, clip, request_)
        assert result.seed == clip.seed
        encode_asset(result, asset_index=0, kind="video", fps=8, workdir=tmp_path, context=sample_context(tmp_path))

    def test_the_same_clip_is_processed_the_same_and_is_left_as_it_was(
        self, lane: FakeLane, clip: Clip, request_: GenerationRequest
    ) -> None:
        """A second attempt makes the same file."""
        before = clip.frames.copy()
        first = lane.process_frames(self.plugin, clip, request_)
        assert np.array_equal(clip.frames, before), "it changed the frames that it was given"
        assert np.array_equal(first.frames, lane.process_frames(self.plugin, clip, request_).frames)

    def test_a_cancelled_job_ends_between_pieces_of_work(self, lane: FakeLane, clip: Clip, request_: GenerationRequest) -> None:
        """A processor that gives signs of life ends at the next one."""
        lane.process_frames(self.plugin, clip, request_)
        if len(lane.beats) < 2:  # noqa: PLR2004  # one to cancel at, one to end at
            pytest.skip("it is done before it gives a second sign of life")
        with pytest.raises(JobCancelled):
            lane.process_frames(self.plugin, clip, request_, cancel_at=1)


CPU_MIB = 2048
"""Weights up to so large are tried on a CPU."""


def _enhance_request(prompt: str) -> EnhanceRequest:
    return EnhanceRequest(prompt=prompt, job_type="video7b_fast_enhanced", media="video", max_tokens=64)


def _runs(model: ModelInfo, plugin: str) -> bool:
    return model.kind == "generate" and model.runner == plugin and is_there(model) and model.vram_mib <= CPU_MIB


def _serves(model: ModelInfo, media: MediaKind) -> bool:
    return any(defaults.media == media and not defaults.enhance for defaults in model.job_types.values())


def _media(model: ModelInfo) -> MediaKind:
    return "video" if _serves(model, "video") else "image"


def _equal(left: Generation, right: Generation) -> bool:
    return all(np.array_equal(one.frames, two.frames) for one, two in zip(left.clips, right.clips, strict=True))
