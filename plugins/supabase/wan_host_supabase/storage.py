"""Publishing into a bucket: small files at once by the ``supabase`` client, large ones resumably, each confirmed by its size."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx

from wan_host import PublishedFile, PublishFailed, PublishRefused
from wan_host_supabase.answers import Answer, Passing, Unheard, unheard
from wan_host_supabase.connection import watched_client
from wan_host_supabase.keys import ALLOWED, is_key
from wan_host_supabase.patience import Patience
from wan_host_supabase.refusals import publish_refused
from wan_host_supabase.settings import SupabaseSettings, read_settings
from wan_host_supabase.tus import Refused, ResumableUpload, Target

if TYPE_CHECKING:
    from wan_host import HookContext, OutputFile

AT_ONCE_BYTES = 6 * 1024 * 1024
"""Files up to this size go in one request; beyond it the service itself advises resumable uploads."""
_STORAGE = "the storage"
_NOT_FOUND = 404
_REMEMBERED_UPLOADS = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """What stands at a key. ``etag`` and ``modified`` change with every upload; the etag of small files is their MD5."""

    size: int
    etag: str
    modified: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A resumable upload that a failed ``publish`` left behind, and what stood at the key before it."""

    address: str
    before: Stored | None


class Store:
    """Publishes files. Safe from several threads."""

    def __init__(self, settings: SupabaseSettings) -> None:
        """Open nothing yet."""
        self._settings = settings
        self._unfinished: OrderedDict[object, Unfinished] = OrderedDict()
        self._lock = threading.Lock()

    def publish(self, file: OutputFile, context: HookContext) -> PublishedFile:
        """Upload ``file`` to its key, replacing what stands there, and return the size that the storage confirms.

        Raises PublishRefused for settings, credentials, bucket, quota, size and type; PublishFailed for what may pass.
        """
        if self._settings.missing:
            missing = self._settings.missing
            raise PublishRefused(f"publishing to Supabase needs {missing}; WAN_HOST_PUBLISHER=local publishes into a folder")
        if not is_key(file.key):
            raise PublishRefused(f"key: {file.key!r} is not allowed; allowed are {ALLOWED}")
        found = file.path.stat().st_size
        if found != file.file_size_bytes:
            raise PublishFailed(f"{file.key} has {found} bytes on disk, {file.file_size_bytes} were expected")
        with watched_client(context, self._settings.timeout) as http:
            stored = _Upload(self, self._settings, file, context, http).run()
        return PublishedFile(url=f"{self._settings.bucket}/{file.key}", file_size_bytes=stored.size)

    def unfinished(self, file: OutputFile) -> Unfinished | None:
        """Return and forget what an earlier call for the same file left behind."""
        with self._lock:
            return self._unfinished.pop(_identity(file), None)

    def remember(self, file: OutputFile, upload: Unfinished) -> None:
        """Keep an upload for the next call."""
        with self._lock:
            self._unfinished[_identity(file)] = upload
            while len(self._unfinished) > _REMEMBERED_UPLOADS:
                self._unfinished.popitem(last=False)


