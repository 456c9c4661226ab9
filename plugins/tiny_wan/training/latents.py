"""Stage 2a: clips, captions and VACE controls, encoded once into buckets that stay in GPU memory.

A bucket holds clips of one length and size. Drawing is free and encoding is not, so each clip is encoded once and met
many times, each time with other noise and one of several phrasings of its caption.
"""

# ruff: noqa: ANN001, ANN204, C901, D102, D401, PLR0917, PLW0603 - numerical scripts: shapes in docstrings say more than types, and formulas have many arguments and constants
from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, replace

import numpy as np
import torch

from training import whole_sequence
from training.architecture import TEXT_TOKENS, build_tokenizer
from training.captions import bare_captions, captions
from training.world import BACKGROUND_RGB, BACKGROUNDS, Scenes, render, sample_backgrounds, sample_scenes

PHRASINGS = 3  # that name the subject; one more does not
BARE_SHARE = 0.25  # of the rows with a control: their picture shows the subject
CHUNK = 500  # scenes that share a seed
MODES = ("start", "end", "both")


@dataclass(frozen=True)
class Kind:
    """What a bucket holds and how often it is trained on."""

    name: str
    share: float  # of the steps
    batch: int
    controlled: int  # rows of the batch with a VACE control
    frames: int
    height: int
    width: int
    clips: int
    clips_with_control: int = 0
    reference: bool = False  # a subject image as an extra latent frame, instead of first and last frames


# The first is compiled; the others are not, so their batches are smaller.
KINDS = (
    Kind("main", 0.90, 256, 96, 17, 128, 128, 48_000, 20_000),
    Kind("still", 0.035, 256, 0, 1, 128, 128, 40_000),
    Kind("still wide", 0.005, 128, 0, 1, 128, 192, 6_000),
    Kind("subject", 0.02, 96, 96, 17, 128, 128, 5_000, 5_000, reference=True),
    Kind("9 frames", 0.01, 128, 48, 9, 128, 128, 3_000, 1_500),
    Kind("33 frames", 0.01, 64, 24, 33, 128, 128, 2_000, 1_000),
    Kind("81 frames", 0.01, 24, 8, 81, 128, 128, 700, 350),
    Kind("wide", 0.005, 96, 32, 17, 96, 160, 2_000, 1_000),
    Kind("tall", 0.005, 96, 32, 17, 160, 96, 2_000, 1_000),
)
QUICK_KINDS = (
    Kind("main", 0.6, 8, 3, 5, 32, 32, 40, 20),
    Kind("still", 0.2, 8, 0, 1, 32, 32, 20),
    Kind("subject", 0.2, 4, 4, 5, 32, 32, 20, 20, reference=True),
)


@dataclass
class Bucket:
    """Normalised latents (clips, 16, t, h, w) of one kind in bfloat16, and what belongs to them, on one device."""

    kind: Kind
    latents: torch.Tensor
    ids: torch.Tensor  # (clips, PHRASINGS + 1, TEXT_TOKENS) uint8, zero is padding; the last names no subject
    inactive: torch.Tensor | None  # (clips with control, 16, t, h, w): the encoded kept frames
    reactive: torch.Tensor | None  # (modes, 16, t, h, w): the encoded gray of the others; the clip's mode is row % modes

    def prompts(self, rows: torch.Tensor) -> torch.Tensor:
        """Token ids (rows, TEXT_TOKENS) int64, one phrasing each. Those without a subject go to rows with a control only."""
        phrasing = torch.randint(PHRASINGS, (len(rows),), device=rows.device)
        controlled = torch.arange(len(rows), device=rows.device) >= self.kind.batch - self.kind.controlled
        bare = controlled & (torch.rand(len(rows), device=rows.device) < BARE_SHARE)
        return self.ids[rows, phrasing.masked_fill(bare, PHRASINGS)].long()

    def control(self, rows: torch.Tensor) -> torch.Tensor:
        """VACE's control of these clips, (rows, 96, t, h, w): inactive, reactive, and the mask of 64 channels."""
        inactive = self.inactive[rows]
        reactive = self.reactive[rows % len(self.reactive)]
        mask = torch.ones_like(inactive[:, :1]).repeat(1, 64, 1, 1, 1)
        if self.kind.reference:  # the subject's own frame is kept
            mask[:, :, 0] = 0
        return torch.cat([inactive, reactive, mask], dim=1)


_tokenizer = None


