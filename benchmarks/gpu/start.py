"""From the start of a process to the first step of its first job, with a checkpoint of the real size on the local disk.

    python benchmarks/gpu/start.py --out results --work /tmp/start               # 170 s at most
    python benchmarks/gpu/start.py --out results --work /tmp/start --size tiny --device cpu

Every run is a process of its own, and the variants take turns. `stock` is `WanPipeline.from_pretrained(...).to(device)` and one
step of it; `plugin` loads through the plugin's hooks as a lane does, compiles for its default shapes (a video and an image) and
makes the same step; `resident` is the plugin with every weight on the device, as stock has it; `eager` is `resident` without
compiling. In a cold run the checkpoint's files are not in the page cache and its shapes were not compiled; in a warm one they
are, and compiled kernels are kept. The libraries' own files are in the page cache always, and compiled to bytecode, which an
installation does and which takes longer than all the rest where nobody has: a tiny model is made by each variant first. Weights
are random; a fingerprint of all bits shows that every variant loaded the same.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIANTS: dict[str, dict[str, str]] = {
    "stock": {},
    "plugin": {},
    "resident": {"WAN_HOST_WAN21_PLACEMENT": "resident"},
    "eager": {"WAN_HOST_WAN21_PLACEMENT": "resident", "WAN_HOST_WAN21_COMPILE": "false"},
}
FIRST = (("stock", True), ("eager", True), ("stock", False), ("eager", False), ("plugin", True))
"""Variants and whether cold. The plugin comes last: without compiled kernels it takes longest."""
PHASES = ("import", "load", "place", "compile", "first step")
RESERVE, SHARD_BYTES, POOL_BYTES = 6.0, 4_000_000_000, 64 * 2**20
PROMPT, NEGATIVE, STEPS, GUIDANCE, SHIFT, SEED = "a large red circle", "blurry", 50, 5.0, 3.0, 7
SHAPES = {"1.3b": (832, 480, 81), "small": (48, 32, 9), "tiny": (48, 32, 9)}
"""Width, height and frames."""


class Stopped(Exception):
    """The first step is done."""


class Clock:
    """Seconds since the process was started, by the marks that were passed."""

    def __init__(self) -> None:
        """``WAN_HOST_START`` is the parent's clock at the start, which is this process's too."""
        self._begun = float(os.environ["WAN_HOST_START"])
        self.marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Pass a mark; of one that is passed again, the last time counts."""
        self.marks[name] = time.monotonic() - self._begun

    def phases(self) -> dict[str, float]:
        """Return the seconds of every phase."""
        before, found = 0.0, {}
        for name in PHASES:
            if name in self.marks:
                found[name], before = round(self.marks[name] - before, 3), self.marks[name]
        return found


class Peak:
    """The process's memory: watched for what is its own, asked of the system for everything that it maps."""

    def __init__(self) -> None:
        """Begin to watch."""
        self.own = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.own = max(self.own, self.read("RssAnon"))
            time.sleep(0.05)

    @staticmethod
    def read(name: str) -> int:
        """Return a line of the process's status in bytes."""
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
        return 0


def wait(device: str) -> None:
    """Wait until the device has done what it was told."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def fingerprint(parts: dict[str, Any]) -> str:
    """Return a number of all the weights' bits, the same wherever they lie."""
    import torch

    total = 0
    for part in parts.values():
        for key, tensor in sorted(part.named_parameters()):
            if "fused" in key or "to_qkv" in key or "to_kv" in key:
                continue  # what compiling joins: copies of others
            bits = tensor.detach().contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)  # noqa: PLR2004
            total = (total * 31 + int(bits.sum(dtype=torch.int64)) + tensor.numel()) % 2**61
    return f"{total:x}"


def stock(clock: Clock, folder: Path, device: str, size: str) -> dict[str, Any]:
    """Load as diffusers' own pages say, and make a step."""
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
    from transformers import UMT5EncoderModel  # noqa: F401  # from_pretrained imports it

    clock.mark("import")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", dtype=torch.float32)
    pipeline = WanPipeline.from_pretrained(folder, vae=vae, dtype=dtype)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=SHIFT)
    clock.mark("load")
    pipeline.to(device)
    wait(device)
    clock.mark("place")
    width, height, frames = SHAPES[size]

    def stop(*_: Any) -> dict[str, Any]:
        wait(device)
        clock.mark("first step")
        raise Stopped

    with suppress(Stopped):
        pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            width=width,
            height=height,
            num_frames=frames,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            callback_on_step_end=stop,
        )
    return {"parts": {"vae": pipeline.vae, "transformer": pipeline.transformer, "text_encoder": pipeline.text_encoder}}


