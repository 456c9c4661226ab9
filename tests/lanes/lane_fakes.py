"""Hooks of a lane that need no GPU: each model misbehaves in its own way, as its name says."""

# ruff: noqa: T201  # what a lane prints is the subject of tests
from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from wan_host import errors
from wan_host.model import ModelInfo
from wan_host.request import Clip, Enhancement, EnhanceRequest, Generation, GenerationRequest


def request(job_id="job-1", **values):
    defaults = {
        "job_type": "video_fast",
        "media": "video",
        "prompt": "a red circle",
        "width": 128,
        "height": 128,
        "frames": 9,
        "fps": 24,
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "sample_shift": 3.0,
        "sample_solver": "dpm++",
        "seed": 7,
    }
    return GenerationRequest(job_id=job_id, **{**defaults, **values})


async def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.01)


def frames_of(request, seed):
    """Frames that follow from the request alone, so that host and lane can each make them."""
    shape = (request.frames, request.height, request.width, 3)
    ramp = np.arange(request.height * request.width * 3, dtype=np.uint32).reshape(shape[1:])
    return np.stack([((ramp * (seed + 1) + 31 * i) & 255).astype(np.uint8) for i in range(request.frames)])


def good(request, seconds_per_step, context):
    with context.stage("text_encode"):
        time.sleep(seconds_per_step)
    with context.stage("denoise"):
        for i in range(request.num_inference_steps):
            time.sleep(seconds_per_step)
            context.step(i + 1, request.num_inference_steps)
    with context.stage("decode"):
        context.progress("decoded")
    clips = tuple(Clip(frames=frames_of(request, request.seed + i), seed=request.seed + i) for i in range(request.num_images))
    return Generation(clips=clips, metadata={"steps": request.num_inference_steps})


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class Closeable:
    def close(self):
        print("closed by the lane", flush=True)


