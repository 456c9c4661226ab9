"""What a lane calls: the typed face of the plugins inside the child process, and how the child finds it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from wan_host.context import LaneContext
    from wan_host.model import ModelInfo
    from wan_host.request import Clip, Enhancement, EnhanceRequest, Generation, GenerationRequest

DEFAULT_HOOKS = "wan_host.hooks:lane_hooks"


class LaneHooks(Protocol):
    """The hooks that run in a lane, each already directed at the plugin that serves it. Methods raise what plugins raise."""

    def models(self) -> Mapping[str, ModelInfo]:
        """Return every model that a plugin offers, by name."""

    def load_model(self, model: ModelInfo, context: LaneContext) -> object:
        """Load with the model's runner."""

    def generate(self, request: GenerationRequest, loaded: object, model: ModelInfo, context: LaneContext) -> Generation:
        """Generate with the model's runner."""

    def process_frames(self, plugin_name: str, clip: Clip, request: GenerationRequest, context: LaneContext) -> Clip:
        """Pass one clip through the named frame processor."""

    def enhance_prompt(self, plugin_name: str, request: EnhanceRequest, loaded: object, context: LaneContext) -> Enhancement:
        """Enhance with the named plugin."""


def make_hooks(path: str, options: Mapping[str, object]) -> LaneHooks:
    """Call the factory at ``module:function`` with ``options`` as keywords. Raises what the import or the factory raises."""
    module, _, function = path.partition(":")
    if not module or not function:
        raise ValueError(f"hooks: {path!r} is not allowed; expected 'module:function'")
    return cast("LaneHooks", getattr(importlib.import_module(module), function)(**options))