class Lane:
    """A lane's context that marks what it hears and stops after the first step."""

    def __init__(self, clock: Clock, device: str) -> None:
        self.clock, self.device = clock, device

    def check(self) -> None:
        """Never cancel."""

    def progress(self, note: str = "") -> None:
        """Mark the notes that end a phase."""
        if note.endswith("loaded"):
            self.clock.mark("import" if note == "tokenizer loaded" else "load")
        elif note.startswith("placed"):
            wait(self.device)
            self.clock.mark("place")

    def preview(self, image: Any) -> None:
        """Look at no picture."""

    def clip_frames(self, seed: int, shape: tuple[int, int, int, int]) -> Any:  # noqa: ARG002  # the protocol's
        """Give room for frames that nobody will see."""
        import numpy as np

        return np.empty(shape, np.uint8)

    def frames_ready(self, seed: int, count: int) -> None:
        """Encode nothing."""

    def resume(self, made_with: Any) -> None:
        """Begin anew."""

    def checkpoint(self, save: Any) -> None:
        """Keep nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:  # noqa: ARG002  # the protocol's
        """Time no stage."""
        yield

    def step(self, _step: int, _total: int) -> None:
        """End with the first."""
        wait(self.device)
        self.clock.mark("first step")
        raise Stopped


def plugin(clock: Clock, device: str, size: str) -> dict[str, Any]:
    """Load by the plugin's hooks, and make a step."""
    import wan_host_wan21

    from wan_host import GenerationRequest

    (info,) = wan_host_wan21.list_models()
    lane: Any = Lane(clock, device)
    model = wan_host_wan21.load_model(info, lane)
    wait(device)
    clock.mark("compile")
    width, height, frames = SHAPES[size]
    request = GenerationRequest(
        job_id="start",
        job_type="video_high",
        media="video",
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=width,
        height=height,
        frames=frames,
        fps=24,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        sample_shift=SHIFT,
        sample_solver="unipc",
        seed=SEED,
    )
    with suppress(Stopped):
        wan_host_wan21.generate(request, model, lane)
    model.acceleration.leave()
    parts = model.components
    return {
        "placement": str(model.placer.current),
        "parts": {"vae": parts.vae, "transformer": parts.transformer, "text_encoder": parts.text_encoder},
    }


def child(variant: str, folder: Path, device: str, size: str) -> None:
    """Be one run; print what was measured as the last line."""
    clock, peak = Clock(), Peak()
    made = stock(clock, folder, device, size) if variant == "stock" else plugin(clock, device, size)
    import torch

    row = {
        "seconds": round(clock.marks["first step"], 3),
        "ready": round(clock.marks["place" if variant == "stock" else "compile"], 3),
        "phases": clock.phases(),
        "rss": Peak.read("VmHWM"),
        "own": peak.own,
        "device_bytes": torch.cuda.max_memory_reserved() if device.startswith("cuda") else 0,
        "placement": made.get("placement", ""),
        "fingerprint": fingerprint(made["parts"]),
        "versions": {"torch": torch.__version__, "device": torch.cuda.get_device_name() if device != "cpu" else "CPU"},
    }
    print(json.dumps(row), flush=True)
    os._exit(0)  # what the interpreter takes to end is no part of a start


def write(folder: Path, size: str) -> None:
    """Write a text-to-video checkpoint of the real classes: noise that repeats, so that the disk sets the pace."""
    from concurrent.futures import ThreadPoolExecutor
    from dataclasses import replace

    import torch
    from wan_host_wan21 import fake
    from wan_host_wan21.checkpoint import Kind
    from wan_host_wan21.layout import write_index

    narrow = {"text_dim": 1024, "text_layers": 6, "text_ffn_dim": 2560, "text_heads": 16, "vocabulary": 64000}
    chosen = replace(fake.REAL, layers=6, **narrow) if size == "small" else fake.SIZES[size]
    with torch.device("meta"):
        parts = {
            "text_encoder": (fake._text_encoder(chosen), torch.bfloat16, "model"),  # noqa: SLF001  # nobody else needs them
            "transformer": (fake._transformer(Kind.T2V, chosen), torch.bfloat16, "diffusion_pytorch_model"),  # noqa: SLF001  # as above
            "vae": (fake._vae(chosen), torch.float32, "diffusion_pytorch_model"),  # noqa: SLF001  # as above
        }
    fake._tokenizer().save_pretrained(folder / "tokenizer")  # noqa: SLF001  # as above
    noise = torch.randn(POOL_BYTES // 4, generator=torch.Generator().manual_seed(SEED)) / 50
    jobs = []
    for name, (module, dtype, stem) in parts.items():
        if name == "text_encoder":
            module.config.save_pretrained(folder / name)
        else:
            module.save_config(folder / name)
        jobs += _shards(folder / name, stem, module, dtype)
    pools = {dtype: memoryview(noise.to(dtype).view(torch.uint8).numpy()) for dtype in (torch.bfloat16, torch.float32)}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: _write_shard(job[0], job[1], job[2], pools[job[2]]), jobs))
    write_index(folder, Kind.T2V, random_weights=True)


