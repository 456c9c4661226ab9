"""``wan-host generate``: the stages of a worker, without queue and HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wan_host.hooks import Hooks
    from wan_host.payload import Payload
    from wan_host.settings import Settings

_REFERENCES = ("image", "first_frame", "last_frame", "reference_images")


@click.command()
@click.argument("prompt")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Folder for the files (here).")
@click.option("--type", "job_type", default="video_fast", show_default=True, help="Job type, such as image_high.")
@click.option("--model", help="Model, if not the default one; see `wan-host models list`.")
@click.option("--negative-prompt", help="What should not appear.")
@click.option("--width", type=int, help="Pixels, a multiple of 16.")
@click.option("--height", type=int, help="Pixels, a multiple of 16.")
@click.option("--frames", type=int, help="1 to 83; the file has exactly this many.")
@click.option("--fps", type=int, help="8 to 24.")
@click.option("--steps", "num_inference_steps", type=int, help="Denoising steps.")
@click.option("--guidance", "guidance_scale", type=float, help="Classifier-free guidance.")
@click.option("--solver", "sample_solver", help="unipc or dpm++.")
@click.option("--shift", "sample_shift", type=float, help="Flow shift.")
@click.option("--seed", type=int, help="Same seed, same file; drawn if left out.")
@click.option("--num-images", type=int, help="1 to 6, image jobs only.")
@click.option("--mode", "reference_mode", help="none, single, start, end or both; inferred from the references if left out.")
@click.option("--image", help="Reference for mode single: a file or a URL.")
@click.option("--first-frame", help="Reference for the first frame: a file or a URL.")
@click.option("--last-frame", help="Reference for the last frame: a file or a URL.")
@click.option("--reference-image", "reference_images", multiple=True, help="A subject to show, a file or a URL; up to four.")
@click.option("--denoise-strength", type=float, help="0 keeps the reference, 1 ignores it.")
@click.option(
    "--lora", "loras", multiple=True, callback=lambda *given: _loras(given[-1]), help="An adapter, NAME or NAME=SCALE; up to 8."
)
@click.option("--preset", help="Speed preset of the model.")
@click.option("--postprocess", multiple=True, help="Frame processor, such as interpolate; give it again for another, in order.")
@click.option("--devices", help="'all', or names such as cuda:0 or cpu; one is used.")
def generate(prompt: str, output: Path, job_type: str, negative_prompt: str | None, devices: str | None, **config: Any) -> None:
    """Generate from PROMPT into a folder: 0.mp4 (or 0.png), 0.thumb.webp and report.json."""
    from wan_host.cli.setup import prepare_hooks, prepare_settings
    from wan_host.errors import UnknownModel
    from wan_host.model import NO_MODEL
    from wan_host.payload import parse_payload

    settings = prepare_settings({"devices": devices}, log_level="warning")
    hooks = prepare_hooks(settings)
    payload: dict[str, Any] = {
        "id": f"generate-{time.strftime('%Y%m%d-%H%M%S')}",
        "type": job_type,
        "prompt": prompt,
        "user_id": "local",
        "config": {
            name: _as_uri(value) if name in _REFERENCES else value for name, value in config.items() if value not in (None, ())
        },
    }
    if negative_prompt is not None:
        payload["negative_prompt"] = negative_prompt
    if not hooks.models() and settings.model is None:
        raise UnknownModel(NO_MODEL)
    checked = parse_payload(json.dumps(payload))
    for path in asyncio.run(_generate(checked, settings=settings, hooks=hooks, output=output)):
        click.echo(path)


def _loras(given: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """Return adapters as the payload takes them."""
    entries: list[dict[str, Any]] = []
    for value in given:
        name, stated, scale = value.rpartition("=")
        if not stated:
            entries.append({"name": value})
            continue
        try:
            entries.append({"name": name, "scale": float(scale)})
        except ValueError:
            raise click.BadParameter(f"{value!r}: {scale!r} is no number; NAME or NAME=SCALE is expected") from None
    return tuple(entries)


def _as_uri(value: str | tuple[str, ...]) -> str | list[str]:
    """Return a reference, or several, as the payload takes it: files become data: URIs."""
    if isinstance(value, tuple):
        return [str(_as_uri(one)) for one in value]
    if "://" in value or value.startswith("data:"):
        return value
    path = Path(value)
    if not path.is_file():
        raise click.BadParameter(f"{value!r} is neither a file nor a URL")
    return f"data:application/octet-stream;base64,{base64.b64encode(path.read_bytes()).decode()}"


async def _generate(payload: Payload, *, settings: Settings, hooks: Hooks, output: Path) -> list[Path]:
    from wan_host.cli.progress import ProgressBar
    from wan_host.lane_pool import LanePool
    from wan_host.lanes.devices import list_devices
    from wan_host.metrics import Metrics
    from wan_host.reporting import completed_report, with_urls
    from wan_host.run import Run
    from wan_host.stages import Stages

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    device = list_devices().choose(settings.devices)[:1]
    pool = LanePool(devices=device, hooks=hooks, settings=settings, metrics=Metrics())
    stages = Stages(hooks=hooks, pool=pool, settings=settings)
    job = stages.resolve(payload, seed=secrets.randbits(32))
    with tempfile.TemporaryDirectory(prefix="wan-host-") as folder, ProgressBar() as bar:
        run = Run(
            job_id=job.id,
            user_id=job.user_id,
            token=0,
            attempt=1,
            deadline=time.monotonic() + settings.deadline_of(job.type),
            workdir=Path(folder),
            job=job,
            on_change=lambda run: bar.update(run.stage, run.step, run.total),
        )
        run.enter("start")
        await pool.start()
        try:
            product = await stages.produce(run, job)
        finally:
            await pool.stop()
        names = {(file.asset_index, file.role): Path(file.key).name for file in product.files}
        report = with_urls(completed_report(run, settings.worker_id, product.media, product.outcome), names)
        return _deliver(
            output, {names[file.asset_index, file.role]: file.path for file in product.files}, {**report, "sequence": 1}
        )


def _deliver(output: Path, files: dict[str, Path], report: dict[str, Any]) -> list[Path]:
    """Put the files and the report into the output folder; return their paths there."""
    output.mkdir(parents=True, exist_ok=True)
    written = [Path(shutil.copy(path, output / name)) for name, path in files.items()]
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return [*written, output / "report.json"]
