"""The work that every contender does: the same file published with the same care, the same two reports.

No import of the host: this runs in the other contenders' environments as well.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from typing import Any

import httpx

REDIS_URL = os.environ.get("BENCH_REDIS_URL", "")
RECEIVER_URL = os.environ.get("BENCH_RECEIVER_URL", "")
FOLDER = Path(os.environ.get("BENCH_FOLDER", "."))
JOBS = int(os.environ.get("BENCH_JOBS", "0"))
CONCURRENCY = 10
"""Jobs at a time: the default of arq and of saq."""
CONTENT = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8


def job_id(number: int) -> str:
    """Name a job."""
    return f"job-{number:06}"


def publish(name: str) -> str:
    """Write the file so that a reader sees the whole file or none, also after a power failure, as the host's publisher does."""
    folder = FOLDER / "outputs" / "bench" / name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "0.png"
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    with partial.open("xb") as file:
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return f"bench/{name}/0.png"


def report(name: str, status: str, url: str = "") -> dict[str, Any]:
    """Say how a job stands."""
    assets = [{"type": "image", "url": url, "metadata": {"asset_index": 0}}] if url else []
    return {"job_id": name, "status": status, "assets": assets, "metadata": {"attempt": 1, "seed": 7}}


def work(client: httpx.Client, name: str) -> None:
    """Do one job, for workers that block."""
    client.post(RECEIVER_URL, json=report(name, "processing")).raise_for_status()
    url = publish(name)
    client.post(RECEIVER_URL, json=report(name, "completed", url)).raise_for_status()


async def work_async(client: httpx.AsyncClient, name: str) -> None:
    """Do one job, for workers on an event loop; the disk is waited for in a thread."""
    (await client.post(RECEIVER_URL, json=report(name, "processing"))).raise_for_status()
    url = await asyncio.to_thread(publish, name)
    (await client.post(RECEIVER_URL, json=report(name, "completed", url))).raise_for_status()
