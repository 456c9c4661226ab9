"""wan-host: a plugin-based worker host for GPU video generation.

Plugins import everything they need from here. Names are resolved on first use, so that ``import wan_host`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wan_host.context import HookContext, LaneContext
    from wan_host.errors import (
        DeadlineExceeded,
        GenerationFailed,
        InvalidJob,
        JobCancelled,
        ModelLoadFailed,
        OutOfMemory,
        PermanentError,
        PluginError,
        PublishFailed,
        PublishRefused,
        ReferenceRejected,
        ReferenceUnreachable,
        RetryableError,
        SettingsError,
        UnsupportedRequest,
        WanHostError,
    )
    from wan_host.hookspecs import PluginCommand, WorkerInfo, hookimpl
    from wan_host.media import DerivedFile, Media, OutputFile, PublishedFile
    from wan_host.model import JobDefaults, ModelInfo, ReferenceMode, SizeBounds, wan_job_types
    from wan_host.report import Delivery, Report
    from wan_host.request import Clip, Enhancement, EnhanceRequest, Generation, GenerationRequest, Lora, References

_MODULES = {
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
    "hookspecs": ("PluginCommand", "WorkerInfo", "hookimpl"),
    "media": ("DerivedFile", "Media", "OutputFile", "PublishedFile"),
    "model": ("JobDefaults", "ModelInfo", "ReferenceMode", "SizeBounds", "wan_job_types"),
    "report": ("Delivery", "Report"),
    "request": ("Clip", "EnhanceRequest", "Enhancement", "Generation", "GenerationRequest", "Lora", "References"),
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
