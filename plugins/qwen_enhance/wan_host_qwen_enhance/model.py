"""A causal language model that writes one paragraph at a time, by its chat template or by going on with a text.

Weights come from safetensors or GGUF, and no code of a repository is ever run.
"""

from __future__ import annotations

import io
import os
import sys
import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from wan_host import ModelLoadFailed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wan_host import LaneContext, ModelInfo
    from wan_host_qwen_enhance.instruction import Instruction
    from wan_host_qwen_enhance.settings import EnhanceSettings

_PROBE = "probe"


class OutOfTime(Exception):
    """The plugin's own time for a prompt has passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What the model wrote. ``finished`` is false where it was stopped by the number of tokens."""

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How words are chosen: the likeliest ones at temperature 0, else drawn from ``seed``."""

    temperature: float
    repetition_penalty: float
    max_new_tokens: int
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class LanguageModel:
    """Tokenizer and weights. ``chat`` says whether the chat template is used; ``ends`` are the tokens that end an answer."""

    name: str
    source: str
    tokenizer: PreTrainedTokenizerBase
    weights: PreTrainedModel
    chat: bool
    ends: tuple[int, ...]

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    @property
    def context_length(self) -> int:
        """How many tokens the model reads and writes at most."""
        return int(getattr(self.weights.config, "max_position_embeddings", 0) or sys.maxsize)

    def text_for(self, instruction: Instruction, prompt: str, opening: str) -> str:
        """Return the whole text that the model is given, its answer begun with ``opening``.

        Special tokens in both lose their meaning.
        """
        prompt, opening = self._plain(prompt), self._plain(opening)
        if not self.chat:
            return f"{instruction.completion(prompt)} {opening}"
        messages = instruction.messages(prompt)
        try:
            return f"{self._asked(messages)}{opening}"
        except Exception as error:  # templates are programs of the model's maker; some refuse system turns
            if "system" not in str(error).lower():
                raise
        first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        return f"{self._asked([first, *messages[2:]])}{opening}"

    def _asked(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _plain(self, text: str) -> str:
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        for token in added.union(self.tokenizer.all_special_tokens):
            text = text.replace(token, " ")
        return " ".join(text.split())

    def write(self, text: str, sampling: Sampling, context: LaneContext, *, deadline: float) -> Draft:
        """Go on with ``text``. Every token is a heartbeat; raises OutOfTime after ``deadline`` of the monotonic clock."""
        import torch
        from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

        encoded = self.tokenizer(text, add_special_tokens=not self.chat, return_tensors="pt")
        ids = encoded.input_ids.to(self.weights.device)
        length = ids.shape[1]
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            top_p=0.9 if sampling.temperature > 0 else None,
            eos_token_id=list(self.ends),
            pad_token_id=self.ends[0],
        )
        cuda = [ids.device] if ids.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=cuda):
            torch.manual_seed(sampling.seed)
            written = self.weights.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=[RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty, prompt_ignore_length=length)],
                stopping_criteria=[self._stop(length, sampling.max_new_tokens, context, deadline)],
            )[0, length:]
        answer = self.tokenizer.decode(written, skip_special_tokens=True)
        ended = len(written) < sampling.max_new_tokens or int(written[-1]) in self.ends
        if not self.chat:
            # a line that ends at once is an answer: the model has nothing to add
            answer, newline, _ = answer.partition("\n")
            ended = ended or bool(newline)
        return Draft(text=answer.strip(), tokens=len(written), finished=ended)

    def close(self) -> None:
        """Let go of the weights."""
        del self.weights

    def _stop(self, length: int, total: int, context: LaneContext, deadline: float) -> Any:
        """Return what generation calls after every token: it beats, and says whether the answer's line has ended."""
        import torch

        def stop(ids: torch.Tensor, _scores: torch.Tensor, **_: object) -> torch.Tensor:
            context.progress(f"token {ids.shape[1] - length} of {total}")
            if time.monotonic() > deadline:
                raise OutOfTime
            ended = not self.chat and "\n" in self.tokenizer.decode(ids[0, length:])
            return torch.full((1,), ended, dtype=torch.bool, device=ids.device)

        return stop


class _Heartbeats(io.TextIOBase):
    """Turns the progress bars that transformers draws on standard error into heartbeats; the rest is passed on."""

    def __init__(self, context: LaneContext, note: str, target: TextIO) -> None:
        self._context, self._note, self._target = context, note, target

    def write(self, text: str) -> int:
        """Beat for a bar, which begins at the start of its line."""
        if text.startswith("\r") or not text.strip():
            self._context.progress(self._note)
            return len(text)
        return self._target.write(text)


def load(model: ModelInfo, settings: EnhanceSettings, context: LaneContext) -> LanguageModel:
    """Load the tokenizer and weights that ``model.path`` names. Raise ModelLoadFailed with what is wrong with the files."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.logging import enable_progress_bar

    path = Path(model.path)
    folder, file = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    device = context.device if settings.device == "auto" else settings.device
    dtype = getattr(torch, settings.dtype) if settings.dtype != "auto" else _natural_dtype(device)
    if device == "cpu":
        torch.set_num_threads(settings.threads or max(1, _cores() // 2))
    try:
        enable_progress_bar()  # the bars are the heartbeats below; somebody else in this process may have switched them off
        context.progress(f"reading the tokenizer of {model.name}")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **file)
        with redirect_stderr(_Heartbeats(context, f"reading the weights of {model.name}", sys.stderr)):
            weights, found = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **(file or {"use_safetensors": True}),
            )
        if found["missing_keys"]:
            raise ValueError(f"the files lack {', '.join(sorted(found['missing_keys'])[:3])}")
        context.progress(f"moving {model.name} to {device}")
        weights = weights.to(device).eval()
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelLoadFailed(f"{model.name}: {path} could not be loaded: {error}") from error
    ends = _ends(tokenizer, weights)
    weights.generation_config = GenerationConfig()  # the maker's own sampling would fill in what this plugin leaves out
    chat = settings.prompting == "chat" or (settings.prompting == "auto" and _speaks_in_turns(tokenizer, ends))
    if chat and not tokenizer.chat_template:
        raise ModelLoadFailed(f"{model.name}: WAN_HOST_QWEN_ENHANCE_PROMPTING is 'chat', but the model has no chat template")
    if not ends:
        raise ModelLoadFailed(f"{model.name}: {path} names no token that ends a text (eos_token)")
    source = str(model.options.get("source") or model.name)
    return LanguageModel(name=model.name, source=source, tokenizer=tokenizer, weights=weights, chat=chat, ends=ends)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _natural_dtype(device: str) -> torch.dtype:
    import torch

    return torch.float32 if device.startswith("cpu") else torch.bfloat16


def _ends(tokenizer: PreTrainedTokenizerBase, weights: PreTrainedModel) -> tuple[int, ...]:
    """Return the tokens that end a text: those of the generation settings, and the tokenizer's."""
    named = weights.generation_config.eos_token_id
    ends = [] if named is None else list(named) if isinstance(named, (list, tuple)) else [named]
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(ends))


def _speaks_in_turns(tokenizer: PreTrainedTokenizerBase, ends: tuple[int, ...]) -> bool:
    """Whether the model was taught its chat template: then it ends its texts as the template ends a turn.

    A template alone says nothing: Qwen's base models carry one as well.
    """
    if not tokenizer.chat_template:
        return False
    turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(_PROBE)[2]
    after = tokenizer(text.strip(), add_special_tokens=False).input_ids
    return bool(after) and after[0] in ends