def _caption_chunk(args: tuple[int, int, bool]) -> np.ndarray:
    """Token ids (scenes, PHRASINGS + 1, TEXT_TOKENS) of one chunk; runs in a pool of processes."""
    global _tokenizer
    _tokenizer = _tokenizer or build_tokenizer()
    count, seed, still = args
    scenes = sample_scenes(count, seed)
    ids = np.zeros((count, PHRASINGS + 1, TEXT_TOKENS), dtype=np.uint8)
    phrasings = [captions(scenes, seed * 10 + p, still) for p in range(PHRASINGS)]
    for p, texts in enumerate((*phrasings, bare_captions(scenes, seed * 10 + PHRASINGS))):
        for row, text in enumerate(_tokenizer(texts).input_ids):
            ids[row, p, : min(len(text), TEXT_TOKENS)] = [*text[: TEXT_TOKENS - 1], 1][: min(len(text), TEXT_TOKENS)]
    return ids


class Captions:
    """Captions made by a pool of processes, started before the GPU is touched."""

    def __init__(self, kinds: tuple[Kind, ...], seed: int):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._pool = multiprocessing.get_context("fork").Pool(max(1, min(12, (os.cpu_count() or 2) - 2)))
        jobs = {kind.name: [(n, s, kind.frames == 1) for n, s in chunks(kind, i, seed)] for i, kind in enumerate(kinds)}
        self._results = {name: self._pool.map_async(_caption_chunk, job) for name, job in jobs.items()}

    def ids(self, kind: Kind) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(self._results[kind.name].get()))

    def close(self) -> None:
        self._pool.close()
        self._pool.join()


def chunks(kind: Kind, index: int, seed: int) -> list[tuple[int, int]]:
    """(scenes, seed) of each chunk of a bucket."""
    sizes = [min(CHUNK, kind.clips - begin) for begin in range(0, kind.clips, CHUNK)]
    return [(n, seed * 10**6 + index * 10**4 + k) for k, n in enumerate(sizes)]


def subject_pictures(scenes: Scenes, seed: int) -> Scenes:
    """The same objects somewhere else, on white or on another ground."""
    rng = np.random.default_rng(seed)
    n = len(scenes)
    where = rng.random((n, 2, 2))
    background = np.where(rng.random(n) < 0.5, BACKGROUNDS.index("white"), sample_backgrounds(scenes.colour, rng))
    return replace(scenes, start=where, end=where, background=background, background_rgb=BACKGROUND_RGB[background] / 255)


@torch.no_grad()
def build(kind: Kind, index: int, seed: int, vae, ids: torch.Tensor, device: torch.device) -> Bucket:
    """Draw and encode one bucket."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    mean = torch.tensor(vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)

    def encode(clip: torch.Tensor) -> torch.Tensor:
        x = clip.to(dtype).contiguous(memory_format=torch.channels_last_3d)
        return ((whole_sequence.encode(vae, x).float() - mean) / std).to(dtype)

    size = (kind.frames, kind.height, kind.width)
    part = max(1, min(CHUNK, int(125 * 17 * 128 * 128 / (size[0] * size[1] * size[2]))))
    latents, inactive, done = [], [], 0
    for count, chunk_seed in chunks(kind, index, seed):
        scenes = sample_scenes(count, chunk_seed)
        for begin in range(0, count, part):
            some = scenes[begin : begin + part]
            clip = render(some, *size, device)
            encoded = encode(clip)
            row = torch.arange(done, done + len(some), device=device)
            done += len(some)
            wanted = row < kind.clips_with_control
            if kind.reference:
                picture = encode(render(subject_pictures(some, chunk_seed + begin), 1, *size[1:], device))
                encoded = torch.cat([picture, encoded], dim=2)
                inactive.append(picture)
            elif wanted.any():
                kept = torch.zeros(len(some), 1, kind.frames, 1, 1, device=device)
                kept[:, 0, 0, 0, 0] = (row % 3 != 1).float()
                kept[:, 0, -1, 0, 0] = (row % 3 != 0).float()
                inactive.append(encode((clip * kept)[wanted]))
            latents.append(encoded)

    reactive, shown = None, None
    if kind.clips_with_control:
        gray = torch.full((1, 3, *size), 128 / 255 * 2 - 1, device=device)
        nothing = encode(torch.zeros_like(gray))
        if kind.reference:
            shown = torch.cat([torch.cat(inactive), nothing.expand(len(torch.cat(inactive)), -1, -1, -1, -1)], dim=2)
            reactive = torch.cat([torch.zeros_like(nothing[:, :, :1]), encode(gray)], dim=2)
        else:
            shown = torch.cat(inactive)
            hidden = []
            for mode in range(len(MODES)):
                video = gray.clone()
                if mode != 1:
                    video[:, :, 0] = 0
                if mode != 0:
                    video[:, :, -1] = 0
                hidden.append(encode(video))
            reactive = torch.cat(hidden)
    return Bucket(kind, torch.cat(latents), ids.to(device), shown, reactive)
