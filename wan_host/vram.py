"""Which models stay in a device's memory: before a model is loaded, others make room for it, those first that rested longest.

Lanes only obey: a model in the enhance lane is unloaded for one in the generate lane of the same device, and the other way
round. Sizes are what models say of their weights; a model that does not say is neither counted nor unloaded.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from wan_host.errors import WanHostError
from wan_host.lanes.state import LaneState
from wan_host.model import ModelInfo

log = structlog.get_logger("wan_host.vram")


class Unloads(Protocol):
    """What is needed of a lane."""

    @property
    def state(self) -> LaneState: ...  # noqa: D102  # a lane's own

    async def unload(self, model: str) -> None: ...  # noqa: D102  # a lane's own


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in a lane: its size in MiB, when it was last used, and whether it cannot go now."""

    lane: str
    model: str
    mib: int
    used_at: float
    bound: bool


def to_unload(residents: Sequence[Resident], needed_mib: int, limit_mib: int) -> list[Resident]:
    """Return what has to go so that ``needed_mib`` fits beside the rest: nothing bound, the longest unused first.

    Where all of it is not enough, all of it goes: the runner then places its model as lean as it can, or refuses.
    """
    over = sum(resident.mib for resident in residents) + needed_mib - limit_mib
    chosen = []
    for resident in sorted(residents, key=lambda resident: resident.used_at):
        if over <= 0:
            break
        if resident.mib and not resident.bound:
            chosen.append(resident)
            over -= resident.mib
    return chosen


class VramBudget:
    """The memory of a worker's devices, shared by its lanes."""

    def __init__(self, *, lanes: Sequence[Unloads], models: Mapping[str, ModelInfo], limits_mib: Mapping[str, int]) -> None:
        """``limits_mib``: what the worker may use of each device, by the device's name; one that is not named has no limit."""
        self._lanes, self._models, self._limits = lanes, models, limits_mib
        self._in_use: Counter[tuple[str, str]] = Counter()
        self._used_at: dict[tuple[str, str], float] = {}
        self._turns = {device: asyncio.Lock() for device in limits_mib}

    @asynccontextmanager
    async def room_for(self, lane: Unloads, model: str) -> AsyncIterator[None]:
        """Unload what has to go before ``lane`` loads ``model``, and let it stay for as long as the block lasts."""
        device, key = lane.state.device, (lane.state.name, model)
        if device in self._turns:
            async with self._turns[device]:
                await self._make_room(lane, model)
                self._in_use[key] += 1
        else:
            self._in_use[key] += 1
        try:
            yield
        finally:
            self._in_use[key] -= 1
            self._used_at[key] = time.monotonic()

    async def _make_room(self, lane: Unloads, model: str) -> None:
        state = lane.state
        residents = self._residents(state.device, asking=state.name)
        if any((resident.lane, resident.model) == (state.name, model) for resident in residents):
            return
        lanes = {other.state.name: other for other in self._lanes}
        for resident in to_unload(residents, self._models[model].vram_mib, self._limits[state.device]):
            log.info("model is unloaded to make room", model=resident.model, lane=resident.lane, wanted=model, mib=resident.mib)
            try:
                await lanes[resident.lane].unload(resident.model)
            except WanHostError as error:  # a lane that ends gives its memory back all the same
                log.warning("model could not be unloaded", model=resident.model, lane=resident.lane, error=str(error))

    def _residents(self, device: str, *, asking: str) -> list[Resident]:
        """Return what is loaded on a device, and what running calls are about to load.

        A lane unloads between calls only, so that all that another lane holds is bound while a call runs there.
        """
        states = [lane.state for lane in self._lanes if lane.state.device == device]
        names = {state.name for state in states}
        used = {key for key, calls in self._in_use.items() if calls and key[0] in names}
        busy = {lane for lane, _ in used if lane != asking}
        there = used | {(state.name, model) for state in states for model in state.loaded}
        return [
            Resident(
                lane=lane,
                model=model,
                mib=self._models[model].vram_mib,
                used_at=self._used_at.get((lane, model), 0.0),
                bound=lane in busy or (lane, model) in used,
            )
            for lane, model in sorted(there)
        ]
