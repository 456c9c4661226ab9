"""What most commands start with: settings, logging, plugins."""

from __future__ import annotations

import os
from collections.abc import Mapping

import structlog

from wan_host import logs
from wan_host.builtin import log as log_reports
from wan_host.builtin.callback import HttpCallback
from wan_host.builtin.local import LocalPublisher
from wan_host.errors import SettingsError
from wan_host.hooks import Hooks
from wan_host.model import NO_MODEL
from wan_host.plugins import discover
from wan_host.settings import Settings, load_settings, unknown_settings

log = structlog.get_logger("wan_host.settings")


def prepare_settings(flags: Mapping[str, object] | None = None, *, log_level: str | None = None) -> Settings:
    """Read the settings and set up logging.

    Flags of the command line enter through the environment, so that lanes and plugins see the same values as the host.
    """
    for name, value in (flags or {}).items():
        if value is not None:
            os.environ[f"WAN_HOST_{name.upper()}"] = str(value)
    settings = load_settings()
    logs.configure(settings.log_format, log_level or settings.log_level)
    return settings


def prepare_hooks(settings: Settings) -> Hooks:
    """Find the plugins, the host's own among them. Warns of variables and entries of the file that nobody reads."""
    builtins: dict[str, object] = {
        "local": LocalPublisher(settings.outputs_path, settings.bucket),
        "log": log_reports,
    }
    if settings.callback_url is not None:
        secret = settings.job_callback_secret
        builtins["callback"] = HttpCallback(
            settings.callback_url,
            secret=secret.get_secret_value() if secret else None,
            bearer=None,
            timeout=settings.callback_timeout,
        )
    registry = discover(builtins=builtins, disabled=settings.disabled_plugins)
    for line in unknown_settings(record.name for record in registry.records):
        log.warning("unknown setting", problem=line)
    return Hooks(registry)


def warn_of_no_model(hooks: Hooks) -> None:
    """Log how to get a model where there is none: the worker starts, but is not ready."""
    if not any(model.kind == "generate" for model in hooks.models().values()):
        log.warning("jobs cannot be run", problem=NO_MODEL)


def check_publisher(settings: Settings, hooks: Hooks) -> None:
    """Raise SettingsError where the chosen publisher is not there: every job would fail after its generation."""
    there = hooks.plugins_with("publish")
    if settings.publisher not in there:
        names = ", ".join(there) or "none"
        raise SettingsError(f"WAN_HOST_PUBLISHER: {settings.publisher!r} is no working plugin that publishes; there are: {names}")
    if settings.checkpoint_store and settings.publisher not in hooks.plugins_with("fetch_reference"):
        raise SettingsError(
            f"WAN_HOST_CHECKPOINT_STORE: true is not allowed with the publisher {settings.publisher!r}: it reads nothing back; "
            "it needs a plugin with the hooks publish and fetch_reference"
        )


def check_job_types(settings: Settings, hooks: Hooks) -> None:
    """Raise SettingsError for a deadline of a job type that no model has: it would never act."""
    types = {name for model in hooks.models().values() for name in model.job_types}
    if unknown := sorted(settings.job_deadlines.keys() - types):
        there = ", ".join(sorted(types)) or "none"
        raise SettingsError(f"WAN_HOST_JOB_DEADLINES: no model has the job type {unknown[0]!r}; there are: {there}")
