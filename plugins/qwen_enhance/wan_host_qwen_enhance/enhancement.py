"""From a prompt to the text that is used: one attempt, one retry, and the prompt itself where both are no good.

The model's answer is begun for it with the prompt, word for word: whatever it writes can only add. The retry draws its words.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wan_host import Enhancement
from wan_host_qwen_enhance.checks import additions, emptiness, objection, refuses, token_limit
from wan_host_qwen_enhance.instruction import Instruction, read_instruction
from wan_host_qwen_enhance.model import OutOfTime, Sampling
from wan_host_qwen_enhance.words import CLOSINGS, HAN_AND_KANA, STOPS, capitalised

if TYPE_CHECKING:
    from wan_host import EnhanceRequest, LaneContext
    from wan_host_qwen_enhance.model import LanguageModel
    from wan_host_qwen_enhance.settings import EnhanceSettings

RETRY_TEMPERATURE = 0.7
"""At least: the likeliest words would be the same again."""
LEAST_ROOM = 16
"""Tokens of the shortest sentence that is worth a model's time."""

_log = logging.getLogger("wan_host_qwen_enhance")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One prompt: ``opening`` is the answer's first sentence, and ``text`` all that the model is given, that sentence included.

    ``limit``: how many of the model's own tokens the result may have.
    """

    prompt: str
    instruction: Instruction
    opening: str
    text: str
    limit: int
    sampling: Sampling
    deadline: float


class Enhancer:
    """A loaded model with what it has enhanced lately, which lives and ends with it."""

    def __init__(self, model: LanguageModel, settings: EnhanceSettings) -> None:
        self._model, self._settings = model, settings
        self._known: OrderedDict[tuple[str, str, int], Enhancement] = OrderedDict()

    def enhance(self, request: EnhanceRequest, context: LaneContext) -> Enhancement:
        """Return the enhanced prompt, or the original with ``source="none"`` and the reason."""
        instruction = read_instruction(request.media, self._settings)
        key = (instruction.text, request.prompt, request.max_tokens)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        try:
            result = self._write(request.prompt, instruction, request.max_tokens, context)
        except OutOfTime:  # not remembered: the machine may be less busy next time
            reason = f"it took longer than WAN_HOST_QWEN_ENHANCE_TIMEOUT, {self._settings.timeout:g} s"
            return Enhancement(prompt=request.prompt, source="none", reason=reason)
        self._known[key] = result
        while len(self._known) > self._settings.cache_size:
            self._known.popitem(last=False)
        return result

    def close(self) -> None:
        """Let go of the model; the lane calls this before it drops it."""
        self._known.clear()
        self._model.close()

    def _write(self, original: str, instruction: Instruction, max_tokens: int, context: LaneContext) -> Enhancement:
        prompt = " ".join(original.split())
        if not prompt:
            return Enhancement(prompt=original, source="none", reason="the prompt is empty")
        task = self._task(prompt, instruction, max_tokens)
        room = task.sampling.max_new_tokens
        if room < LEAST_ROOM:
            surely = f"the {task.limit} of the enhancer's tokens that surely fit the video model's {max_tokens}"
            reason = f"the prompt fills {surely}: {max(room, 0)} are left to write"
            return Enhancement(prompt=original, source="none", reason=reason)
        needed = self._model.count(task.text) + room
        if needed > self._model.context_length:
            reason = f"the prompt is too long for {self._model.name}: {needed} tokens, it reads {self._model.context_length}"
            return Enhancement(prompt=original, source="none", reason=reason)
        again = replace(task.sampling, temperature=max(task.sampling.temperature, RETRY_TEMPERATURE), seed=task.sampling.seed + 1)
        problems = []
        for sampling in (task.sampling, again):
            text, problem = self._attempt(task, sampling, context)
            if problem is None:
                return Enhancement(prompt=text, source=self._model.source)
            problems.append(problem)
            _log.debug("attempt %d of %s was rejected: %s", len(problems), self._model.name, problem)
        reason = f"{self._model.name} wrote nothing usable: {problems[0]}; in the retry: {problems[1]}"
        return Enhancement(prompt=original, source="none", reason=reason)

    def _task(self, prompt: str, instruction: Instruction, max_tokens: int) -> _Task:
        settings, limit, opening = self._settings, token_limit(max_tokens), _sentence(prompt)
        return _Task(
            prompt=prompt,
            instruction=instruction,
            opening=opening,
            text=self._model.text_for(instruction, prompt, opening),
            limit=limit,
            sampling=Sampling(
                temperature=settings.temperature,
                repetition_penalty=settings.repetition_penalty,
                max_new_tokens=min(settings.max_new_tokens, limit - self._model.count(opening)),
                seed=zlib.crc32(prompt.encode()),
            ),
            deadline=time.monotonic() + settings.timeout,
        )

    def _attempt(self, task: _Task, sampling: Sampling, context: LaneContext) -> tuple[str, str | None]:
        """Return the prompt with what the model added to it, and what speaks against it."""
        draft = self._model.write(task.text, sampling, context, deadline=task.deadline)
        added = additions(draft.text, task.prompt, task.instruction, finished=draft.finished)
        text = f"{task.opening} {added}"
        # asked of the draft as it came: the sentence in which a model speaks of itself may have been taken off
        if refuses(draft.text, task.prompt):
            problem: str | None = "it is a refusal"
        elif not added:
            problem = emptiness(draft.text, task.prompt, task.instruction, finished=draft.finished)
        else:
            problem = objection(added, task.prompt, task.instruction)
        if problem is None and (tokens := self._model.count(text)) > task.limit:
            problem = f"it has {tokens} tokens, {task.limit} are allowed"
        return text, problem


def _sentence(prompt: str) -> str:
    """Return the prompt as the first sentence of a paragraph."""
    prompt = prompt.rstrip(",;: \uff0c\u3001\uff1b\uff1a") or prompt
    if prompt.rstrip(CLOSINGS)[-1:] not in STOPS:
        prompt += "\u3002" if HAN_AND_KANA.search(prompt[-1]) else "."
    return capitalised(prompt)
