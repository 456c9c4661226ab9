"""Finding plugins, checking them, and keeping the broken ones apart.

A plugin is what an entry point of the group ``wan_host`` names. One that cannot be imported, breaks the hook contract or offers
a model name that is taken is *quarantined*: none of its hooks is called, and its record says why, with the distribution and its
version. Nothing that a plugin does here takes the host down.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

import pluggy

from wan_host import hookspecs
from wan_host.errors import PluginError
from wan_host.frame_processors import FrameProcessor
from wan_host.model import JobDefaults, MediaKind, ModelInfo, ReferenceMode
from wan_host.ranges import HOST, check_ranges

ENTRY_POINT_GROUP = "wan_host"
HOOK_NAMES = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec"))
EMBEDDED_DEFAULT_MODEL = "tiny-wan"
_ERROR_CHARACTERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRecord:
    """What is known of one plugin, working or not."""

    name: str
    distribution: str
    version: str
    status: Literal["ok", "disabled", "quarantined"]
    error: str = ""
    hooks: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    builtin: bool = False

    @property
    def origin(self) -> str:
        """Name, distribution and version, as messages show them."""
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(slots=True)
class PluginRegistry:
    """The plugins of one process: the working ones registered in ``manager``, a record of every one, and their models."""

    manager: pluggy.PluginManager
    _records: dict[str, PluginRecord] = field(default_factory=dict)
    _models: dict[str, ModelInfo] = field(default_factory=dict)
    _providers: dict[str, str] = field(default_factory=dict)
    _processors: dict[str, FrameProcessor] = field(default_factory=dict)

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found, by name."""
        return tuple(self._records[name] for name in sorted(self._records))

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """The models of all working plugins whose runner is there."""
        names = {record.name for record in self._records.values() if record.status == "ok"}
        return MappingProxyType({name: model for name, model in self._models.items() if model.runner in names})

    @property
    def orphans(self) -> Mapping[str, str]:
        """Models that cannot run, with the reason."""
        usable = self.models
        return {
            name: f"its runner, the plugin {model.runner!r}, is not installed or does not work"
            for name, model in self._models.items()
            if name not in usable
        }

    @property
    def frame_processors(self) -> Mapping[str, FrameProcessor]:
        """What the working plugins with ``process_frames`` make of a clip's shape, by the plugin's name."""
        return MappingProxyType(self._processors)

    def missing(self, required: Iterable[str]) -> dict[str, str]:
        """Return the required plugins that do not work, with the reason."""
        reasons = {}
        for name in required:
            record = self._records.get(name)
            if record is None:
                reasons[name] = f"plugin {name} is required (WAN_HOST_REQUIRED_PLUGINS) but not installed"
            elif record.status != "ok":
                reasons[name] = f"plugin {record.origin} is required but {record.status}: {record.error or 'by setting'}"
        return reasons

    def default_model(self, setting: str | None) -> str | None:
        """Return the model for jobs that name none: the setting, else the only one, else the embedded default, else None."""
        if setting is not None:
            return setting
        names = [name for name, model in self.models.items() if model.kind == "generate"]
        if len(names) == 1:
            return names[0]
        return EMBEDDED_DEFAULT_MODEL if EMBEDDED_DEFAULT_MODEL in names else None

    def add(self, name: str, plugin: object, *, distribution: str, version: str, builtin: bool = False) -> None:
        """Register a plugin object, or quarantine it."""
        record = PluginRecord(name=name, distribution=distribution, version=version, status="ok", builtin=builtin)
        try:
            hooks = _check_hooks(plugin)
            if self.manager.is_registered(plugin):
                raise PluginError(f"it names the same object as the plugin {self.manager.get_name(plugin)!r}")
            self.manager.register(plugin, name=name)
            models = self._models_of(plugin, record) if "list_models" in hooks else {}
            processor = self._processor_of(plugin, hooks)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stranger's code raises
            self.quarantine(record, error)
            return
        self._models.update(models)
        self._providers.update(dict.fromkeys(models, record.origin))
        if processor is not None:
            self._processors[name] = processor
        self._records[name] = replace(record, hooks=hooks, models=tuple(models))

    def quarantine(self, record: PluginRecord, error: BaseException) -> None:
        """Record that a plugin does not work, and take back all of it that was registered."""
        if self.manager.has_plugin(record.name):
            self.manager.unregister(name=record.name)
        for model in record.models:
            del self._models[model], self._providers[model]
        self._processors.pop(record.name, None)
        message = " ".join(str(error).split())[:_ERROR_CHARACTERS]
        if not isinstance(error, PluginError):
            message = f"{type(error).__name__}: {message}" if message else type(error).__name__
        self._records[record.name] = replace(record, status="quarantined", error=message, hooks=(), models=())

    def disable(self, record: PluginRecord) -> None:
        """Record that a setting keeps a plugin out."""
        self._records[record.name] = replace(record, status="disabled")

    def _models_of(self, plugin: object, record: PluginRecord) -> dict[str, ModelInfo]:
        offered: dict[str, ModelInfo] = {}
        listed = self._function("list_models", plugin)()
        if not isinstance(listed, Iterable):
            raise PluginError(f"list_models returned {type(listed).__name__}, expected ModelInfo objects in a list")
        for model in cast("Iterable[object]", listed):
            if not isinstance(model, ModelInfo):
                raise PluginError(f"list_models returned a list with {type(model).__name__}, expected ModelInfo objects")
            _check_model(model)
            if model.name in offered:
                raise PluginError(f"list_models offers the model {model.name!r} twice")
            if model.name in self._providers:
                taken = self._providers[model.name]
                raise PluginError(f"the model name {model.name!r} of {record.origin} is taken by {taken}")
            offered[model.name] = model
        return offered

    def _processor_of(self, plugin: object, hooks: Collection[str]) -> FrameProcessor | None:
        if "describe_processor" not in hooks:
            return FrameProcessor() if "process_frames" in hooks else None
        if "process_frames" not in hooks:
            raise PluginError("it has the hook describe_processor, but no process_frames to describe")
        described: object = self._function("describe_processor", plugin)()
        if not isinstance(described, FrameProcessor):
            raise PluginError(f"describe_processor returned {type(described).__name__}, expected a FrameProcessor")
        _check_processor(described)
        return described

    def _function(self, hook: str, plugin: object) -> Callable[..., Any]:
        """Return one plugin's implementation of a hook that has no parameters."""
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        return cast("Callable[..., Any]", next(impl.function for impl in implementations if impl.plugin is plugin))


