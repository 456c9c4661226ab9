"""What the plugin does to a prompt. Put your model in place of the phrases."""

from __future__ import annotations

import zlib

from wan_host import Enhancement, EnhanceRequest, LaneContext

_LIGHT = ("soft morning light", "warm evening light", "clear daylight", "dim light with deep shadows")
_CAMERA = ("the camera stands still", "the camera follows slowly", "a slow push in", "a wide shot from a distance")
_LONG_ENOUGH = 40
"""Words; a prompt that long says what it wants."""


class Enhancer:
    """Adds light, and for videos the camera, to prompts that say nothing of them."""

    def enhance(self, request: EnhanceRequest, context: LaneContext) -> Enhancement:
        """Return the longer prompt, or the original and why. The same prompt always gets the same phrases."""
        context.progress()
        prompt = request.prompt
        if len(prompt.split()) >= _LONG_ENOUGH:
            return Enhancement(prompt=prompt, source="none", reason="the prompt is long enough")
        number = zlib.crc32(prompt.encode())
        added = [_LIGHT[number % len(_LIGHT)]] if "light" not in prompt else []
        if request.media == "video" and "camera" not in prompt:
            added.append(_CAMERA[number // len(_LIGHT) % len(_CAMERA)])
        if not added:
            return Enhancement(prompt=prompt, source="none", reason="the prompt names light and camera itself")
        return Enhancement(prompt=", ".join([prompt.rstrip(" .,"), *added]), source="my-plugin")
