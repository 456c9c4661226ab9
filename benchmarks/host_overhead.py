"""What the host adds to a job: everything but the plugins' own work and the encoder.

Runs a worker on the embedded queue with a model that draws at once (``wan_host.testing.instant``), pushes jobs one at a time, and
takes each job's seconds from its claim to the queue's last word, less what its stages say was spent in plugins (generate,
postprocess, publish) and in ffmpeg or the PNG writer (encode). Run it on an idle machine.

    python benchmarks/host_overhead.py [--jobs 100]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from wan_host.queue import EmbeddedServer
from wan_host.testing import instant
from wan_host.testing.process import WorkerProcess
from wan_host.testing.receiver import Receiver

PLUGIN_STAGES = ("load", "generate", "text_encode", "denoise", "decode", "encode", "postprocess", "publish")


def job(number: int, kind: str) -> str:
    """Return the payload of one small job."""
    return json.dumps(
        {
            "id": f"{kind}-{number}",
            "type": f"{kind}_fast",
            "prompt": "instant",
            "user_id": "bench",
            "config": {"width": 128, "height": 128},
        }
    )


def spent(worker: WorkerProcess, kind: str) -> tuple[float, float]:
    """Return the seconds of all jobs of a kind so far, and those of them inside plugins and encoders, from ``/metrics``."""
    total = inside = 0.0
    for family in text_string_to_metric_families(worker.get("/metrics")[1]):
        for sample in family.samples:
            if not sample.labels.get("job_type", "").startswith(kind):
                continue
            if sample.name == "wan_host_job_seconds_sum":
                total += sample.value
            elif sample.name == "wan_host_stage_seconds_sum" and sample.labels["stage"] in PLUGIN_STAGES:
                inside += sample.value
    return total, inside


def measure(kind: str, jobs: int, client: Redis, receiver: Receiver, worker: WorkerProcess) -> dict[str, float]:
    """Push jobs one after another; return milliseconds a job."""
    client.rpush("wan_queue", job(-1, kind))
    receiver.wait_for(f"{kind}--1", "completed", seconds=30)  # the first one loads the model
    before, from_push = spent(worker, kind), []
    for number in range(jobs):
        pushed = time.perf_counter()
        client.rpush("wan_queue", job(number, kind))
        receiver.wait_for(f"{kind}-{number}", "completed", seconds=30)
        from_push.append(time.perf_counter() - pushed)
    total, inside = (after - earlier for after, earlier in zip(spent(worker, kind), before, strict=True))
    return {
        "push to report (median)": statistics.median(from_push) * 1000,
        "in plugins and encoders (mean)": inside / jobs * 1000,
        "host overhead (mean)": (total - inside) / jobs * 1000,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder, Receiver() as receiver:
        plugins, data = Path(folder) / "plugins", Path(folder) / "data"
        instant.install(plugins)
        environment = {
            "PYTHONPATH": os.pathsep.join([str(plugins), os.environ.get("PYTHONPATH", "")]),
            "WAN_HOST_MODEL": "instant",
            "WAN_HOST_DEVICES": "cpu",
            "WAN_HOST_CALLBACK_URL": receiver.url,
        }
        with WorkerProcess(data_dir=data, environment=environment) as worker:
            idle = psutil.Process(worker.pid).memory_info().rss / 2**20
            with Redis.from_url(EmbeddedServer(data).url) as client:
                results = {kind: measure(kind, jobs, client, receiver, worker) for kind in ("image", "video")}
            used = psutil.Process(worker.pid).memory_info().rss / 2**20
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(f"host process: {idle:.0f} MiB idle, {used:.0f} MiB after {2 * jobs} jobs")
        for kind, result in results.items():
            print(f"{kind} 128x128: " + ", ".join(f"{name} {value:.1f} ms" for name, value in result.items()) + f" ({jobs} jobs)")


if __name__ == "__main__":
    main()
