"""Conditioning on reference frames through VACE."""

from __future__ import annotations

from diffusers import WanVACEPipeline  # noqa: TID253  # this module is imported in a lane only, by ``model``


class VacePipeline(WanVACEPipeline):
    """WanVACEPipeline."""
