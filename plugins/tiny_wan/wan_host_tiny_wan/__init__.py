"""wan-host-tiny-wan: a small trained Wan 2.1 that runs anywhere, served by the wan21 plugin.

It has no code of its own for loading or generating: a ModelInfo that names the runner and the folder is a whole model plugin.
"""

from __future__ import annotations

import os
from pathlib import Path

from wan_host import JobDefaults, ModelInfo, ReferenceMode, SizeBounds, hookimpl, wan_job_types

MODEL_FOLDER = Path(__file__).parent / "model"


@hookimpl
def list_models() -> list[ModelInfo]:
    """Offer ``tiny-wan``; ``WAN_HOST_TINY_WAN_PATH`` serves another folder, such as a variant trained at home, in its place."""
    from wan_host_wan21.catalogue import offered_presets
    from wan_host_wan21.settings import read_settings

    path = os.environ.get("WAN_HOST_TINY_WAN_PATH") or str(MODEL_FOLDER)
    defaults = JobDefaults(media="video", width=128, height=128, frames=17, fps=8, sample_shift=3.0, sample_solver="unipc")
    return [
        ModelInfo(
            name="tiny-wan",
            family="wan",
            runner="wan21",
            path=path,
            presets=offered_presets(Path(path), read_settings()),
            description="A small Wan 2.1 (VACE) trained on drawn shapes: 128x128, runs on a CPU",
            job_types=wan_job_types(defaults, defaults, fast_steps=12, high_steps=24, fast_guidance=3.0, high_guidance=3.0),
            reference_modes=frozenset(ReferenceMode),
            image_to_image=True,
            max_subject_references=4,
            loras=True,
            prompt_tokens=100,  # it was trained on at most 127
            bounds=SizeBounds(min_side=64, max_side=256, max_pixels=256 * 256),
            vram_mib=64,
        )
    ]
