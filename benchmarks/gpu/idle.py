"""How long a lane rests between two jobs while others wait, with everything else overlapped and with overlap switched off.

    python benchmarks/gpu/idle.py --out results                       # CUDA, random weights, about two minutes
    python benchmarks/gpu/idle.py --out results --size 1.3b --steps 8 # the real architecture; 8 GB on disk
    python benchmarks/gpu/idle.py --out results --device cpu --quick
    python benchmarks/gpu/idle.py --out results --checkpoint FOLDER

Two workers (``wan-host run``, each with its own Valkey) differ in ``WAN_HOST_OVERLAP`` alone. They take turns: a round pushes all
its jobs to one of them at once, and ends when the receiver has accepted the last report. Text to video and video from two
reference frames take turns, too; each prompt is new. Receiver, publisher and the server of the references are slow.

A *gap* is the time between the last work of the VAE's decoder in one job and the next job's first pass of any module, by the
GPU's own clock (CUDA events; ``idle_lane.py`` says where they stand). Its parts are by the host's clock: ``tail``, until the
plugin has returned the frames in the host's memory; ``between``, until it is called again; ``head``, until its first pass.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import idle_lane
import numpy as np
from PIL import Image
from redis import Redis

from wan_host.queue import EmbeddedServer
from wan_host.testing import instant
from wan_host.testing.process import WorkerProcess
from wan_host.testing.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
MODES = ("on", "off")
PARTS = ("gap", "tail", "between", "head")


class Worker:
    """A worker of one mode: pushes jobs to it, and reads what its lane has marked."""

    def __init__(self, mode: str, arguments: argparse.Namespace, out: Path, receiver: Receiver) -> None:
        """Start the process; ``ready`` waits for it."""
        self.mode, self.receiver, self.folder = mode, receiver, out / f"worker-{mode}"
        self.marks = self.folder / "marks.jsonl"
        plugins = self.folder / "plugins"
        shutil.rmtree(self.folder, ignore_errors=True)
        instant.install(plugins, {"idle": "idle_lane"}, distribution="idle-lane")
        path = [str(plugins), str(HERE), *sys.path]
        self.process = WorkerProcess(
            data_dir=self.folder,
            environment={
                "PYTHONPATH": os.pathsep.join(entry for entry in path if entry),
                idle_lane.CHECKPOINT: str(arguments.checkpoint),
                idle_lane.MARKS: str(self.marks),
                idle_lane.PUBLISH_SECONDS: str(arguments.publish_seconds),
                "WAN_HOST_WAN21_DATA_DIR": str(out / "wan21"),
                "WAN_HOST_MODEL": idle_lane.MODEL,
                "WAN_HOST_PUBLISHER": "idle",
                "WAN_HOST_DEVICES": arguments.device,
                "WAN_HOST_DISABLED_PLUGINS": "qwen_enhance,supabase,tiny_wan",
                "WAN_HOST_CALLBACK_URL": receiver.url,
                "WAN_HOST_REFERENCE_HOSTS": "127.0.0.1",
                "WAN_HOST_OVERLAP": "true" if mode == "on" else "false",
                "WAN_HOST_WAN21_WARM_UP": "false",
                "WAN_HOST_WAN21_COMPILE": "true" if arguments.compile else "false",
            },
        )
        self.process.start()

    def ready(self) -> None:
        """Wait until it takes jobs."""
        self.process.wait_ready(120)

    def round(self, name: str, count: int, arguments: argparse.Namespace, reference: str) -> list[dict[str, Any]]:
        """Push jobs at once, wait until all are reported; return their marks in the order of the lane."""
        names = [f"{self.mode}-{name}-{index}" for index in range(count)]
        with Redis.from_url(EmbeddedServer(self.folder).url) as client:
            client.rpush("wan_queue", *(json.dumps(job(each, index, arguments, reference)) for index, each in enumerate(names)))
        for index, each in enumerate(names):
            mode = self._wait_for(each, arguments.patience)["metadata"]["reference_mode"]
            if (mode != "none") != _refers(index, arguments):
                raise SystemExit(f"{each} was made with reference mode {mode}: the queue is not the one that is to be measured")
        marks = [json.loads(line) for line in self.marks.read_text("utf-8").splitlines()]
        return [mark for mark in marks if mark["job"] in names]

    def _wait_for(self, name: str, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while True:
            ended = [report for report in self.receiver.reports(name) if report["status"] != "processing"]
            if ended and ended[0]["status"] == "completed":
                return ended[0]
            if ended or self.process.ended() is not None or time.monotonic() > until:
                raise SystemExit(
                    f"{name} did not complete: {ended or 'no report'}; see {self.process.log}\n{self.process.log_tail()}"
                )
            time.sleep(0.02)


def job(name: str, index: int, arguments: argparse.Namespace, reference: str) -> dict[str, Any]:
    """Return a payload: every second one with a first and a last frame that must be fetched."""
    config = {
        "width": arguments.width,
        "height": arguments.height,
        "frames": arguments.frames,
        "num_inference_steps": arguments.steps,
    }
    payload = {"id": name, "type": "video_fast", "user_id": "bench", "prompt": f"a red circle, {name}", "config": config}
    if _refers(index, arguments):
        config |= {"first_frame": reference, "last_frame": reference}
    return payload


def _refers(index: int, arguments: argparse.Namespace) -> bool:
    return bool(index % 2) and not arguments.no_references


@contextmanager
def slow_picture(seconds: float, width: int, height: int) -> Iterator[str]:
    """Serve a picture, ``seconds`` after it was asked for; yield its address."""
    made = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(made, "png")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(made.tell()))
            self.end_headers()
            self.wfile.write(made.getvalue())

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/picture.png"
    finally:
        server.shutdown()
        server.server_close()


def gaps(marks: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the seconds between the jobs of a round, in parts."""
    found = []
    for one, other in itertools.pairwise(marks):
        gap = other["first"] - one["last"]
        between = other["clock"]["called"] - one["clock"]["returned"]
        head = other["clock"]["first"] - other["clock"]["called"]
        found.append({"gap": gap, "tail": gap - between - head, "between": between, "head": head})
    return found