def _shards(folder: Path, stem: str, module: Any, dtype: Any) -> list[tuple[Path, dict[str, list[int]], Any]]:
    """Spread a module's tensors over files, and write their index."""
    files: list[dict[str, list[int]]] = [{}]
    held = 0
    for key, parameter in module.named_parameters():
        size = parameter.numel() * dtype.itemsize
        if files[-1] and held + size > SHARD_BYTES:
            files.append({})
            held = 0
        files[-1][key] = list(parameter.shape)
        held += size
    if len(files) == 1:
        return [(folder / f"{stem}.safetensors", files[0], dtype)]
    names = [f"{stem}-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    weights = {key: name for name, keys in zip(names, files, strict=True) for key in keys}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}), encoding="utf-8")
    return [(folder / name, keys, dtype) for name, keys in zip(names, files, strict=True)]


def _write_shard(path: Path, shapes: dict[str, list[int]], dtype: Any, pool: memoryview) -> None:
    """Write a safetensors file: eight bytes of length, a JSON object padded to eight, the tensors one after another."""
    import math

    kind = "BF16" if dtype.itemsize == 2 else "F32"  # noqa: PLR2004  # bytes
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        place = 0
        while place < end:
            at = place % len(pool)
            place += file.write(pool[at : at + end - place])
        os.fsync(file.fileno())


def evict(folder: Path) -> None:
    """Drop the checkpoint's files from the page cache."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fetch(folder: Path) -> None:
    """Bring the checkpoint's files into the page cache."""
    room = bytearray(2**24)
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass


def cached(folder: Path) -> float:
    """Return the share of the checkpoint's pages that are in the page cache; asking reads none of them."""
    import ctypes
    import mmap

    import numpy as np

    found = asked = 0
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
            begin = np.frombuffer(mapped, np.uint8).ctypes.data
            if ctypes.CDLL(None).mincore(
                ctypes.c_void_p(begin), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)
            ):
                raise OSError(f"mincore of {path} failed")
            found, asked = found + int((pages & 1).sum()), asked + len(pages)
    return round(found / asked, 3)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint if it is not there, then let the variants take turns until the time is up."""
    begun = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = arguments.work / arguments.size
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    environment |= {"PYTHONPYCACHEPREFIX": str(arguments.work / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    if not (folder / "model_index.json").is_file():
        subprocess.run([*_command(arguments, arguments.size), "--write"], env=environment, check=True)
    stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    found: dict[str, Any] = {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "size": arguments.size,
        "stored_bytes": stored,
        "write_seconds": round(time.monotonic() - begun, 1),
        "runs": [],
    }
    print(f"{stored / 1e9:.1f} GB written and flushed after {found['write_seconds']} s", flush=True)
    chosen = arguments.variants.split(",")
    plan = [(variant, cold) for variant, cold in FIRST if variant in chosen]
    plan += [(variant, False) for variant in ("plugin", "resident", "stock", "eager") if variant in chosen] * arguments.repeats
    taken: dict[tuple[str, bool], float] = {}
    _compile_libraries(arguments, chosen, environment)
    print(f"libraries compiled after {time.monotonic() - begun:.1f} s", flush=True)
    for variant, cold in plan:
        left = arguments.budget - RESERVE - (time.monotonic() - begun)
        expected = taken.get((variant, cold), max(taken.values(), default=10.0))
        if left < expected:
            print(f"no time for {variant} {'cold' if cold else 'warm'}: {left:.0f} s left", flush=True)
            continue
        started = time.monotonic()
        (evict if cold else fetch)(folder)
        row = {"variant": variant, "cold": cold, "cached": cached(folder)}
        try:
            asked = _run(arguments, arguments.size, variant, environment, "data", max(left, 1))
        except subprocess.TimeoutExpired:
            print(f"{variant} {'cold' if cold else 'warm'}: cut off after {left:.0f} s", flush=True)
            continue
        if asked.returncode:
            row["failed"] = asked.stderr[-2000:]
            print(f"{variant}: failed\n{asked.stderr[-3000:]}", flush=True)
        else:
            row |= json.loads(asked.stdout.strip().splitlines()[-1])
            print(f"{variant} {'cold' if cold else 'warm'}: {row['seconds']} s {row['phases']} {row['placement']}", flush=True)
        taken[variant, cold] = time.monotonic() - started
        found["runs"].append(row)
        (arguments.out / "start.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def _command(arguments: argparse.Namespace, size: str) -> list[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--work", str(arguments.work), "--size", size]
    return [*command, "--device", arguments.device, "--out", str(arguments.out)]


def _run(  # noqa: PLR0917  # what sets one run apart
    arguments: argparse.Namespace, size: str, variant: str, environment: dict[str, str], data: str, seconds: float
) -> subprocess.CompletedProcess[str]:
    """Let a process be one run, which keeps what it compiles in the folder ``data``. Raise TimeoutExpired."""
    width, height, frames = SHAPES[size]
    model = {"path": str(arguments.work / size), "defaults": {"width": width, "height": height, "frames": frames}}
    run = environment | VARIANTS[variant]
    run |= {"WAN_HOST_DATA_DIR": str(arguments.work / data), "WAN_HOST_WAN21_MODELS": json.dumps({"start": model})}
    run["WAN_HOST_START"] = str(time.monotonic())
    command = [*_command(arguments, size), "--child", variant]
    return subprocess.run(command, env=run, capture_output=True, text=True, check=False, timeout=seconds)


def _compile_libraries(arguments: argparse.Namespace, variants: list[str], environment: dict[str, str]) -> None:
    """Import by every variant what it imports, with a tiny model that is measured by nobody."""
    if arguments.size != "tiny" and not (arguments.work / "tiny" / "model_index.json").is_file():
        subprocess.run([*_command(arguments, "tiny"), "--write"], env=environment, check=True)
    for variant in variants:
        try:
            asked = _run(arguments, "tiny", variant, environment, "data-of-tiny", arguments.budget)
        except subprocess.TimeoutExpired:
            sys.exit(f"{variant}: a tiny model took longer than {arguments.budget:.0f} s")
        if asked.returncode:
            sys.exit(f"{variant}: a tiny model failed\n{asked.stderr[-3000:]}")


def table(found: dict[str, Any]) -> str:
    """Return the medians as markdown."""
    runs = [row for row in found["runs"] if "failed" not in row]
    if not runs:
        return "nothing was measured\n"
    versions = runs[0]["versions"]
    lines = [
        (
            f"{versions['device']}, torch {versions['torch']}, {found['date']}; {found['stored_bytes'] / 1e9:.1f} GB of weights."
            " Seconds from the start of the process, medians."
        ),
        "",
        "| files | variant | runs | "
        + " | ".join(PHASES)
        + " | first step done | own memory GiB | with mapped files GiB | weights |",
        "| --- | --- | " + "--- | " * (len(PHASES) + 5),
    ]
    same = {row["fingerprint"] for row in runs}
    for cold in (True, False):
        for variant in VARIANTS:
            rows = [row for row in runs if row["variant"] == variant and row["cold"] is cold]
            if not rows:
                continue

            def median(values: list[float]) -> str:
                return f"{statistics.median(values):.1f}" if values else ""

            phases = " | ".join(median([row["phases"][name] for row in rows if name in row["phases"]]) for name in PHASES)
            memory = " | ".join(f"{max(row[name] for row in rows) / 2**30:.1f}" for name in ("own", "rss"))
            name = f"{variant} ({rows[0]['placement']})" if rows[0]["placement"] else variant
            total = median([row["seconds"] for row in rows])
            files = "cold" if cold else "warm"
            agree = "the same" if len(same) == 1 else rows[0]["fingerprint"]
            lines.append(f"| {files} | {name} | {len(rows)} | {phases} | {total} | {memory} | {agree} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="start.json and start.md")
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder on the disk under test; it keeps checkpoint and kernels"
    )
    parser.add_argument("--size", choices=list(SHAPES), default="1.3b")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--repeats", type=int, default=3, help="of the warm runs")
    parser.add_argument("--budget", type=float, default=170, help="seconds in all")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.work / arguments.size, arguments.device, arguments.size)
    elif arguments.write:
        write(arguments.work / arguments.size, arguments.size)
    else:
        text = table(measure(arguments))
        (arguments.out / "start.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
