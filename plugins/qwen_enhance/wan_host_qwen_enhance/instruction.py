"""What the model is told: a system text and worked examples, one file for videos and one for images.

A file is plain text. Whatever stands before the first line that begins with ``Prompt:`` is the system text; each example is a
line ``Prompt: ...`` followed by one ``Enhanced: ...``. A file without examples is a system text alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from wan_host_qwen_enhance.settings import EnhanceSettings

PROMPT, ENHANCED = "Prompt:", "Enhanced:"
_EXAMPLE = re.compile(rf"^{PROMPT}(?P<prompt>.+?)^{ENHANCED}(?P<enhanced>.+?)(?=^{PROMPT}|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Instruction:
    """The text of an instruction file."""

    text: str

    @cached_property
    def examples(self) -> tuple[tuple[str, str], ...]:
        """Short prompts and what was made of them."""
        return tuple((found["prompt"].strip(), found["enhanced"].strip()) for found in _EXAMPLE.finditer(self.text))

    @cached_property
    def system(self) -> str:
        """What stands before the examples."""
        first = _EXAMPLE.search(self.text)
        return (self.text if first is None else self.text[: first.start()]).strip()

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """Return the conversation for a chat template; the examples are turns that were taken already."""
        turns = [{"role": "system", "content": self.system}]
        for short, enhanced in self.examples:
            turns += [{"role": "user", "content": f"{PROMPT} {short}"}, {"role": "assistant", "content": enhanced}]
        return [*turns, {"role": "user", "content": f"{PROMPT} {prompt}"}]

    def completion(self, prompt: str) -> str:
        """Return the text that a base model goes on with; its answer ends where the line does."""
        examples = [f"{PROMPT} {short}\n{ENHANCED} {enhanced}" for short, enhanced in self.examples]
        return "\n\n".join([self.system, *examples, f"{PROMPT} {prompt}\n{ENHANCED}"])


def read_instruction(media: str, settings: EnhanceSettings) -> Instruction:
    """Return the instruction for ``video`` or ``image``, read anew each time so that an edited file acts at once."""
    chosen: Path | None = settings.image_instructions if media == "image" else settings.video_instructions
    source = chosen or resources.files("wan_host_qwen_enhance") / "instructions" / f"{media}.txt"
    return Instruction(source.read_text(encoding="utf-8"))
