"""Placements: which one a job gets, which jobs are refused, and that where the weights are does not change what is made."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from wan_host_wan21.catalogue import wan_defaults
from wan_host_wan21.decoding import decoder_of
from wan_host_wan21.generation import generate
from wan_host_wan21.memory import LADDER, Job, Placement, Weights, choose, ladder, needed_bytes, refusal
from wan_host_wan21.placement import Placer, budget_bytes, measure
from wan_host_wan21.settings import Wan21Settings

from wan_host import Lora, OutOfMemory, ReferenceMode, References, UnsupportedRequest

GIB = 2**30
# VACE 1.3B: 2.154 B and UMT5-XXL 5.681 B parameters in bfloat16, VAE 126.9 M in float32.
REAL = Weights(
    transformer=int(4.308e9),
    transformer_blocks=int(4.1e9),
    transformer_block=int(0.095e9),
    text_encoder=int(11.36e9),
    text_blocks=int(9.26e9),
    text_block=int(0.386e9),
    vae=int(0.508e9),
    width=1536,
    ffn_width=8960,
    vae_base=96,
)
FULL = Job(frames=83, width=480, height=832)


def test_a_sequence_is_as_long_as_the_published_one():
    assert Job(frames=81, width=480, height=832).tokens == 32_760
    assert Job(frames=1, width=480, height=832).tokens == 1_560


@pytest.mark.parametrize("frames", [81, 241])
def test_the_vae_takes_a_chunk_of_frames_however_many_there_are(frames):
    """An H200's allocator reserved 7.24 GiB beside the weights when 480x832 was decoded in float32."""
    shorter, longer = (Job(frames=count, width=480, height=832) for count in (5, frames))
    vae = needed_bytes(Placement.LEAN, REAL, shorter) - (REAL.transformer - REAL.transformer_blocks + REAL.vae)
    assert 7.24 * GIB < vae < 7.4 * GIB
    denoising = needed_bytes(Placement.LEAN, REAL, longer) > needed_bytes(Placement.LEAN, REAL, shorter)
    assert denoising == (frames == 241), "a long clip's denoising takes more than its decoding"


@pytest.mark.parametrize(
    ("frames", "gib", "placement"),
    [
        (83, 80, "text_off"),
        (83, 12, "text_off"),
        (83, 8, "lean"),
        (83, 6, None),
        (1, 80, "resident"),
        (1, 20, "text_off"),
        (1, 8, "lean"),
    ],
)
def test_the_fastest_placement_that_fits_is_chosen(frames, gib, placement):
    job = Job(frames=frames, width=480, height=832)
    assert choose(ladder(job), REAL, job, gib * GIB) == placement


def test_the_text_encoder_never_stands_beside_a_video():
    assert Placement.RESIDENT not in ladder(FULL)
    larger = replace(REAL, text_encoder=2 * REAL.text_encoder)
    for placement in ladder(FULL):
        assert needed_bytes(placement, REAL, FULL) == needed_bytes(placement, larger, FULL)


def test_leaner_placements_need_less():
    needs = [needed_bytes(placement, REAL, FULL) for placement in LADDER]
    assert needs == sorted(needs, reverse=True)