class Hooks:
    def __init__(self, models, stamp=""):
        self.names = models
        self.stamp = stamp

    def models(self):
        return {name: ModelInfo(name=name, family="fake", runner="fake", path=f"/models/{name}") for name in self.names}

    def load_model(self, model, context):
        match model.name:
            case "load-raises":
                raise FileNotFoundError("no such folder /models/load-raises")
            case "load-none":
                return None
            case "load-slow":
                for _ in range(200):
                    context.progress("reading")
                    time.sleep(0.02)
            case "load-silent":
                time.sleep(60)
            case "load-oom":
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            case "closeable":
                return Closeable()
            case _:
                for i in range(3):
                    context.progress(f"file {i}")
        return {"name": model.name}

    def generate(self, request, loaded, model, context):
        method = getattr(self, f"_{model.name.replace('-', '_')}", None)
        if method is not None:
            return method(request, context)
        return good(request, 0.0, context)

    def process_frames(self, plugin_name, clip, request, context):
        if plugin_name == "double":
            return Clip(frames=np.repeat(clip.frames, 2, axis=0), seed=clip.seed)
        if plugin_name == "enlarge":
            factor = request.width // clip.frames.shape[2]
            return Clip(frames=clip.frames.repeat(factor, axis=1).repeat(factor, axis=2), seed=clip.seed)
        if plugin_name == "floats":
            return Clip(frames=clip.frames.astype(np.float32), seed=clip.seed)
        raise errors.UnsupportedRequest(f"no frame processor {plugin_name}")

    def enhance_prompt(self, plugin_name, request: EnhanceRequest, loaded, context):
        if plugin_name == "wrong":
            return request.prompt
        return Enhancement(prompt=f"{request.prompt}, in detail", source=plugin_name)

    def _slow(self, request, context):
        return good(request, 0.1, context)

    def _sigkill(self, request, context):
        context.step(1, 4)
        os.kill(os.getpid(), signal.SIGKILL)

    def _crash_once(self, request, context):
        context.step(1, 4)
        if not Path(self.stamp).exists():
            Path(self.stamp).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return good(request, 0.0, context)

    def _exit(self, request, context):
        print("about to leave", file=sys.stderr)
        os._exit(3)

    def _segfault(self, request, context):
        import faulthandler

        faulthandler._sigsegv()

    def _system_exit(self, request, context):
        sys.exit(5)

    def _hang(self, request, context):
        context.step(1, 4)
        time.sleep(60)

    def _holds_lock(self, request, context):
        context.step(1, 4)
        ctypes.PyDLL(None).sleep(60)  # unlike CDLL it keeps the interpreter's lock, and no other thread runs

    def _deaf(self, request, context):
        with context.stage("denoise"):
            for i in range(1000):
                time.sleep(0.05)
                with contextlib.suppress(errors.WanHostError):
                    context.step(i + 1, 1000)

    def _raises(self, request, context):
        raise ValueError("the sampler diverged")

    def _refuses(self, request, context):
        class Mine(errors.UnsupportedRequest):
            pass

        raise Mine("no such mode here; there is none")

    def _invalid(self, request, context):
        raise errors.InvalidJob("config.frames", 5, "one of 1, 9")

    def _wrapped_cancel(self, request, context):
        try:
            good(request, 0.05, context)
        except errors.JobCancelled as error:
            raise RuntimeError("callback failed") from error

    def _oom(self, request, context):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def _memory_error(self, request, context):
        raise MemoryError

    def _device_fault(self, request, context):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _wrong_shape(self, request, context):
        return Generation(clips=(Clip(frames=np.zeros((5, 128, 128, 3), np.uint8), seed=request.seed),))

    def _wrong_dtype(self, request, context):
        return Generation(clips=(Clip(frames=np.zeros((9, 128, 128, 3), np.float32), seed=request.seed),))

    def _wrong_count(self, request, context):
        return Generation(clips=())

    def _wrong_seed(self, request, context):
        return Generation(clips=(Clip(frames=frames_of(request, 0), seed=99),))

    def _wrong_type(self, request, context):
        return [1, 2]

    def _wrong_metadata(self, request, context):
        return Generation(clips=(Clip(frames=frames_of(request, 7), seed=7),), metadata={"path": Path("/x")})

    def _noisy(self, request, context):
        print("printed to stdout")
        print("printed to stderr", file=sys.stderr)
        sys.stderr.write("10%\r20%\r")
        logging.getLogger("some.library").warning("a library warns")
        os.write(1, b"written without an end of line")
        return good(request, 0.0, context)

    def _large(self, request, context):
        return Generation(clips=(Clip(frames=np.full((67, 1024, 1024, 3), 5, np.uint8), seed=request.seed),))

    def _grandchild(self, request, context):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(f"grandchild {child.pid}", flush=True)
        time.sleep(60)

    def _preview(self, request, context):
        context.preview(np.full((8, 8, 3), 9, np.uint8))
        return good(request, 0.0, context)

    def _early(self, request, context):
        return self._shown(request, context)

    def _early_and_others(self, request, context):
        self._shown(request, context)
        return good(request, 0.0, context)

    def _early_and_fails(self, request, context):
        self._shown(request, context, until=5)
        raise ValueError("the last chunk did not fit")

    def _early_and_waits(self, request, context):
        self._shown(request, context, until=5)
        for _ in range(600):
            context.progress("waiting")
            time.sleep(0.05)

    def _early_and_wrong(self, request, context):
        shape = (request.frames, request.height, request.width, 3)
        match request.prompt:
            case "shape":
                context.clip_frames(request.seed, shape[1:])
            case "seed":
                context.clip_frames(request.seed + 1, shape)
            case "no room":
                context.frames_ready(request.seed, 1)
            case "backwards":
                context.clip_frames(request.seed, shape)
                context.frames_ready(request.seed, 4)
                context.frames_ready(request.seed, 3)
            case "too many":
                context.clip_frames(request.seed, shape)
                context.frames_ready(request.seed, 10)

    def _shown(self, request, context, until=None):
        """Show one frame after the other, and what is not shown as nonsense."""
        clips = []
        for seed in range(request.seed, request.seed + request.num_images):
            made = frames_of(request, seed)
            frames = context.clip_frames(seed, made.shape)
            for number, frame in enumerate(made[:until]):
                frames[number:] = 99
                frames[number] = frame
                context.frames_ready(seed, number + 1)
                time.sleep(0.02)
            clips.append(Clip(frames=frames, seed=seed))
        return Generation(clips=tuple(clips))

    def _reference(self, request, context):
        image = request.references.image
        return Generation(clips=(Clip(frames=np.repeat(image[None], request.frames, axis=0), seed=request.seed),))


ALL = (
    *("good", "slow", "noisy", "large", "preview", "reference", "closeable"),
    *("early", "early-and-others", "early-and-fails", "early-and-waits", "early-and-wrong"),
    *("sigkill", "crash-once", "exit", "segfault", "system-exit", "hang", "holds-lock", "deaf", "grandchild", "wrapped-cancel"),
    *("raises", "refuses", "invalid", "oom", "memory-error", "device-fault"),
    *("wrong-shape", "wrong-dtype", "wrong-count", "wrong-seed", "wrong-type", "wrong-metadata"),
    *("load-raises", "load-none", "load-slow", "load-silent", "load-oom"),
)


def hooks(**options):
    gc.collect()
    return Hooks(ALL, **options)


def broken_hooks():
    raise ImportError("a plugin needs a library that is not there")


def dying_hooks():
    print("the driver is broken", file=sys.stderr, flush=True)
    os._exit(7)


def slow_hooks():
    time.sleep(60)


def flaky_hooks(stamp):
    """Dies at the first start, works at the second."""
    if not Path(stamp).exists():
        Path(stamp).touch()
        os._exit(7)
    return Hooks(ALL)
