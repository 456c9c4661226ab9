"""The operator's page: the static files of this folder, read once. What it shows it asks of the other routes, with the key."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response

from wan_host.server.problems import Problem

__all__ = ["router"]

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {path.name: path.read_bytes() for path in Path(__file__).parent.iterdir() if path.suffix in _TYPES}
_TAGS = {name: f'"{hashlib.sha256(data).hexdigest()[:32]}"' for name, data in _FILES.items()}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, nothing in line, and no text becomes HTML: the browser itself refuses."""
router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def page(if_none_match: Annotated[str, Header()] = "") -> Response:
    """Answer with the page."""
    return _file("index.html", if_none_match)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def file(name: str, if_none_match: Annotated[str, Header()] = "") -> Response:
    """Answer with a file of the page."""
    if name not in _FILES:
        raise Problem(404, f"name: the page has no file {name!r}")
    return _file(name, if_none_match)


def _file(name: str, known: str) -> Response:
    """Return a file, or 304 where the browser has it: it asks every time, so that a new version is seen at once."""
    headers = {"ETag": _TAGS[name], "Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
    if _TAGS[name] in known:
        return Response(status_code=304, headers=headers)
    return Response(_FILES[name], headers=headers, media_type=_TYPES[Path(name).suffix])
