"""Typed calls of the hooks: the only file that goes through pluggy to reach a plugin.

Calls that go to one plugin raise PluginError where that plugin is missing or has no such hook.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from wan_host.context import HookContext, LaneContext
from wan_host.errors import PluginError, WanHostError
from wan_host.frame_processors import FrameProcessor
from wan_host.hookspecs import PluginCommand, WorkerInfo
from wan_host.media import DerivedFile, Media, OutputFile, PublishedFile
from wan_host.model import ModelInfo
from wan_host.payload import is_path_segment
from wan_host.plugins import PluginRegistry, discover
from wan_host.report import Delivery, DeliveryOutcome, Report
from wan_host.request import Clip, Enhancement, EnhanceRequest, Generation, GenerationRequest

T = TypeVar("T")


class Hooks:
    """Every hook as a method. Methods block: the host calls them in threads, a lane on its main thread.

    What a plugin returns is checked here; PluginError names the plugin that returned something else.
    """

    def __init__(self, registry: PluginRegistry) -> None:
        """``registry`` holds the plugins of this process."""
        self.registry = registry

    def models(self) -> Mapping[str, ModelInfo]:
        """Return every model that can run."""
        return self.registry.models

    def frame_processors(self) -> Mapping[str, FrameProcessor]:
        """Return what ``config.postprocess`` may name, and what each makes of a clip's shape."""
        return self.registry.frame_processors

    def plugins_with(self, hook: str) -> tuple[str, ...]:
        """Return the names of the working plugins that implement a hook, built-in ones first, then by name."""
        working = [record for record in self.registry.records if record.status == "ok" and hook in record.hooks]
        return tuple(record.name for record in sorted(working, key=lambda record: (not record.builtin, record.name)))

    def load_model(self, model: ModelInfo, context: LaneContext) -> object:
        """Load a model by its runner."""
        return self._one("load_model", model.runner, model=model, context=context)

    def generate(self, request: GenerationRequest, loaded: object, model: ModelInfo, context: LaneContext) -> Generation:
        """Generate with a loaded model."""
        result = self._one("generate", model.runner, request=request, model=loaded, context=context)
        return _expected(result, Generation, model.runner, "generate")

    def enhance_prompt(self, plugin_name: str, request: EnhanceRequest, loaded: object, context: LaneContext) -> Enhancement:
        """Enhance a prompt by one plugin with its loaded model."""
        result = self._one("enhance_prompt", plugin_name, request=request, model=loaded, context=context)
        return _expected(result, Enhancement, plugin_name, "enhance_prompt")

    def process_frames(self, plugin_name: str, clip: Clip, request: GenerationRequest, context: LaneContext) -> Clip:
        """Let one plugin change a clip's frames."""
        result = self._one("process_frames", plugin_name, clip=clip, request=request, context=context)
        return _expected(result, Clip, plugin_name, "process_frames")

    def postprocess(self, media: Media, context: HookContext) -> list[DerivedFile]:
        """Collect the files that all plugins derive from an asset, in the order of the plugins' names."""
        files: dict[str, DerivedFile] = {}
        makers: dict[str, str] = {"asset": "the asset itself"}
        for plugin in self.plugins_with("postprocess"):
            for result in self._one("postprocess", plugin, media=media, context=context):
                for item in _items(result, plugin, "postprocess"):
                    file = _check_derived(_expected(item, DerivedFile, plugin, "postprocess"), media, plugin)
                    if file.role in makers:
                        raise PluginError(
                            f"plugin {plugin}: postprocess made a file of the role {file.role!r}, as did {makers[file.role]}"
                        )
                    files[file.role], makers[file.role] = file, f"plugin {plugin}"
        return list(files.values())

    def publish(self, plugin: str, file: OutputFile, context: HookContext) -> PublishedFile:
        """Publish one file by one plugin."""
        return _expected(self._one("publish", plugin, file=file, context=context), PublishedFile, plugin, "publish")

    def fetch_reference(self, uri: str, context: HookContext) -> bytes | None:
        """Ask the plugins for a reference of a private store, by name; the first that claims it answers.

        One that fails without a verdict of its own (a WanHostError) does not keep the others from being asked.
        """
        fault: Exception | None = None
        for plugin in self.plugins_with("fetch_reference"):
            try:
                data = self._one("fetch_reference", plugin, uri=uri, context=context)
            except WanHostError:
                raise
            except Exception as error:  # noqa: BLE001  # raised again if no other plugin has the reference
                fault = fault or error
                continue
            if data is not None:
                return _expected(data, bytes, plugin, "fetch_reference")
        if fault is not None:
            raise fault
        return None

    def deliver_report(self, plugin: str, report: Report, context: HookContext) -> Delivery | None:
        """Send a report to one sink. An exception of the plugin's counts as a fault that may pass."""
        try:
            results = self._one("deliver_report", plugin, report=report, context=context)
            answers = [_expected(result, Delivery, plugin, "deliver_report") for result in results]
            if any(answer.outcome not in get_args(DeliveryOutcome) for answer in answers):
                raise PluginError(f"plugin {plugin}: deliver_report answered {answers[0].outcome!r}")
        except Exception as error:  # noqa: BLE001  # the hook's contract: any exception is a retry
            return Delivery(outcome="retry", note=f"{plugin}: {type(error).__name__}: {error}")
        return next(iter(answers), None)

    def worker_started(self, plugin: str, worker: WorkerInfo) -> None:
        """Tell one plugin that the worker is ready."""
        self._one("worker_started", plugin, worker=worker)

    def worker_stopping(self, plugin: str, worker: WorkerInfo) -> None:
        """Tell one plugin that the worker takes no more jobs."""
        self._one("worker_stopping", plugin, worker=worker)

    def add_commands(self) -> list[PluginCommand]:
        """Collect the commands of all plugins; one that raises is quarantined."""
        commands: list[PluginCommand] = []
        for record in self.registry.records:
            if record.status == "ok" and "add_commands" in record.hooks:
                try:
                    offered = [
                        item
                        for result in self._one("add_commands", record.name)
                        for item in _items(result, record.name, "add_commands")
                    ]
                    commands += [_expected(command, PluginCommand, record.name, "add_commands") for command in offered]
                except Exception as error:  # noqa: BLE001  # whatever a stranger's code raises
                    self.registry.quarantine(record, error)
        return commands

    def _one(self, hook: str, plugin: str, **arguments: object) -> Any:
        """Call one hook of one plugin."""
        if plugin not in self.plugins_with(hook):
            there = ", ".join(self.plugins_with(hook)) or "none"
            raise PluginError(f"no working plugin {plugin!r} has the hook {hook}; there are: {there}")
        manager = self.registry.manager
        others = [other for name, other in manager.list_name_plugin() if name != plugin and other is not None]
        try:
            return manager.subset_hook_caller(hook, others)(**arguments)
        except (SystemExit, StopIteration) as error:  # the one would end the event loop, the other cannot leave a thread
            raise RuntimeError(f"plugin {plugin}: {hook} raised {type(error).__name__}: {error}") from error


def _expected(value: object, kind: type[T], plugin: str, hook: str) -> T:
    if not isinstance(value, kind):
        raise PluginError(f"plugin {plugin}: {hook} returned {type(value).__name__}, expected {kind.__name__}")
    return value


def _items(value: object, plugin: str, hook: str) -> Iterable[object]:
    if not isinstance(value, Iterable):
        raise PluginError(f"plugin {plugin}: {hook} returned {type(value).__name__}, expected a list")
    return value


def _check_derived(file: DerivedFile, media: Media, plugin: str) -> DerivedFile:
    if not is_path_segment(file.role):
        raise PluginError(f"plugin {plugin}: postprocess made a file of the role {file.role!r}; use letters, digits, . _ and -")
    if file.asset_index != media.asset_index:
        raise PluginError(f"plugin {plugin}: postprocess made a file for asset {file.asset_index} when given {media.asset_index}")
    if not file.path.is_file():
        raise PluginError(f"plugin {plugin}: postprocess names the file {file.path.name!r}, which is not there")
    return file


def lane_hooks() -> Hooks:
    """Return the hooks as a lane needs them: the same plugins as the host's, without the built-in ones."""
    from wan_host.settings import load_settings

    return Hooks(discover(disabled=load_settings().disabled_plugins))
