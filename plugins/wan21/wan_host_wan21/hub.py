"""Hub ids: ``owner/repo@commit``, fetched into the hub's cache while the lane's heart goes on beating."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor, TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_host import RetryableError, UnsupportedRequest, WanHostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wan_host import LaneContext

_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[^:@/]+)(?::(?P<file>[^:]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository at a revision, and a file of it where one is named."""

    repo: str
    revision: str
    file: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which cannot come to mean something else."""
        return _COMMIT.fullmatch(self.revision) is not None


def parse(name: str) -> HubId | None:
    """Return the hub id that a name is, or None."""
    found = _ID.fullmatch(name)
    return None if found is None else HubId(found["repo"], found["revision"], found["file"])


def cached_folder(hub: HubId) -> Path | None:
    """Return the snapshot in the hub's cache if it is there. Looks at folders alone, without the hub's library."""
    import os

    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = cache / f"models--{hub.repo.replace('/', '--')}" / "snapshots" / hub.revision
    return folder if folder.is_dir() else None


def fetch(hub: HubId, patterns: Sequence[str], field: str, context: LaneContext) -> Path:
    """Return the folder with the files that match ``patterns``. ``field`` begins the messages.

    Raise UnsupportedRequest where the hub has no such thing, RetryableError where it cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    name = f"{hub.repo}@{hub.revision}"
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        running = pool.submit(snapshot_download, hub.repo, revision=hub.revision, allow_patterns=list(patterns))
        while True:
            context.progress(f"fetching {hub.repo}")
            try:
                return Path(running.result(timeout=_BEAT_SECONDS))
            except NotYet:
                if running.done():
                    raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UnsupportedRequest(f"{field}: {name} is not on the hub") from error
    except WanHostError:
        raise  # the job was cancelled
    except Exception as error:  # what breaks off on the way is raised by whichever HTTP client the hub's library uses
        raise RetryableError(f"{field}: {name} could not be fetched: {error}") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
