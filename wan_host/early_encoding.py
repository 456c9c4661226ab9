"""Encoding that begins while the lane still makes the clip: frame by frame, as the lane says that they are final.

The file gets the bytes that it would get afterwards. It is only looked at once the lane has returned this very clip; a lane that
fails, or that returns other frames, ends the encoder, which leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from wan_host.errors import GenerationFailed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wan_host.context import HookContext
    from wan_host.encoding import Ready
    from wan_host.media import Media
    from wan_host.request import Clip

_SLICE = 0.2
"""Seconds between looks at cancel and deadline while there is nothing to encode."""
_PATIENCE = 5.0
"""Seconds that an encoder whose file nobody wants has to end; it looks every fraction of a second."""
Encode = Callable[[int, "NDArray[np.uint8]", "Ready | None"], Coroutine[Any, Any, "Media"]]
"""Encodes a clip's frames, by the clip's number; waits for each of them where there is something to wait by."""


class EarlyEncoding:
    """The encoders of one run. Use it on the loop's thread; ``close`` it in the end."""

    def __init__(self, encode: Encode) -> None:
        """``encode`` is called once for each clip, or twice where the lane returns other frames than it had shown."""
        self._encode = encode
        self._begun: dict[int, _Begun] = {}

    def heard(self, number: int, frames: NDArray[np.uint8], count: int) -> None:
        """Take that the first ``count`` of a clip's frames are final."""
        if number not in self._begun:
            self._begun[number] = _Begun(number, frames, self._encode)
        self._begun[number].grow(count)

    async def finish(self, number: int, clip: Clip) -> Media:
        """Return the encoded clip, now that the lane has returned it. Raises what ``encode`` raises."""
        begun = self._begun.get(number)
        if begun is not None and begun.frames is clip.frames:
            begun.grow(len(clip.frames))
            await asyncio.wait({begun.task})  # not cancelled with this caller: `end` waits for its thread
            del self._begun[number]
            return begun.task.result()
        if begun is not None:
            await begun.end()
            del self._begun[number]
        return await self._encode(number, clip.frames, None)

    async def close(self) -> None:
        """End what has not been finished, and wait for it: nobody wants the files."""
        await asyncio.gather(*(begun.end() for begun in self._begun.values()))


class _Begun:
    """A clip whose encoder runs: the loop tells how many of its frames are final, the encoder's thread waits for them."""

    def __init__(self, number: int, frames: NDArray[np.uint8], encode: Encode) -> None:
        self.frames = frames
        self._count = 0
        self._lost = False
        self._changed = threading.Condition()
        self.task = asyncio.create_task(encode(number, frames, self._wait))

    def grow(self, count: int) -> None:
        with self._changed:
            self._count = count
            self._changed.notify_all()

    async def end(self) -> None:
        with self._changed:
            self._lost = True
            self._changed.notify_all()
        await asyncio.wait({self.task}, timeout=_PATIENCE)
        self.task.cancel()
        (ended,) = await asyncio.gather(self.task, return_exceptions=True)
        if not isinstance(ended, BaseException):  # the last look was just before the end
            ended.path.unlink(missing_ok=True)

    def _wait(self, number: int, context: HookContext) -> None:
        with self._changed:
            while not self._lost and self._count <= number:
                context.check()
                self._changed.wait(_SLICE)
            if self._lost:
                raise GenerationFailed("the clip was not finished")