def measured(name: str, marks: list[dict[str, Any]], mode: str) -> dict[str, Any]:
    """Return a round as it is kept."""
    between = gaps(marks)
    whole = marks[-1]["last"] - marks[0]["first"]
    resting = sum(part["gap"] for part in between)
    ends = marks[-1]["end"]
    return {
        "round": name,
        "overlap": mode,
        "jobs": len(marks),
        "seconds": whole,
        "resting": resting,
        "ends": ends,
        "gaps": between,
    }


def summary(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a mode."""
    rows = []
    for mode in MODES:
        chosen = [item for item in rounds if item["overlap"] == mode]
        parts = [gap for item in chosen for gap in item["gaps"]]
        if parts:
            row: dict[str, Any] = {"overlap": mode, "rounds": len(chosen), "gaps": len(parts)}
            row |= {f"{part}_ms": statistics.median(gap[part] for gap in parts) * 1e3 for part in PARTS}
            row["worst_ms"] = max(gap["gap"] for gap in parts) * 1e3
            row["resting"] = sum(item["resting"] for item in chosen) / sum(item["seconds"] for item in chosen)
            row["job_seconds"] = sum(item["seconds"] for item in chosen) / sum(item["jobs"] for item in chosen)
            rows.append(row)
    return rows


def table(setting: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| overlap | gap, median | worst | tail | between | head | lane at rest | seconds a job | gaps (rounds) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = " | ".join(f"{row[name]:.1f} ms" for name in ("gap_ms", "worst_ms", "tail_ms", "between_ms", "head_ms"))
        counts = f"{row['gaps']} ({row['rounds']})"
        lines.append(f"| {row['overlap']} | {times} | {row['resting']:.1%} | {row['job_seconds']:.2f} | {counts} |")
    told = ", ".join(f"{name} {value}" for name, value in setting.items())
    return "\n".join([*lines, "", told, ""])


def checkpoint(arguments: argparse.Namespace, out: Path) -> Path:
    """Return the folder to load: the one given, or a new one with random weights."""
    if arguments.checkpoint is not None:
        return arguments.checkpoint.resolve()
    from wan_host_wan21.checkpoint import Kind
    from wan_host_wan21.fake import SIZES, write_checkpoint

    kind = Kind.T2V if arguments.no_references else Kind.VACE
    size = SIZES[arguments.size]
    if arguments.size != "tiny":
        size = replace(size, text_layers=arguments.text_layers)
    folder = out / f"random-{kind}-{arguments.size}"
    if not (folder / "model_index.json").is_file():
        import torch

        with torch.device(arguments.device):  # a GPU makes billions of random numbers at once, a CPU in a minute
            write_checkpoint(folder, kind, size, progress=lambda part: print(f"making {part}", flush=True))
        if arguments.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return folder


def setting(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a measurement depends on."""
    import torch

    asked = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cuda = arguments.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(arguments.device) if cuda else "CPU",
        "torch": torch.__version__,
        "commit": arguments.commit or asked.stdout.strip() or "unknown",
        "checkpoint": arguments.checkpoint.name,
        "shape": f"{arguments.width}x{arguments.height}x{arguments.frames}",
        "steps": arguments.steps,
        "references": "none" if arguments.no_references else "first and last frame in every second job",
        "receiver_seconds": arguments.receiver_seconds,
        "publish_seconds_a_file": arguments.publish_seconds,
        "fetch_seconds": arguments.fetch_seconds,
        "compiled": arguments.compile,
        "cores": os.cpu_count(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--size", choices=["tiny", "1.3b"], default="tiny", help="of the random weights")
    parser.add_argument(
        "--text-layers", type=int, default=2, help="layers of the random text encoder at 1.3b (the real one has 24)"
    )
    parser.add_argument("--checkpoint", type=Path, help="a folder in the diffusers layout instead")
    parser.add_argument("--no-references", action="store_true", help="text to video alone")
    parser.add_argument("--width", type=int)
    parser.add_argument("--height", type=int)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--jobs", type=int, help="in a round with overlap")
    parser.add_argument("--jobs-off", type=int, help="in a round without")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--receiver-seconds", type=float, default=2.0)
    parser.add_argument("--publish-seconds", type=float, default=1.0)
    parser.add_argument("--fetch-seconds", type=float, default=0.3)
    parser.add_argument("--compile", action="store_true", help="compile the blocks, as the plugin does on CUDA")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds after which no round begins")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for one job")
    parser.add_argument("--commit", default="")
    parser.add_argument("--quick", action="store_true", help="few small jobs")
    arguments = parser.parse_args()
    small = {"width": 64, "height": 64, "frames": 9, "steps": 4, "jobs": 4, "jobs_off": 2, "rounds": 1}
    usual = {"width": 480, "height": 832, "frames": 81, "steps": 8, "jobs": 8, "jobs_off": 4, "rounds": 2}
    for name, value in (small if arguments.quick else usual).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def main() -> None:
    """Run the benchmark."""
    begun, arguments = time.monotonic(), read_arguments()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    arguments.checkpoint = checkpoint(arguments, out)
    kept: dict[str, Any] = {"setting": setting(arguments), "rounds": []}

    def late(_: object) -> int:
        time.sleep(arguments.receiver_seconds)
        return 200

    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver(late))
        picture = stack.enter_context(slow_picture(arguments.fetch_seconds, arguments.width, arguments.height))
        workers = []
        for mode in MODES:
            workers.append(Worker(mode, arguments, out, receiver))
            stack.push(workers[-1].process.__exit__)
        for worker in workers:
            worker.ready()
            worker.round("warm", 2, arguments, picture)
        print(f"ready after {time.monotonic() - begun:.1f} s", flush=True)
        for number in range(arguments.rounds):
            for worker in workers:
                if time.monotonic() - begun > arguments.budget:
                    print(f"no time for round {number} with overlap {worker.mode}", flush=True)
                    continue
                count = arguments.jobs if worker.mode == "on" else arguments.jobs_off
                row = measured(str(number), worker.round(str(number), count, arguments, picture), worker.mode)
                kept["rounds"].append(row)
                kept["setting"]["last_mark"] = row["ends"]
                kept["summary"] = summary(kept["rounds"])
                (out / "idle.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
                (out / "idle.md").write_text(table(kept["setting"], kept["summary"]), encoding="utf-8")
                rested = ", ".join(f"{gap['gap'] * 1e3:.0f}" for gap in row["gaps"])
                told = f"{row['jobs']} jobs in {row['seconds']:.2f} s, gaps of {rested} ms"
                print(f"round {number}, overlap {worker.mode}: {told}", flush=True)
    print((out / "idle.md").read_text("utf-8"))
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
