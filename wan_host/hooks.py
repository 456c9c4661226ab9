"""Typed calls of the hooks: the only file that goes through pluggy to reach a plugin.

Calls that go to one plugin raise PluginError where that plugin is missing or has no such hook.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pluggy

from wan_host.context import HookContext, LaneContext
from wan_host.errors import PluginError
from wan_host.hookspecs import PluginCommand, WorkerInfo
from wan_host.media import DerivedFile, Media, OutputFile, PublishedFile
from wan_host.model import ModelInfo
from wan_host.plugins import PluginRegistry, discover
from wan_host.report import Delivery, Report
from wan_host.request import Clip, Enhancement, EnhanceRequest, Generation, GenerationRequest


class Hooks:
    """Every hook as a method. Methods block: the host calls them in threads, a lane on its main thread."""

    def __init__(self, registry: PluginRegistry) -> None:
        """``registry`` holds the plugins of this process."""
        self.registry = registry
        self._callers: dict[tuple[str, str], pluggy.HookCaller] = {}

    def models(self) -> Mapping[str, ModelInfo]:
        """Return every model that can run."""
        return self.registry.models

    def plugins_with(self, hook: str) -> tuple[str, ...]:
        """Return the names of the working plugins that implement a hook, built-in ones first, then by name."""
        working = [record for record in self.registry.records if record.status == "ok" and hook in record.hooks]
        return tuple(record.name for record in sorted(working, key=lambda record: (not record.builtin, record.name)))

    def load_model(self, model: ModelInfo, context: LaneContext) -> object:
        """Load a model by its runner."""
        return self._one("load_model", model.runner)(model=model, context=context)

    def generate(self, request: GenerationRequest, loaded: object, model: ModelInfo, context: LaneContext) -> Generation:
        """Generate with a loaded model."""
        result = self._one("generate", model.runner)(request=request, model=loaded, context=context)
        return cast("Generation", result)

    def enhance_prompt(self, plugin_name: str, request: EnhanceRequest, loaded: object, context: LaneContext) -> Enhancement:
        """Enhance a prompt by one plugin with its loaded model."""
        return cast("Enhancement", self._one("enhance_prompt", plugin_name)(request=request, model=loaded, context=context))

    def process_frames(self, plugin_name: str, clip: Clip, request: GenerationRequest, context: LaneContext) -> Clip:
        """Let one plugin change a clip's frames."""
        return cast("Clip", self._one("process_frames", plugin_name)(clip=clip, request=request, context=context))

    def postprocess(self, media: Media, context: HookContext) -> list[DerivedFile]:
        """Collect the files that all plugins derive from an asset, in the order of the plugins' names."""
        return [
            file
            for name in self.plugins_with("postprocess")
            for result in [self._one("postprocess", name)(media=media, context=context)]
            for files in result
            for file in files or ()
        ]

    def publish(self, plugin: str, file: OutputFile, context: HookContext) -> PublishedFile:
        """Publish one file by one plugin."""
        return cast("PublishedFile", self._one("publish", plugin)(file=file, context=context))

    def fetch_reference(self, uri: str, context: HookContext) -> bytes | None:
        """Ask the plugins for a reference of a private store; the first that claims it answers."""
        return cast("bytes | None", self.registry.manager.hook.fetch_reference(uri=uri, context=context))

    def deliver_report(self, plugin: str, report: Report, context: HookContext) -> Delivery | None:
        """Send a report to one sink. An exception of the plugin's counts as a fault that may pass."""
        try:
            results = self._one("deliver_report", plugin)(report=report, context=context)
        except Exception as error:  # noqa: BLE001  # the hook's contract: any exception is a retry
            return Delivery(outcome="retry", note=f"{plugin}: {type(error).__name__}: {error}")
        return cast("Delivery | None", next(iter(results), None))

    def worker_started(self, plugin: str, worker: WorkerInfo) -> None:
        """Tell one plugin that the worker is ready."""
        self._one("worker_started", plugin)(worker=worker)

    def worker_stopping(self, plugin: str, worker: WorkerInfo) -> None:
        """Tell one plugin that the worker takes no more jobs."""
        self._one("worker_stopping", plugin)(worker=worker)

    def add_commands(self) -> list[PluginCommand]:
        """Collect the commands of all plugins; one that raises is quarantined."""
        commands: list[PluginCommand] = []
        for record in self.registry.records:
            if record.status == "ok" and "add_commands" in record.hooks:
                try:
                    commands += [command for result in self._one("add_commands", record.name)() for command in result]
                except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stranger's code raises
                    self.registry.quarantine(record, error)
        return commands

    def _one(self, hook: str, plugin: str) -> Any:
        caller = self._callers.get((hook, plugin))
        if caller is None:
            manager = self.registry.manager
            if plugin not in self.plugins_with(hook):
                raise PluginError(f"no working plugin {plugin!r} has the hook {hook}")
            others = [other for name, other in manager.list_name_plugin() if name != plugin and other is not None]
            caller = self._callers[hook, plugin] = manager.subset_hook_caller(hook, others)
        return caller


def lane_hooks() -> Hooks:
    """Return the hooks as a lane needs them: the same plugins as the host's, without the built-in ones."""
    from wan_host.settings import load_settings

    return Hooks(discover(disabled=load_settings().disabled_plugins))
