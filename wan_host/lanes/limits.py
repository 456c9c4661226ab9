"""How long a lane may take for what, before its supervisor ends it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """Limits of a lane, all in seconds except ``start_failures``. Silence is the time without a heartbeat.

    ``start``: from the start of the child to its hello; it imports every plugin, and torch on a cold disk is slow.
    ``accept``: until a lane that should be idle says that it has begun a call.
    ``load``: loading a model, whatever it reports; ``load_silence``: between two signs of progress while it loads.
    ``step``: between two denoising steps; the first includes compilation. ``stage``: silence in any other stage.
    ``cancel_grace``: from a cancel, or a passed deadline, until the lane is killed; one step should fit.
    ``stop``: for a lane to unload and end by itself. ``kill``: for the system to remove a killed process.
    ``restart_pause``: before the second start after a failure, doubled with each further one.
    ``start_failures``: so many children in a row that did not start, or died before they had done any work, make the lane
    ``failed``; it then tries again after ``failed_pause``, doubled each time up to ten times as long.
    """

    start: float = 120.0
    accept: float = 20.0
    load: float = 900.0
    load_silence: float = 300.0
    step: float = 300.0
    stage: float = 300.0
    cancel_grace: float = 30.0
    stop: float = 10.0
    kill: float = 60.0
    restart_pause: float = 0.5
    start_failures: int = 5
    failed_pause: float = 60.0

    def __post_init__(self) -> None:
        """Refuse limits that are not positive."""
        for item in fields(self):
            if getattr(self, item.name) <= 0:
                raise ValueError(f"{item.name}: {getattr(self, item.name)!r} is not allowed; it must be above 0")

    def silence(self, stage: str) -> float:
        """Seconds without a heartbeat that ``stage`` is allowed; an empty name is a call that has not begun."""
        return {"": self.accept, "load": self.load_silence, "denoise": self.step}.get(stage, self.stage)
