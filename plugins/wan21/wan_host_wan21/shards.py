"""Write a module's weights shard by shard, so that no more than one shard is in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

SHARD_BYTES = 2_000_000_000


@dataclass(slots=True)
class ShardWriter:
    """Collects tensors and writes ``{stem}-00001-of-0000N.safetensors`` and their index, or one file where one is enough."""

    folder: Path
    stem: str
    limit: int = SHARD_BYTES
    _held: dict[str, torch.Tensor] = field(default_factory=dict)
    _held_bytes: int = 0
    _written: list[list[str]] = field(default_factory=list)
    _total: int = 0

    def add(self, key: str, tensor: torch.Tensor) -> None:
        """Take a tensor; writes a shard when the limit is reached."""
        size = tensor.numel() * tensor.element_size()
        if self._held and self._held_bytes + size > self.limit:
            self._flush()
        self._held[key] = tensor.contiguous()
        self._held_bytes += size
        self._total += size

    def close(self) -> None:
        """Write the rest, and give the shards their final names now that their number is known."""
        self._flush()
        count = len(self._written)
        if count == 1:
            self._part(0).rename(self.folder / f"{self.stem}.safetensors")
            return
        weights: dict[str, str] = {}
        for index, keys in enumerate(self._written):
            name = f"{self.stem}-{index + 1:05d}-of-{count:05d}.safetensors"
            self._part(index).rename(self.folder / name)
            weights |= dict.fromkeys(keys, name)
        content = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weights.items()))}
        path = self.folder / f"{self.stem}.safetensors.index.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        from safetensors.torch import save_file

        if not self._held:
            return
        save_file(self._held, self._part(len(self._written)), metadata={"format": "pt"})
        self._written.append(list(self._held))
        self._held, self._held_bytes = {}, 0

    def _part(self, index: int) -> Path:
        return self.folder / f"{self.stem}.part{index}"
