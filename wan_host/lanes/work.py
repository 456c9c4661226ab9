"""What a lane does with a call: load, unload, generate, enhance. Runs on the child's main thread, one call at a time."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace

from wan_host.context import LaneContext
from wan_host.errors import GenerationFailed, ModelLoadFailed, UnknownModel, WanHostError
from wan_host.lanes import allocator, results
from wan_host.lanes.call_context import CallContext
from wan_host.lanes.faults import chain, describe
from wan_host.lanes.hooks import LaneHooks
from wan_host.lanes.messages import Done, Failed, LoadModel, RunEnhance, RunGenerate, UnloadModel
from wan_host.model import ModelInfo
from wan_host.request import Enhancement, Generation, GenerationRequest


class Work:
    """The models of one lane and what is done with them."""

    def __init__(self, hooks: LaneHooks, device: str) -> None:
        self._hooks = hooks
        self._device = device
        self._models = dict(hooks.models())
        self._loaded: dict[str, object] = {}

    def offered(self) -> tuple[str, ...]:
        """Names of the models that can be loaded."""
        return tuple(self._models)

    def run(self, context: CallContext, reply: Callable[[Done | Failed], None]) -> None:
        """Do what the call of ``context`` says and pass the outcome to ``reply``; only OSError of a lost host comes out."""
        try:
            allocator.reset_peak(self._device)
            result = self._result(context)
            shared: tuple[int, ...] = ()
            if isinstance(result, Generation) and context.clips is not None:
                result, shared = context.clips.split(result)
        except BaseException as error:  # noqa: BLE001  # SystemExit of a plugin must not end the lane without a word
            reply(self._failure(context, error))
            return
        done = Done(
            call=context.call.call,
            result=result,
            spent=context.spent(),
            memory=allocator.read_memory(self._device),
            loaded=tuple(self._loaded),
            shared=shared,
        )
        try:
            reply(done)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001  # no room for the frames, or a value that has no pickle
            reply(self._failure(context, error))

    def unload(self, names: Iterable[str]) -> None:
        """Close and drop models. What a ``close`` raises is printed: the model is dropped all the same."""
        for name in names:
            loaded = self._loaded.pop(name, None)
            close = getattr(loaded, "close", None)
            if callable(close):
                try:
                    close()
                except Exception:  # noqa: BLE001  # strangers' code
                    traceback.print_exc()
        # the last names of the object, so that the collection below finds it free
        loaded = close = None
        allocator.release(self._device)

    def unload_all(self) -> None:
        """Close and drop every model."""
        self.unload(tuple(self._loaded))

    def _result(self, context: CallContext) -> Generation | Enhancement | None:
        call = context.call
        match call:
            case LoadModel():
                context.begin("load")
                context.check()
                self._load(call.model, context)
            case UnloadModel():
                context.begin("unload")
                self.unload([call.model])
            case RunGenerate():
                context.begin("generate")
                context.check()
                return self._generate(call, context)
            case RunEnhance():
                context.begin("enhance")
                context.check()
                returned = self._hooks.enhance_prompt(call.plugin, call.request, self._held(call.model), context)
                return results.checked_enhancement(returned, call.plugin)
        return None

    def _load(self, name: str, context: LaneContext) -> None:
        if name in self._loaded:
            return
        model = self._info(name)
        loaded = self._hooks.load_model(model, context)
        if loaded is None:
            raise ModelLoadFailed(f"load_model of plugin {model.runner!r} returned None for model {name!r}")
        self._loaded[name] = loaded

    def _generate(self, call: RunGenerate, context: CallContext) -> Generation:
        model = self._info(call.model)
        with context.busy():
            returned = self._hooks.generate(call.request, self._held(call.model), model, context)
            generation = results.checked_generation(returned, call.request, model.runner)
            if context.resumed_at:
                facts = {**generation.metadata, "resumed_at_step": context.resumed_at}
                generation = Generation(clips=generation.clips, metadata=facts)
            if not call.request.postprocess:
                return generation
            with context.stage("process_frames"):
                return self._processed(generation, call.request, context)

    def _processed(self, generation: Generation, request: GenerationRequest, context: CallContext) -> Generation:
        clips = []
        for clip in generation.clips:
            processed = clip
            for step in request.postprocess:
                context.check()
                wanted = replace(request, frames=step.frames, width=step.width, height=step.height)
                returned = self._hooks.process_frames(step.plugin, processed, wanted, context)
                processed = results.checked_clip(returned, wanted, step.plugin)
            clips.append(processed)
        return Generation(clips=tuple(clips), metadata=generation.metadata)

    def _info(self, name: str) -> ModelInfo:
        if name not in self._models:
            raise UnknownModel(f"model: {name!r} is not offered by any plugin; there are {', '.join(self._models) or 'none'}")
        return self._models[name]

    def _held(self, name: str) -> object:
        if name not in self._loaded:
            raise GenerationFailed(f"model {name!r} is not loaded in this lane")
        return self._loaded[name]

    def _failure(self, context: CallContext, error: BaseException) -> Failed:
        model = self._models.get(context.call.model)
        runner = f" (plugin {model.runner!r})" if model is not None else ""
        otherwise: type[WanHostError] = ModelLoadFailed if isinstance(context.call, LoadModel) else GenerationFailed
        subject = {LoadModel: "loading", UnloadModel: "unloading", RunEnhance: "enhancing with"}.get(
            type(context.call), "generating with"
        )
        fault = describe(error, otherwise=otherwise, subject=f"{subject} model {context.call.model!r}{runner}")
        text = "".join(traceback.format_exception(error))
        # frames of a failed hook hold its tensors: let them go before the next call needs the room
        for link in chain(error):
            traceback.clear_frames(link.__traceback__)
        if "torch" in sys.modules and not fault.restart:
            allocator.release(self._device)
        return Failed(
            call=context.call.call,
            error=fault.error,
            message=fault.message,
            traceback=text,
            restart=fault.restart,
            spent=context.spent(),
            memory=allocator.read_memory(self._device),
            loaded=tuple(self._loaded),
        )
