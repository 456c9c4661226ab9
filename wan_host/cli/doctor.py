"""``wan-host doctor``: one line per check, and how to mend what is wrong."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from wan_host.hooks import Hooks
    from wan_host.settings import Settings

_MARKS = {"ok": click.style("ok  ", fg="green"), "warn": click.style("warn", fg="yellow"), "bad": click.style("bad ", fg="red")}


class Finding(NamedTuple):
    """The outcome of one check: ``ok``, ``warn`` (works, but look) or ``bad`` (a worker would not work)."""

    level: str
    subject: str
    text: str


@click.command()
def doctor() -> None:
    """Check devices, memory, models, ffmpeg, queue and credentials; exit status 1 if something is wrong."""
    from wan_host.cli.setup import prepare_hooks, prepare_settings
    from wan_host.errors import SettingsError

    try:
        settings = prepare_settings(log_level="error")
    except SettingsError as error:
        _show(Finding("bad", "settings", str(error)))
        sys.exit(1)
    hooks = prepare_hooks(settings)
    checks: tuple[Callable[[Settings, Hooks], Iterator[Finding]], ...] = (
        _devices,
        _disk,
        _plugins,
        _models,
        _ffmpeg,
        _queue,
        _delivery,
    )
    worst = "ok"
    for check in checks:
        try:
            for finding in check(settings, hooks):
                _show(finding)
                worst = "bad" if finding.level == "bad" else worst
        except Exception as error:  # noqa: BLE001  # a check that breaks is a finding, not the end of the others
            _show(Finding("bad", check.__name__.strip("_"), f"{type(error).__name__}: {error}"))
            worst = "bad"
    sys.exit(0 if worst == "ok" else 1)


def _show(finding: Finding) -> None:
    click.echo(f"{_MARKS[finding.level]} {finding.subject:<10} {finding.text}")


def _devices(settings: Settings, _: Hooks) -> Iterator[Finding]:
    from wan_host.lanes.devices import list_devices

    inventory = list_devices()
    for device in inventory.choose(settings.devices):
        yield Finding("ok", "device", f"{device.name}: {device.label}, {device.memory / 2**30:.1f} GiB")
    if inventory.problem:
        yield Finding("bad", "device", f"{inventory.problem}; check the driver with nvidia-smi")
    elif inventory.devices[0].name == "cpu":
        yield Finding("warn", "device", "no GPU was found: small models such as tiny-wan work, Wan 2.1 itself is far too slow")


def _disk(settings: Settings, _: Hooks) -> Iterator[Finding]:
    folder = settings.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    level = "ok" if free >= settings.min_free_bytes else "bad"
    mend = "" if level == "ok" else f"; free some, or set WAN_HOST_DATA_DIR (needed: {settings.min_free_bytes / 1e9:.1f} GB)"
    yield Finding(level, "disk", f"{free / 1e9:.1f} GB free in {folder}{mend}")


def _plugins(settings: Settings, hooks: Hooks) -> Iterator[Finding]:
    for record in hooks.registry.records:
        if record.status == "quarantined":
            yield Finding("bad", "plugin", f"{record.origin}: {record.error}")
    for reason in hooks.registry.missing(settings.required_plugins).values():
        yield Finding("bad", "plugin", reason)
    working = [record.name for record in hooks.registry.records if record.status == "ok"]
    yield Finding("ok", "plugins", ", ".join(working))
    if settings.publisher not in hooks.plugins_with("publish"):
        there = ", ".join(hooks.plugins_with("publish"))
        yield Finding("bad", "plugin", f"WAN_HOST_PUBLISHER: no plugin {settings.publisher!r} publishes; there are {there}")


def _models(settings: Settings, hooks: Hooks) -> Iterator[Finding]:
    from wan_host.model import NO_MODEL

    registry = hooks.registry
    for name, reason in registry.orphans.items():
        yield Finding("bad", "model", f"{name}: {reason}")
    for name, model in registry.models.items():
        missing = model.path.startswith("/") and not Path(model.path).exists()
        text = f"{name}: {model.path} is not there" if missing else f"{name}: {model.path or model.runner}"
        yield Finding("bad" if missing else "ok", "model", text)
    if not registry.models:
        yield Finding("bad", "model", NO_MODEL)
    elif registry.default_model(settings.model) is None:
        yield Finding("warn", "model", "several models and no WAN_HOST_MODEL: jobs must name one in config.model")
    elif settings.model is not None and settings.model not in registry.models:
        yield Finding(
            "bad", "model", f"WAN_HOST_MODEL: {settings.model!r} is offered by no plugin; there are {', '.join(registry.models)}"
        )


def _ffmpeg(_: Settings, __: Hooks) -> Iterator[Finding]:
    from wan_host.encoding import ffmpeg_path

    yield Finding("ok", "ffmpeg", ffmpeg_path())


def _queue(settings: Settings, _: Hooks) -> Iterator[Finding]:
    from wan_host.connection import queue_connection
    from wan_host.errors import WanHostError

    async def look() -> str:
        async with queue_connection(settings) as queue:
            depth = await queue.depth()
            return f"{queue.backend} at {queue.where}: {depth.waiting} waiting, {depth.dead_letters} dead letters"

    try:
        yield Finding("ok", "queue", asyncio.run(look()))
    except WanHostError as error:
        yield Finding("bad", "queue", f"{error}; check WAN_HOST_QUEUE_URL or the UPSTASH_ variables")


def _delivery(settings: Settings, hooks: Hooks) -> Iterator[Finding]:
    strangers = [record.name for record in hooks.registry.records if "deliver_report" in record.hooks and not record.builtin]
    if strangers:
        yield Finding("ok", "reports", f"delivered by {', '.join(strangers)} where configured")
    if settings.callback_url is None and not strangers:
        yield Finding("warn", "reports", "WAN_HOST_CALLBACK_URL is not set: reports go to the log alone")
    if settings.callback_url is not None and settings.job_callback_secret is None:
        yield Finding("warn", "reports", "JOB_CALLBACK_SECRET is not set: reports to WAN_HOST_CALLBACK_URL are not signed")
    elif settings.callback_url is not None:
        yield Finding("ok", "reports", "signed, to WAN_HOST_CALLBACK_URL")
    if settings.wan_worker_api_key is None:
        yield Finding("warn", "http", f"WAN_WORKER_API_KEY is not set: the server listens on {settings.bind_host} only")