def _check_hooks(plugin: object) -> tuple[str, ...]:
    """Return the names of a plugin's hooks. Raises PluginError where it has none, an unknown one or an asynchronous one."""
    names = []
    for attribute in dir(plugin):
        options = getattr(getattr(plugin, attribute, None), f"{hookspecs.PROJECT}_impl", None)
        if options is None:
            continue
        name = options.get("specname") or attribute
        if name not in HOOK_NAMES:
            close = difflib.get_close_matches(name, HOOK_NAMES, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise PluginError(f"unknown hook {name}{hint}; the hooks are {', '.join(HOOK_NAMES)}")
        if name in names:
            raise PluginError(f"hook {name} is implemented twice")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(f"hook {name} is a wrapper; each call goes to one plugin, so there is nothing to wrap")
        _check_signature(name, getattr(plugin, attribute))
        names.append(name)
    if not names:
        raise PluginError("it has no hooks: mark functions with @wan_host.hookimpl")
    return tuple(names)


def _check_signature(hook: str, function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"hook {hook} is asynchronous; hooks are plain functions, the host runs them in threads")
    known = list(inspect.signature(getattr(hookspecs, hook)).parameters)
    for parameter in inspect.signature(function).parameters.values():
        required = parameter.default is parameter.empty
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if required and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            if parameter.name not in known:
                takes = ", ".join(known) or "nothing"
                raise PluginError(f"hook {hook} asks for {parameter.name!r}; what it is given is: {takes}")
            if not positional:
                raise PluginError(f"hook {hook} takes {parameter.name!r} by position or keyword only; declare it plainly")


def _check_model(model: ModelInfo) -> None:
    """Refuse metadata that would only fail when a job comes: dataclasses do not look at their values."""
    texts = {name: getattr(model, name) for name in ("name", "family", "runner", "path", "description")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise PluginError(f"list_models: a model has the {name} {value!r}, expected a text")
    if not re.fullmatch(r"\S{1,128}", model.name):
        raise PluginError(f"list_models: the model name {model.name[:128]!r} is not allowed; 1 to 128 characters, no spaces")
    if model.kind not in {"generate", "enhance"}:
        raise PluginError(f"list_models: model {model.name} has the kind {model.kind!r}, expected 'generate' or 'enhance'")
    for job_type, defaults in model.job_types.items():
        if not isinstance(job_type, str) or not isinstance(defaults, JobDefaults):
            raise PluginError(f"list_models: model {model.name} maps {job_type!r} to {type(defaults).__name__}, not JobDefaults")
    if not all(isinstance(mode, ReferenceMode) for mode in model.reference_modes):
        raise PluginError(f"list_models: reference_modes of model {model.name} are not all of ReferenceMode")


def _check_processor(processor: FrameProcessor) -> None:
    for name in ("rate", "scale"):
        value: object = getattr(processor, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise PluginError(f"describe_processor: {name} is {value!r}, expected a whole number from 1")
    if not processor.media or not processor.media <= set(get_args(MediaKind)):
        raise PluginError(f"describe_processor: media is {set(processor.media)!r}, expected 'image', 'video' or both")


def discover(*, builtins: Mapping[str, object] | None = None, disabled: Collection[str] = ()) -> PluginRegistry:
    """Find and check all plugins of this environment, in the order of their names, after the host's own ``builtins``."""
    from wan_host import __version__

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = PluginRegistry(manager)
    for name, plugin in (builtins or {}).items():
        if name in disabled:
            registry.disable(PluginRecord(name=name, distribution="wan-host", version=__version__, status="ok", builtin=True))
        else:
            registry.add(name, plugin, distribution="wan-host", version=__version__, builtin=True)
    found = sorted(_entry_points(registry), key=lambda pair: (pair[1].name, pair[1].distribution))
    versions = {HOST: __version__} | {record.distribution: record.version for _, record in found}
    for point, record in found:
        earlier = next((known for known in registry.records if known.name == point.name), None)
        if earlier is not None:
            clash = replace(record, name=f"{point.name}@{record.distribution}")
            registry.quarantine(clash, PluginError(f"the plugin name {point.name!r} is taken by {earlier.origin}"))
            continue
        if point.name in disabled:
            registry.disable(record)
            continue
        try:
            if point.dist is not None:
                check_ranges(point.dist, versions)
            plugin = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stranger's module raises
            registry.quarantine(record, error)
            continue
        registry.add(record.name, plugin, distribution=record.distribution, version=record.version)
    return registry


def _entry_points(registry: PluginRegistry) -> Iterator[tuple[importlib.metadata.EntryPoint, PluginRecord]]:
    """Yield the entry points of all distributions; one whose metadata cannot be read hides no other."""
    seen = set()
    for distribution in importlib.metadata.distributions():
        error: Exception | None = None
        points: list[importlib.metadata.EntryPoint] = []
        try:
            points = [point for point in distribution.entry_points if point.group == ENTRY_POINT_GROUP]
        except Exception as problem:  # noqa: BLE001  # a malformed file of any distribution
            error = problem if _mentions_group(distribution) else None
        if not points and error is None:
            continue
        name, version = _identity(distribution)
        if name in seen:  # found again further down the path
            continue
        seen.add(name)
        if error is not None:
            record = PluginRecord(name=name, distribution=name, version=version, status="ok")
            registry.quarantine(record, PluginError(f"its entry_points.txt cannot be read ({type(error).__name__})"))
        for point in points:
            yield point, PluginRecord(name=point.name, distribution=name, version=version, status="ok")


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    name, version = None, None
    with contextlib.suppress(Exception):  # metadata may be missing or damaged
        name, version = distribution.name, distribution.version
    return name or "unknown", version or "unknown"


def _mentions_group(distribution: importlib.metadata.Distribution) -> bool:
    with contextlib.suppress(Exception):  # it may be no text
        return f"[{ENTRY_POINT_GROUP}]" in (distribution.read_text("entry_points.txt") or "")
    return False
