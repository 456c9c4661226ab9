"""Resumable uploads: the TUS protocol 1.0.0 as the storage service speaks it.

https://tus.io/protocols/resumable-upload, https://supabase.com/docs/guides/storage/uploads/resumable-uploads. What the service
adds: ``x-upsert`` on every request, pieces of 6 MB, uploads that expire a fixed time after they were created.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from wan_host_supabase.answers import Answer, Passing, unheard
from wan_host_supabase.patience import Patience

PIECE_BYTES = 6 * 1024 * 1024
"""The only size of pieces that the service takes."""
_VERSION = "1.0.0"
_NAME = re.compile(r"[A-Za-z0-9._~%+=-]+")
_GONE = frozenset({404, 410})
_CONFLICT = 409


class Refused(Exception):
    """The service refuses the upload for good."""

    def __init__(self, answer: Answer) -> None:
        """``answer`` is the service's own."""
        super().__init__(str(answer))
        self.answer = answer


class Gone(Passing):
    """The service no longer knows the upload: it expired, or it was finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be created: names, length in bytes, content type, and seconds for caches."""

    bucket: str
    key: str
    size: int
    content_type: str
    cache_seconds: int

    def metadata(self) -> str:
        """Return the header ``Upload-Metadata``."""
        values = {
            "bucketName": self.bucket,
            "objectName": self.key,
            "contentType": self.content_type,
            "cacheControl": str(self.cache_seconds),
        }
        return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in values.items())


class ResumableUpload:
    """One upload. ``address`` is where the service keeps it, None before it is created; it can be kept and taken up again."""

    def __init__(
        self,
        http: httpx.Client,
        endpoint: str,
        auth: Mapping[str, str],
        target: Target,
        *,
        address: str | None = None,
        timeout: float,
    ) -> None:
        """``endpoint`` is ``.../upload/resumable``; ``timeout`` is the client's, for messages."""
        self._http, self._endpoint, self._target, self._timeout = http, endpoint, target, timeout
        self._headers = {**auth, "Tus-Resumable": _VERSION, "x-upsert": "true"}
        self.address = address
        self._reached: int | None = None
        self._lost = False
        self._waited = False

    def send(self, path: Path, patience: Patience, arrived: Callable[[], bool]) -> None:
        """Upload the file, from where an earlier upload stopped; return when the service has it all.

        ``arrived`` asks whether this very file stands in the bucket: where the last answer was lost, nothing else tells.
        Raises Refused, and what ``patience`` gives up with.
        """
        expired = Patience.like(patience)
        with path.open("rb") as source:
            while True:
                patience.check()
                try:
                    if self._advance(source, arrived):
                        return
                    patience.progress()
                except Gone as error:
                    self.address, self._reached, self._lost = None, None, True
                    expired.fault(error)
                except Passing as error:
                    self._reached = None
                    patience.fault(error)

    def _advance(self, source: BinaryIO, arrived: Callable[[], bool]) -> bool:
        """Send one piece; tell whether the storage has the whole file."""
        offset = self._take_up(arrived) if self._reached is None else self._reached
        if offset is None:
            return True
        source.seek(offset)
        self._reached = self._append(offset, source.read(PIECE_BYTES))
        if self._reached == self._target.size:
            return True
        if self._reached <= offset:
            raise Passing(f"the storage took nothing at byte {offset}")
        return False

    def _take_up(self, arrived: Callable[[], bool]) -> int | None:
        """Find the byte to go on from, or create the upload; None where the file has arrived already."""
        if self.address is None:
            if self._lost and arrived():
                return None
            self._lost = False
            self.address = self._create()
            return 0
        offset = self._ask()
        if offset < self._target.size:
            return offset
        if arrived():
            return None
        if self._waited:
            raise Gone("the storage has every byte, and makes no file of them")
        self._waited = True
        raise Passing("the storage has every byte, but not the file yet")

    def _create(self) -> str:
        """Announce the upload; every refusal is heard here, before a byte is sent."""
        response = self._request(
            "POST",
            self._endpoint,
            headers={"Upload-Length": str(self._target.size), "Upload-Metadata": self._target.metadata()},
        )
        # The service may stand behind gateways and name itself by an address of its own. Only the last part is taken from it,
        # so that the key never goes to another host.
        name = response.headers.get("location", "").partition("?")[0].rpartition("/")[2]
        if response.status_code != httpx.codes.CREATED or not _NAME.fullmatch(name):
            raise Passing(f"the storage answered {response.status_code} without an address for the upload")
        return f"{self._endpoint}/{name}"

    def _ask(self) -> int:
        """Return how many bytes have arrived."""
        response = self._request("HEAD", self._known(), missing=Gone)
        if response.headers.get("upload-length", str(self._target.size)) != str(self._target.size):
            raise Gone("the storage has an upload of another length there")
        return self._offset(response)

    def _append(self, offset: int, piece: bytes) -> int:
        """Send the bytes from ``offset`` on, and return how far the storage has got: it may have kept a part only."""
        response = self._request(
            "PATCH",
            self._known(),
            headers={"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"},
            content=piece,
            missing=Gone,
        )
        return self._offset(response)

    def _known(self) -> str:
        if self.address is None:
            raise Gone("the upload was not created")
        return self.address

    def _offset(self, response: httpx.Response) -> int:
        text = response.headers.get("upload-offset", "")
        if not text.isdecimal() or int(text) > self._target.size:
            raise Passing(f"the storage answered {response.status_code} with the upload offset {text[:20]!r}")
        return int(text)

    def _request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        missing: type[Passing] | None = None,
    ) -> httpx.Response:
        """Ask, and raise Passing, Unheard, ``missing`` where the upload is gone, or Refused."""
        try:
            response = self._http.request(method, url, headers={**self._headers, **(headers or {})}, content=content)
        except httpx.HTTPError as error:
            raise unheard(error, "the storage", self._timeout) from error
        if response.is_success:
            return response
        answer = Answer.of(response)
        if missing is not None and answer.status in _GONE:
            raise missing(f"the upload is gone: the storage answered {answer}")
        if answer.may_pass or answer.status == _CONFLICT:  # another request moved the offset: ask where it is
            raise answer.passing("the storage")
        raise Refused(answer)


__all__ = ["PIECE_BYTES", "Gone", "Refused", "ResumableUpload", "Target"]
