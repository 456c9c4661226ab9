"""Room in a device's memory: who goes for whom."""

from __future__ import annotations

import asyncio

import pytest

from wan_host.errors import LaneCrashed
from wan_host.lanes.state import LaneState
from wan_host.model import ModelInfo
from wan_host.vram import Resident, VramBudget, to_unload

MODELS = {
    name: ModelInfo(name=name, family="f", runner="r", vram_mib=mib)
    for name, mib in {"wan": 10_000, "other": 8_000, "qwen": 15_000, "silent": 0}.items()
}


class FakeLane:
    """A lane that loads at once."""

    def __init__(self, name, device="cuda:0", kind="generate"):
        self.state = LaneState(name=name, kind=kind, device=device, device_name="a GPU", status="idle")
        self.unloaded = []
        self.fault = None

    def load(self, *models):
        self.state = LaneState(
            name=self.state.name,
            kind=self.state.kind,
            device=self.state.device,
            device_name="a GPU",
            status="idle",
            loaded=models,
        )

    async def unload(self, model):
        self.unloaded.append(model)
        if self.fault:
            raise self.fault
        self.load(*(name for name in self.state.loaded if name != model))


@pytest.fixture
def lanes():
    return FakeLane("generate"), FakeLane("enhance", kind="enhance")


def budget(lanes, gib=24):
    return VramBudget(lanes=lanes, models=MODELS, limits_mib={"cuda:0": gib * 1024})


async def use(pool, lane, model):
    async with pool.room_for(lane, model):
        await asyncio.sleep(0.01)
        lane.load(*dict.fromkeys([*lane.state.loaded, model]))


async def test_models_that_fit_stay(lanes):
    generate, enhance = lanes
    pool = budget(lanes, gib=25)
    await use(pool, generate, "wan")
    await use(pool, enhance, "qwen")
    assert generate.unloaded == enhance.unloaded == []


async def test_the_one_that_rested_longest_goes_whichever_lane_holds_it(lanes):
    generate, enhance = lanes
    pool = budget(lanes)
    await use(pool, enhance, "qwen")
    await use(pool, generate, "other")
    await use(pool, enhance, "qwen")
    await use(pool, generate, "wan")
    assert (generate.unloaded, enhance.unloaded) == (["other"], ["qwen"]), "8 + 15 + 10 GB do not fit in 24, nor do 15 + 10"


async def test_what_a_call_uses_stays_even_if_it_is_still_loading(lanes):
    generate, enhance = lanes
    pool = budget(lanes, gib=16)
    async with pool.room_for(enhance, "qwen"):
        await use(pool, generate, "wan")
    assert enhance.unloaded == []
    await use(pool, generate, "silent")
    assert generate.unloaded == [], "a model of unknown size takes nobody's place"


async def test_a_lane_that_works_is_not_waited_for(lanes):
    generate, enhance = lanes
    pool = budget(lanes, gib=20)
    await use(pool, generate, "other")
    async with pool.room_for(generate, "silent"):
        await use(pool, enhance, "qwen")
    assert generate.unloaded == []


async def test_a_model_that_is_there_needs_no_room_and_other_devices_are_left_alone(lanes):
    generate, _ = lanes
    elsewhere = FakeLane("generate-2", device="cuda:1")
    elsewhere.load("qwen")
    pool = budget((*lanes, elsewhere), gib=4)
    await use(pool, generate, "wan")
    await use(pool, generate, "wan")
    assert generate.unloaded == elsewhere.unloaded == []
    await use(pool, elsewhere, "other")
    assert elsewhere.unloaded == [], "no limit is known for cuda:1"


async def test_a_lane_that_dies_while_it_unloads_fails_nobody_elses_job(lanes):
    generate, enhance = lanes
    pool = budget(lanes, gib=16)
    await use(pool, enhance, "qwen")
    enhance.fault = LaneCrashed("lane enhance ended")
    await use(pool, generate, "wan")
    assert generate.state.loaded == ("wan",)


async def test_two_that_load_at_once_do_not_unload_each_other(lanes):
    generate, enhance = lanes
    pool = budget(lanes)
    await asyncio.gather(use(pool, generate, "wan"), use(pool, enhance, "qwen"))
    assert generate.unloaded == enhance.unloaded == []


def test_no_more_goes_than_has_to():
    there = [Resident("a", name, 5, used_at, bound=False) for name, used_at in (("old", 1.0), ("young", 2.0))]
    assert to_unload(there, needed_mib=3, limit_mib=10) == there[:1]
    assert to_unload(there, needed_mib=0, limit_mib=10) == []
    assert to_unload(there, needed_mib=30, limit_mib=10) == there