class _Upload:
    """One file on its way."""

    def __init__(
        self, store: Store, settings: SupabaseSettings, file: OutputFile, context: HookContext, http: httpx.Client
    ) -> None:
        self._store, self._settings, self._file, self._http = store, settings, file, http
        self._bucket = _bucket(settings, http)
        self._patience = Patience(context, settings.tries, self._failed)
        self._resumable = file.file_size_bytes > AT_ONCE_BYTES

    def run(self) -> Stored:
        """Send until the storage confirms the size."""
        # Counted apart from the pieces of an upload: their progress says nothing about what the whole comes to.
        return Patience.like(self._patience).persist(self._send_and_confirm)

    def _send_and_confirm(self) -> Stored:
        if self._resumable:
            self._resume()
        elif (proven := self._send_at_once()) is not None:
            return proven
        stored = Patience.like(self._patience).persist(self._stored)
        if stored is None or stored.size != self._file.file_size_bytes:
            there = "nothing" if stored is None else f"{stored.size} bytes"
            raise Passing(f"{_STORAGE} has {there} after {self._file.file_size_bytes} bytes were sent")
        return stored

    def _send_at_once(self) -> Stored | None:
        """Upload in one request; return what is stored if only asking for it told that the upload had worked."""
        from storage3.exceptions import StorageApiError

        options: Any = {
            "content-type": self._file.content_type,
            "cache-control": str(self._settings.cache_seconds),
            "upsert": "true",
        }
        try:
            with self._file.path.open("rb") as reader:
                self._bucket.upload(self._file.key, reader, options)
        except StorageApiError as error:
            raise self._fault(_answer(error)) from None
        except httpx.HTTPError as error:
            fault = unheard(error, _STORAGE, self._settings.timeout)
        except (ValueError, KeyError, TypeError):
            fault = Unheard(f"{_STORAGE} answered a success that it never gives; does SUPABASE_URL lead to Supabase?")
        else:
            return None
        if not isinstance(fault, Unheard):
            raise fault
        self._patience.check()
        stored = self._stored()
        if stored is not None and self._is_this_file(stored):
            return stored
        # Where the storage refuses early it stops reading, and the refusal is not heard. Creating a resumable upload sends no
        # byte of the file, so there it is.
        self._resumable = True
        raise fault

    def _resume(self) -> None:
        kept = self._store.unfinished(self._file)
        before = kept.before if kept is not None else Patience.like(self._patience).persist(self._stored)
        upload = ResumableUpload(
            self._http,
            f"{self._settings.supabase_url}/storage/v1/upload/resumable",
            self._settings.auth_headers(),
            Target(
                bucket=self._settings.bucket,
                key=self._file.key,
                size=self._file.file_size_bytes,
                content_type=self._file.content_type,
                cache_seconds=self._settings.cache_seconds,
            ),
            address=kept.address if kept is not None else None,
            timeout=self._settings.timeout,
        )

        def arrived() -> bool:
            stored = self._stored()
            same_size = stored is not None and stored.size == self._file.file_size_bytes
            return stored is not None and same_size and (stored != before or self._is_this_file(stored))

        try:
            upload.send(self._file.path, self._patience, arrived)
        except Refused as error:
            raise self._fault(error.answer) from None
        except PublishFailed:
            if upload.address is not None:
                self._store.remember(self._file, Unfinished(upload.address, before))
            raise

    def _stored(self) -> Stored | None:
        """Return what stands at the key, None for nothing. Raises Passing or PublishRefused."""
        from storage3.exceptions import StorageApiError

        try:
            info = self._bucket.info(self._file.key)
            return Stored(int(info["size"]), str(info.get("etag") or ""), str(info.get("last_modified") or ""))
        except StorageApiError as error:
            answer = _answer(error)
            if answer.status == _NOT_FOUND and not answer.says("bucket"):
                return None
            raise self._fault(answer) from None
        except httpx.HTTPError as error:
            raise unheard(error, _STORAGE, self._settings.timeout) from None
        except (ValueError, KeyError, TypeError):
            raise Passing(f"{_STORAGE} answered no object info; does SUPABASE_URL lead to Supabase?") from None

    def _is_this_file(self, stored: Stored) -> bool:
        if stored.size != self._file.file_size_bytes:
            return False
        with self._file.path.open("rb") as reader:
            digest = hashlib.file_digest(reader, lambda: hashlib.md5(usedforsecurity=False))
        return stored.etag.removeprefix("W/").strip('"').lower() == digest.hexdigest()

    def _fault(self, answer: Answer) -> Passing | PublishRefused:
        return answer.passing(_STORAGE) if answer.may_pass else publish_refused(answer, self._file, self._settings)

    def _failed(self, reason: str) -> PublishFailed:
        where = f"{self._settings.bucket}/{self._file.key}"
        return PublishFailed(self._settings.without_secrets(f"{where} could not be published: {reason}"))


def _bucket(settings: SupabaseSettings, http: httpx.Client) -> Any:
    """Return storage3's bucket. It shows the key in its repr: never log it."""
    from supabase import create_client
    from supabase.lib.client_options import SyncClientOptions

    options = SyncClientOptions(httpx_client=http, auto_refresh_token=False, persist_session=False)
    return create_client(settings.supabase_url or "", settings.service_key, options).storage.from_(settings.bucket)


def _answer(error: Any) -> Answer:
    """Read storage3's error: its status is text from the body, or the HTTP status where that was no error of the storage's."""
    status = int(error.status) if str(error.status).isdecimal() else 400
    unread = error.message.startswith("Unable to parse error message")
    return Answer(status, "" if unread else error.code, "" if unread else error.message)


def _identity(file: OutputFile) -> object:
    status = file.path.stat()
    return (file.key, str(file.path), status.st_size, status.st_mtime_ns)


@cache
def store() -> Store:
    """Return the process's store."""
    return Store(read_settings())
