"""Prompt embeddings, kept for the prompts used last: the negative prompt above all is the same in most jobs."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from wan_host_wan21.components import Components

    Together = Callable[[Sequence[Callable[[], torch.Tensor]]], list[torch.Tensor]]
    """Runs passes of the text encoder, and returns what each gives."""

MAX_TOKENS = 512
"""Length that Wan was trained with. ``encode_prompt`` defaults to 226 but the pipelines pass 512: it must be said."""

_KEPT = 32
"""At UMT5-XXL in bfloat16 one entry takes 4 MiB."""


class PromptEmbeddings:
    """Encodes texts to tensors of shape (1, 512, text_dim) and keeps the last 32 of them on the device."""

    def __init__(self, components: Components, device: torch.device) -> None:
        """Take tokenizer and text encoder from ``components``."""
        from diffusers import WanPipeline

        self._encoder = WanPipeline(
            tokenizer=components.tokenizer, text_encoder=components.text_encoder, vae=None, scheduler=None, transformer=None
        )
        self._tokenizer = components.tokenizer
        self._device = device
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __contains__(self, text: str) -> bool:
        """Whether a text needs no encoding."""
        return text in self._kept

    def forget(self) -> None:
        """Drop every kept embedding."""
        self._kept.clear()

    def encode(self, text: str) -> torch.Tensor:
        """Return the embedding of one text. Call under ``torch.no_grad``: an embedding that carries a graph must not be kept."""
        found = self._kept[text] if text in self._kept else self._computed(text)
        self._keep(text, found)
        return found

    def encode_all(self, texts: Sequence[str], together: Together) -> list[torch.Tensor]:
        """Return the embeddings of texts as `encode` does, those that are not kept ``together``."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if missing:
            for text, made in zip(missing, together([partial(self._computed, text) for text in missing]), strict=True):
                self._keep(text, made)
        return [self.encode(text) for text in texts]

    def _computed(self, text: str) -> torch.Tensor:
        made: torch.Tensor = self._encoder.encode_prompt(
            prompt=text, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS, device=self._device
        )[0]
        return made

    def _keep(self, text: str, made: torch.Tensor) -> None:
        self._kept[text] = made
        self._kept.move_to_end(text)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def tokens(self, text: str) -> int:
        """Return the number of tokens of a text, its end marker included; those beyond 512 have no effect."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return len(self._tokenizer(prompt_clean(text), truncation=False, verbose=False).input_ids)
