"""wan-host: a plugin-based worker host for GPU video generation.

Plugins import everything they need from here. Names are resolved on first use, so that ``import wan_host`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wan_host.checkpoint import (
        Checkpoint as Checkpoint,
    )
    from wan_host.context import (
        HookContext as HookContext,
        LaneContext as LaneContext,
    )
    from wan_host.errors import (
        DeadlineExceeded as DeadlineExceeded,
        GenerationFailed as GenerationFailed,
        InvalidJob as InvalidJob,
        JobCancelled as JobCancelled,
        ModelLoadFailed as ModelLoadFailed,
        OutOfMemory as OutOfMemory,
        PermanentError as PermanentError,
        PluginError as PluginError,
        PublishFailed as PublishFailed,
        PublishRefused as PublishRefused,
        ReferenceRejected as ReferenceRejected,
        ReferenceUnreachable as ReferenceUnreachable,
        RetryableError as RetryableError,
        SettingsError as SettingsError,
        UnsupportedRequest as UnsupportedRequest,
        WanHostError as WanHostError,
    )
    from wan_host.frame_processors import (
        FrameProcessor as FrameProcessor,
    )
    from wan_host.hookspecs import (
        PluginCommand as PluginCommand,
        WorkerInfo as WorkerInfo,
        hookimpl as hookimpl,
    )
    from wan_host.lanes.devices import (
        list_devices as list_devices,
    )
    from wan_host.media import (
        DerivedFile as DerivedFile,
        Media as Media,
        OutputFile as OutputFile,
        PublishedFile as PublishedFile,
    )
    from wan_host.model import (
        JobDefaults as JobDefaults,
        ModelInfo as ModelInfo,
        ReferenceMode as ReferenceMode,
        SizeBounds as SizeBounds,
        wan_job_types as wan_job_types,
    )
    from wan_host.plugin_settings import (
        PluginSettings as PluginSettings,
        expanded as expanded,
    )
    from wan_host.report import (
        Delivery as Delivery,
        Report as Report,
        parse_retry_after as parse_retry_after,
    )
    from wan_host.request import (
        Clip as Clip,
        Enhancement as Enhancement,
        EnhanceRequest as EnhanceRequest,
        FrameStep as FrameStep,
        Generation as Generation,
        GenerationRequest as GenerationRequest,
        Lora as Lora,
        References as References,
    )

_MODULES = {
    "checkpoint": ("Checkpoint",),
    "context": ("HookContext", "LaneContext"),
    "errors": (
        "DeadlineExceeded",
        "GenerationFailed",
        "InvalidJob",
        "JobCancelled",
        "ModelLoadFailed",
        "OutOfMemory",
        "PermanentError",
        "PluginError",
        "PublishFailed",
        "PublishRefused",
        "ReferenceRejected",
        "ReferenceUnreachable",
        "RetryableError",
        "SettingsError",
        "UnsupportedRequest",
        "WanHostError",
    ),
    "frame_processors": ("FrameProcessor",),
    "hookspecs": ("PluginCommand", "WorkerInfo", "hookimpl"),
    "lanes.devices": ("list_devices",),
    "media": ("DerivedFile", "Media", "OutputFile", "PublishedFile"),
    "model": ("JobDefaults", "ModelInfo", "ReferenceMode", "SizeBounds", "wan_job_types"),
    "plugin_settings": ("PluginSettings", "expanded"),
    "report": ("Delivery", "Report", "parse_retry_after"),
    "request": ("Clip", "EnhanceRequest", "Enhancement", "FrameStep", "Generation", "GenerationRequest", "Lora", "References"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604  # computed from the table above; a test checks every name


def __getattr__(name: str) -> object:
    """Import the module that defines ``name`` on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names before their first use, too."""
    return sorted({*globals(), *__all__})
