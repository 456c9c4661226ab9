"""wan-host-wan21: Wan 2.1 on diffusers. This module holds the hooks alone, and importing it imports nothing heavy.

The way of a job: ``generation`` chooses a route by the request, ``embeddings`` encodes the prompts, ``sampling`` runs one of
diffusers' own pipelines over the loaded ``components``, ``decoding`` turns latents into frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wan_host import Generation, GenerationRequest, LaneContext, ModelInfo, PluginCommand
    from wan_host_wan21.model import Wan21


@hookimpl
def list_models() -> Iterable[ModelInfo]:
    """Offer the official checkpoints that are on disk, and the models of the settings' table."""
    from wan_host_wan21.catalogue import offered_models
    from wan_host_wan21.settings import read_settings

    return offered_models(read_settings())


@hookimpl
def load_model(model: ModelInfo, context: LaneContext) -> Wan21:
    """Load a folder in the diffusers layout; models of other plugins come here by naming ``runner="wan21"``."""
    from pathlib import Path

    from wan_host_wan21.reading_ahead import read_ahead
    from wan_host_wan21.waking import uncollected, wake

    read_ahead(Path(model.path).expanduser())  # the disk is busy while the next lines import torch for seconds
    with uncollected():
        wake(context.device)
        from wan_host_wan21.model import load

    return load(model, context)


@hookimpl
def generate(request: GenerationRequest, model: Wan21, context: LaneContext) -> Generation:
    """Make the clips of one job."""
    from wan_host_wan21.generation import generate as run

    return run(request, model, context)


@hookimpl
def add_commands() -> Iterable[PluginCommand]:
    """Add ``wan-host models pull``, ``fake`` and ``import``."""
    from wan_host_wan21.commands import offered_commands

    return offered_commands()
