"""The route of a job's files: what the local publisher has put into the output folder, with ranges, so that videos seek."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse, RedirectResponse, Response

from wan_host.payload import is_path_segment
from wan_host.server.access import TheWorker
from wan_host.server.jobs import JobId, known_job
from wan_host.server.problems import Problem, documented
from wan_host.server.views import job_answer, owner_of

__all__ = ["router"]

_TYPES = {".mp4": "video/mp4", ".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".json": "application/json"}
"""What a browser may show; anything else is a download, so that no plugin's file runs as a page here."""
_CACHE = "private, max-age=60"
router = APIRouter(tags=["jobs"])


@router.get(
    "/jobs/{job_id}/assets/{name}",
    response_class=Response,
    responses={
        200: {"description": "The file", "content": {kind: {} for kind in ("video/mp4", "image/png", "image/webp")}},
        206: {"description": "The part that the header Range asks for"},
        307: {"description": "The file is elsewhere, at an http(s) address"},
        **documented(400, 404, 416, 422, 503),
    },
)
async def asset(
    job_id: JobId, name: Annotated[str, Path(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$")], worker: TheWorker
) -> Response:
    """Fetch a file of a job by its name: ``0.mp4``, ``0.thumb.webp``."""
    state = await known_job(worker, job_id)
    settings, owner = worker.settings, owner_of(state)
    if is_path_segment(owner) and is_path_segment(job_id):
        found = await asyncio.to_thread(_regular_file, settings.outputs_path / settings.bucket / owner / job_id / name)
        if found is not None:
            path, status = found
            kind = _TYPES.get(path.suffix)
            return FileResponse(
                path,
                media_type=kind or "application/octet-stream",
                stat_result=status,
                filename=None if kind else name,
                headers={"Cache-Control": _CACHE},
            )
    for item in job_answer(state).assets:
        places = {item.name: item.url, item.thumbnail: item.thumbnail_url}
        url = places.get(name) or ""
        if url.startswith(("http://", "https://")):
            return RedirectResponse(url, 307)
        if url:
            raise Problem(404, f"name: {name!r} is not on this machine; it was published as {url!r}")
    raise Problem(404, f"name: job {job_id} has no file {name!r}")


def _regular_file(path: FilePath) -> tuple[FilePath, os.stat_result] | None:
    """Return a file that lies where it says, through no link."""
    try:
        status = path.lstat()
        inside = path.resolve(strict=True).parent == path.parent.resolve(strict=True)
    except OSError:
        return None
    return (path, status) if stat.S_ISREG(status.st_mode) and inside else None
