"""wan-host-qwen-enhance: prompts extended by a causal language model. This module holds the hooks alone.

The way of a prompt: ``instruction`` says what to write, ``model`` writes it, ``checks`` judges it, and ``enhancement`` decides
what is used in the end. Importing this module imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wan_host import Enhancement, EnhanceRequest, LaneContext, ModelInfo
    from wan_host_qwen_enhance.enhancement import Enhancer


@hookimpl
def list_models() -> Iterable[ModelInfo]:
    """Offer the model of the settings; none where none is configured and the default is not on disk."""
    from wan_host_qwen_enhance.catalogue import offered_models
    from wan_host_qwen_enhance.settings import read_settings

    return offered_models(read_settings())


@hookimpl
def load_model(model: ModelInfo, context: LaneContext) -> Enhancer:
    """Load the model's tokenizer and weights."""
    from wan_host_qwen_enhance.enhancement import Enhancer
    from wan_host_qwen_enhance.model import load
    from wan_host_qwen_enhance.settings import read_settings

    settings = read_settings()
    return Enhancer(load(model, settings, context), settings)


@hookimpl
def enhance_prompt(request: EnhanceRequest, model: Enhancer, context: LaneContext) -> Enhancement:
    """Extend a prompt; where the result is no good, return the original and say why."""
    return model.enhance(request, context)