def test_a_refusal_names_the_largest_that_fits():
    said = refusal(REAL, FULL, 5 * GIB, Placement.LEAN)
    assert said.startswith("83 frames at 480x832 need about 7.")
    assert "5.0 GiB are there; the largest that fits is" in said
    width, height = (int(side) for side in said.split(" is ")[-1].split(" for ")[0].split("x"))
    assert (width % 16, height % 16) == (0, 0)
    assert needed_bytes(Placement.LEAN, REAL, Job(frames=83, width=width, height=height)) <= 5 * GIB
    assert abs(width / height - 480 / 832) < 0.05
    assert "frames at 480x832 or" in refusal(REAL, replace(FULL, frames=241), 8 * GIB, Placement.LEAN)
    assert "nothing" in refusal(REAL, FULL, GIB // 8, Placement.LEAN)


@pytest.fixture
def limited(vace, monkeypatch):
    """Return a function that gives the model a budget; the CPU has none of its own."""

    def limit(number: int | None, **settings):
        monkeypatch.setattr(vace.placer, "_settings", Wan21Settings(**settings))
        monkeypatch.setattr("wan_host_wan21.placement.budget_bytes", lambda *_: number)
        return vace

    yield limit
    vace.placer.place(Placement.RESIDENT)


def test_a_job_that_cannot_fit_is_refused_before_any_work(limited, video, recorder):
    context = recorder()
    with pytest.raises(UnsupportedRequest, match=r"config\.frames, config\.width, config\.height: 9 frames at 32x48 need"):
        generate(video(), limited(1000), context)
    assert context.events == []


def test_a_second_attempt_begins_leaner(limited, video, image, recorder):
    model = limited(10**12)
    placed = [generate(image(attempt=attempt), model, recorder()).metadata["placement"] for attempt in (1, 2, 3, 4)]
    assert placed == ["resident", "text_off", "lean", "lean"]
    assert [generate(video(attempt=attempt), model, recorder()).metadata["placement"] for attempt in (1, 2)] == placed[1:3]


@pytest.mark.parametrize("placement", ["text_off", "lean"])
def test_placements_change_nothing_but_the_place(placement, limited, video, picture, recorder):
    start = {"reference_mode": ReferenceMode.START, "references": References(first_frame=picture()), "frames": 5}
    expected = [generate(video(**given), limited(None), recorder()).clips[0].frames for given in ({}, start)]
    model = limited(None, placement=placement)
    model.embeddings._kept.clear()
    for given, frames in zip(({}, start), expected, strict=True):
        made = generate(video(**given), model, recorder())
        assert made.metadata["placement"] == placement
        assert np.array_equal(made.clips[0].frames, frames)


def test_eight_bits_are_near_and_are_only_taken_where_a_setting_says_so(load_tiny, vace, video, recorder, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_PLACEMENT", "fp8")
    model = load_tiny("vace")
    plain = generate(video(), vace, recorder()).clips[0].frames.astype(int)
    made = generate(video(), model, recorder())
    assert made.metadata["placement"] == "fp8"
    difference = np.abs(made.clips[0].frames - plain)
    assert 0 < difference.mean() < 8
    with pytest.raises(UnsupportedRequest, match=r"config\.loras: not with the placement fp8"):
        generate(video(loras=(Lora(name="any"),)), model, recorder())


def test_the_devices_shortage_of_memory_is_told_as_such(vace, video, recorder, monkeypatch):
    def short(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    before = generate(video(), vace, recorder()).clips[0].frames
    with monkeypatch.context() as patch:
        patch.setattr(vace.components.plain, "forward", short)
        with pytest.raises(OutOfMemory, match="tiny on cpu: CUDA out of memory"):
            generate(video(seed=3), vace, recorder())
    assert np.array_equal(generate(video(), vace, recorder()).clips[0].frames, before)


def test_a_closed_model_lets_go_of_what_rests(load_tiny, video, recorder, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_PLACEMENT", "lean")
    model = load_tiny("vace")
    generate(video(), model, recorder())
    resting = [weakref.ref(rest) for rest in model.placer.transformer_blocks._rests]
    assert len(resting) == 3
    model.close()
    assert [rest() for rest in resting] == [None] * 3
    model.close()


def test_the_weights_are_measured(vace):
    weights = measure(vace.components, Wan21Settings())
    assert weights.transformer_blocks < weights.transformer
    assert weights.transformer == sum(p.numel() * 4 for p in vace.components.transformer.parameters()) + sum(
        b.numel() * b.element_size() for b in vace.components.transformer.buffers()
    )
    assert (weights.width, weights.ffn_width) == (24, 32)
    assert Placer(vace.components, torch.device("cpu"), Wan21Settings()).weights == weights


@pytest.mark.parametrize("settings", [{"decode_dtype": "bfloat16"}, {"decode_dtype": "bfloat16", "decode_fused": True}])
def test_a_decoder_of_its_own_counts(settings, vace, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, _device, dtype: self._apply(lambda tensor: tensor.to(dtype)))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: True)
    chosen = Wan21Settings(**settings)
    copied = decoder_of(vace.components.vae, torch.device("cuda"), chosen)
    size = sum(tensor.nbytes for tensor in copied.state_dict().values())
    without, together = (measure(vace.components, one).vae for one in (Wan21Settings(), chosen))
    assert together - without == size > 0


def test_weights_that_lie_where_they_should_are_not_moved_again_before_every_job(vace, monkeypatch):
    placer = Placer(vace.components, torch.device("cpu"), Wan21Settings())
    placer.place(Placement.RESIDENT)
    moved = []
    monkeypatch.setattr(torch.nn.Module, "_apply", lambda *_, **__: moved.append(1))
    placer.place(Placement.RESIDENT)
    assert not moved


@pytest.mark.parametrize(("limit", "expected"), [(None, 39), (30, 30), (100, 39)])
def test_the_budget_is_the_limit_or_what_is_free_and_ours(limit, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (24 * GIB, 80 * GIB))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 16 * GIB)
    settings = Wan21Settings(vram_limit_gb=limit)
    assert budget_bytes(torch.device("cuda:0"), settings) == expected * GIB
    assert budget_bytes(torch.device("cpu"), settings) is None
    assert budget_bytes(torch.device("mps"), settings) == (None if limit is None else limit * GIB)


def test_a_model_too_large_for_its_own_defaults_still_loads_at_the_leanest(limited, tiny_folder, info_of):
    model = limited(1000)
    info = info_of(tiny_folder("vace"), job_types=wan_defaults())
    assert model.placer.admit_largest(info) is Placement.LEAN
    assert limited(10**12).placer.admit_largest(info) is Placement.TEXT_OFF


def test_eight_bit_copies_of_the_presets_count_where_they_stand():
    plain, rounded = (Job(frames=81, width=480, height=832, rounded=value) for value in (False, True))
    for placement, more in ((Placement.RESIDENT, REAL.transformer_blocks // 2), (Placement.LEAN, 0)):
        assert needed_bytes(placement, REAL, rounded) - needed_bytes(placement, REAL, plain) == more
