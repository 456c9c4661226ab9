"""wan-host-my-plugin: prompts enhanced by a table of phrases. This module holds the hooks alone, and importing it is cheap.

Jobs whose type asks for it (``video7b_fast_enhanced`` and the like) go through here before they are generated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import ModelInfo, hookimpl

if TYPE_CHECKING:
    from wan_host import Enhancement, EnhanceRequest, LaneContext
    from wan_host_my_plugin.enhancer import Enhancer


@hookimpl
def list_models() -> list[ModelInfo]:
    """Offer the model that enhances; name the folder of its weights in ``path`` if it has any."""
    return [ModelInfo(name="my-plugin", family="my_plugin", runner="my_plugin", kind="enhance")]


@hookimpl
def load_model(model: ModelInfo, context: LaneContext) -> Enhancer:
    """Load it: here is the place to import torch and read weights, with ``context.progress()`` after every file."""
    from wan_host_my_plugin.enhancer import Enhancer

    context.progress(f"loading {model.name}")
    return Enhancer()


@hookimpl
def enhance_prompt(request: EnhanceRequest, model: Enhancer, context: LaneContext) -> Enhancement:
    """Rewrite a prompt; a model that takes long calls ``context.progress()`` for every token."""
    return model.enhance(request, context)
