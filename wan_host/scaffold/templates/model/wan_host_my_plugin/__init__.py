"""wan-host-my-plugin: the model ``my-plugin``, a fine-tuned Wan 2.1 that the plugin ``wan21`` loads and runs.

It has no code for loading or generating: a ModelInfo that names the runner and the weights is a whole model plugin.
"""

from __future__ import annotations

from wan_host import JobDefaults, ModelInfo, ReferenceMode, hookimpl, wan_job_types

# What a job gets that does not say otherwise. Frames and size are those that the model was trained for.
DEFAULTS = JobDefaults(media="video", width=480, height=832, frames=81, fps=16, sample_shift=5.0, sample_solver="unipc")


@hookimpl
def list_models() -> list[ModelInfo]:
    """Offer ``my-plugin``."""
    from wan_host_my_plugin.settings import Settings

    types = wan_job_types(DEFAULTS, DEFAULTS, fast_steps=25, high_steps=50, fast_guidance=5.0, high_guidance=6.0)
    return [
        ModelInfo(
            name="my-plugin",
            family="wan",
            runner="wan21",
            path=Settings.read().path,
            description="A fine-tuned Wan 2.1",
            job_types=types,
            # frozenset(ReferenceMode) for a fine-tuned VACE, which also takes image_to_image=True
            reference_modes=frozenset({ReferenceMode.NONE}),
            loras=True,
            vram_mib=0,  # what the weights need; 0: unknown
        )
    ]
