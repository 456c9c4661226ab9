"""Steps that reuse what the transformer's blocks did: a cache that is right for text-to-video and for VACE.

What is kept is the whole change that the blocks made to the stream of tokens, VACE's hints among it, measured between the patch
embedding and the last norm. A step that is not computed embeds its own latents, adds the change, and runs the last layers
with its own timestep. diffusers' FirstBlockCache and MagCache keep the change of the blocks alone and leave the block loop
running, which at VACE adds the hints a second time on every such step (0.42.1, transformer_wan_vace.py:373).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers.hooks import HookRegistry, ModelHook  # noqa: TID253  # this module is imported with a loaded model

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from wan_host_wan21.graphs import Graphs
    from wan_host_wan21.presets import Schedule

_NAME = "wan_host_step_cache"


class StepCache:
    """Runs the passes of one transformer and its view by a schedule. Without one, every pass is the transformer's own."""

    def __init__(self, transformers: Iterable[Any]) -> None:
        """Serve ``transformers``, which share their outer layers."""
        self._transformers = tuple({id(module): module for module in transformers}.values())
        self._schedule: Schedule | None = None
        self._step = self._pass = 0
        self._guiding: Any = None
        self._changes: dict[int, torch.Tensor] = {}
        self.passes = 0
        """Passes of the whole transformer since the job's begin."""
        self.graphs: Graphs | None = None
        """Where given, whole passes are replayed from CUDA graphs."""

    def begin(self, schedule: Schedule, *, done: int = 0) -> None:
        """Start a clip, or go on with one of which ``done`` steps are made."""
        self.forget()
        self._schedule, self._step = schedule, done
        for module in self._transformers:
            registry = HookRegistry.check_if_exists_or_initialize(module)
            if registry.get_hook(_NAME) is None:
                registry.register_hook(_Hook(self), _NAME)

    def next_step(self) -> None:
        """Say that a step has ended."""
        self._step, self._pass, self._guiding = self._step + 1, 0, None

    def end(self) -> None:
        """Give the transformers their own forward back."""
        self.forget()
        for module in self._transformers:
            HookRegistry.check_if_exists_or_initialize(module).remove_hook(_NAME, recurse=False)

    def forget(self) -> None:
        """Drop what was kept."""
        self._schedule, self._step, self._pass, self._guiding = None, 0, 0, None
        self._changes = {}

    def forward(self, hook: _Hook, module: Any, inputs: dict[str, Any]) -> Any:
        """Serve as ``module``'s forward, called by keywords as the pipelines do."""
        if self._schedule is None or inputs.pop("return_dict", True) or set(inputs) - _KNOWN:
            raise RuntimeError("the step cache serves pipelines that ask by keyword, without return_dict, inside a schedule")
        which, self._pass = self._pass, self._pass + 1
        if which == 1 and not self._schedule.guided[self._step]:
            # The same prediction twice: guidance weighs a difference of zero.
            return (self._guiding,)
        if self._schedule.computed[self._step]:
            output = self._whole(hook, module, which, inputs)
        else:
            output = _around(module, inputs, self._change(which))
        if which == 0:
            self._guiding = output
        return (output,)

    def _whole(self, hook: _Hook, module: Any, which: int, inputs: dict[str, Any]) -> torch.Tensor:
        self.passes += 1
        reused = self._schedule is not None and not all(self._schedule.computed)

        def run(**tensors: Any) -> tuple[torch.Tensor, ...]:
            return hook.run(module, tensors, record=reused)

        tensors = {name: value for name, value in inputs.items() if value is not None}
        found = run(**tensors) if self.graphs is None else self.graphs.run((id(module), reused), run, tensors)
        if reused:
            self._changes[which] = found[1]
        return found[0]

    def _change(self, which: int) -> torch.Tensor:
        """Return the change of the last step that was computed."""
        if which not in self._changes:
            raise RuntimeError(f"step {self._step} reuses what no step before it has computed")
        return self._changes[which]


_KNOWN = {
    "hidden_states",
    "timestep",
    "encoder_hidden_states",
    "encoder_hidden_states_image",
    "control_hidden_states",
    "control_hidden_states_scale",
    "attention_kwargs",
}


class _Hook(ModelHook):
    """diffusers' own way to stand in for a model's forward; the registry keeps the original."""

    def __init__(self, cache: StepCache) -> None:
        super().__init__()
        self._cache = cache

    def new_forward(self, module: Any, *args: Any, **inputs: Any) -> Any:
        """Serve as the forward; positional arguments are not the pipelines' way."""
        if args:
            raise RuntimeError("the step cache serves calls by keyword")
        return self._cache.forward(self, module, inputs)

    def run(self, module: Any, inputs: dict[str, Any], *, record: bool) -> tuple[torch.Tensor, ...]:
        """Return the model's own output and, with ``record``, the change of its blocks: float32 (1, tokens, width)."""
        if not record:
            return (self.fn_ref.original_forward(**inputs, return_dict=False)[0],)
        seen: list[torch.Tensor] = []
        handles = (
            module.patch_embedding.register_forward_hook(lambda _module, _inputs, output: seen.append(_tokens(output))),
            module.norm_out.register_forward_pre_hook(lambda _module, args: seen.append(args[0])),
        )
        try:
            output = self.fn_ref.original_forward(**inputs, return_dict=False)[0]
        finally:
            for handle in handles:
                handle.remove()
        begin, end = seen
        return output, end - begin


def _around(module: Any, inputs: dict[str, Any], change: torch.Tensor) -> torch.Tensor:
    """Run the outer layers alone, with ``change`` in place of the blocks (transformer_wan.py:681, the same at VACE)."""
    latents = inputs["hidden_states"]
    tokens = _tokens(module.patch_embedding(latents))
    embedded = module.condition_embedder(
        inputs["timestep"], inputs["encoder_hidden_states"], inputs.get("encoder_hidden_states_image")
    )[0]
    shift, scale = (module.scale_shift_table + embedded.unsqueeze(1)).chunk(2, dim=1)
    hidden = (module.norm_out(tokens.float() + change) * (1 + scale) + shift).type_as(tokens)
    hidden = module.proj_out(hidden)
    patch = module.config.patch_size
    counts = [size // part for size, part in zip(latents.shape[2:], patch, strict=True)]
    hidden = hidden.reshape(len(latents), *counts, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return hidden.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _tokens(embedded: torch.Tensor) -> torch.Tensor:
    """Return the stream of tokens (batch, tokens, width) of embedded patches (batch, width, t, h, w)."""
    return embedded.flatten(2).transpose(1, 2)
