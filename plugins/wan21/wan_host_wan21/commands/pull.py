"""``wan-host models pull``: fetch a checkpoint from the hub."""

from __future__ import annotations

import re
from pathlib import Path

import click

from wan_host import ModelLoadFailed
from wan_host_wan21.catalogue import OFFICIAL, folder_of
from wan_host_wan21.settings import read_settings

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?")
_PATTERNS = ["*.json", "*.safetensors", "*.model", "README.md", "LICENSE*"]
"""Only what is loaded, and what must come with it: no pickles."""


@click.command("pull")
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write; default: NAME in the models folder.")
def pull(name: str, output: Path | None) -> None:
    """Fetch NAME (wan2.1-vace-1.3b, wan2.1-t2v-1.3b, or OWNER/REPO@REVISION), with a bar for every file.

    Run it again to go on where it stopped. Every file is checked by its digest, those that are there already as well.
    HF_TOKEN is used where it is set.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    from wan_host_wan21.checkpoint import recognise
    from wan_host_wan21.download import DownloadFailed
    from wan_host_wan21.layout import folder_bytes

    known = {official.name: official for official in OFFICIAL}
    found = _REPO.fullmatch(known[name].repo if name in known else name)
    if found is None:
        raise click.ClickException(f"{name!r} is neither OWNER/REPO@REVISION nor one of {', '.join(sorted(known))}")
    repo, revision = found["repo"], found["revision"]
    target = output or read_settings().models_path / (name if name in known else folder_of(repo, revision))
    try:
        _fetch(repo, revision, target)
    except RevisionNotFoundError as error:
        raise click.ClickException(f"{repo} has no revision {revision}") from error
    except GatedRepoError as error:
        raise click.ClickException(f"{repo} is gated: HF_TOKEN must be that of somebody with access") from error
    except RepositoryNotFoundError as error:
        raise click.ClickException(f"{repo} is not on the hub, or not for this HF_TOKEN") from error
    except click.ClickException:
        raise
    except DownloadFailed as error:
        raise click.ClickException(f"{repo} could not be fetched: {error}; run the command again to go on") from error
    except Exception as error:  # what breaks off on the way is raised by whichever HTTP client the hub's library uses
        raise click.ClickException(f"{repo} could not be fetched: {error}") from error
    try:
        checkpoint = recognise(target)
    except ModelLoadFailed as error:
        raise click.ClickException(str(error)) from error
    modes = ", ".join(sorted(checkpoint.reference_modes))
    click.echo(f"{target}: {checkpoint.kind.upper()}, {folder_bytes(target) / 1e9:.1f} GB, reference modes: {modes}")


def _fetch(repo: str, revision: str | None, target: Path) -> None:
    """Bring the files, under bars on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from wan_host_wan21.download import download, list_repository

    files = list_repository(repo, revision, _PATTERNS)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {file: progress.add_task(file.path, total=file.size) for file in files}
        download(repo, files, target, lambda file, count: progress.advance(tasks[file], count))
