"""``wan-host models pull``: fetch a checkpoint from the hub."""

from __future__ import annotations

import re
from pathlib import Path

import click

from wan_host import ModelLoadFailed
from wan_host_wan21.catalogue import OFFICIAL
from wan_host_wan21.settings import read_settings

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?")
_PATTERNS = ["*.json", "*.safetensors", "*.model", "README.md", "LICENSE*"]


@click.command("pull")
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write; default: NAME in the models folder.")
def pull(name: str, output: Path | None) -> None:
    """Fetch NAME (wan2.1-vace-1.3b, wan2.1-t2v-1.3b, or OWNER/REPO@REVISION), with a bar for every file.

    Run it again to go on: files that arrived whole stay. HF_TOKEN is used where it is set.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from wan_host_wan21.checkpoint import recognise
    from wan_host_wan21.layout import folder_bytes

    known = {official.name: official for official in OFFICIAL}
    found = _REPO.fullmatch(known[name].repo if name in known else name)
    if found is None:
        raise click.ClickException(f"{name!r} is neither OWNER/REPO@REVISION nor one of {', '.join(sorted(known))}")
    repo, revision = found["repo"], found["revision"]
    target = output or read_settings().models_path / (name if name in known else repo.partition("/")[2])
    try:
        # Only what is loaded: no pickles. Files that are there in full are not fetched again.
        snapshot_download(repo, revision=revision, local_dir=target, allow_patterns=_PATTERNS)
    except RevisionNotFoundError as error:
        raise click.ClickException(f"{repo} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise click.ClickException(f"{repo} is not on the hub, or not for this HF_TOKEN") from error
    except Exception as error:  # what breaks off on the way is raised by whichever HTTP client the hub's library uses
        raise click.ClickException(f"{repo} could not be fetched: {error}; run the command again to go on") from error
    try:
        checkpoint = recognise(target)
    except ModelLoadFailed as error:
        raise click.ClickException(str(error)) from error
    modes = ", ".join(sorted(checkpoint.reference_modes))
    click.echo(f"{target}: {checkpoint.kind.upper()}, {folder_bytes(target) / 1e9:.1f} GB, reference modes: {modes}")
