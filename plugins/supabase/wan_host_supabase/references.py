"""References in the project's own buckets, read with the service key.

That key may read everything, so this module alone stands between a payload and another user's files: a reference is
``{bucket}/{user_id}/...`` of the job's own user, spelled plainly, or it is refused.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import httpx

from wan_host import ReferenceRejected, ReferenceUnreachable
from wan_host_supabase.answers import Answer, Passing, unheard
from wan_host_supabase.connection import watched_client
from wan_host_supabase.keys import ALLOWED, is_key
from wan_host_supabase.patience import Patience
from wan_host_supabase.refusals import about_credentials, is_about_credentials

if TYPE_CHECKING:
    from wan_host import HookContext
    from wan_host_supabase.settings import SupabaseSettings

_SHOWN_CHARACTERS = 120
_NOT_FOUND = 404


def fetch(uri: str, context: HookContext, settings: SupabaseSettings) -> bytes | None:
    """Return the bytes behind a storage path, None for what is none of ours.

    Raises ReferenceRejected for what the job's user may not read, what is not there and what is too large, and
    ReferenceUnreachable where the storage fails.
    """
    if settings.supabase_url is None:
        return None
    buckets = {*settings.reference_buckets, settings.bucket}
    if not _claimed(uri, buckets):
        return None
    path = own_path(uri, context.user_id, buckets)
    if settings.missing:
        raise ReferenceRejected(f"{_shown(uri)} can only be read with {settings.missing} set")

    def unreachable(reason: str) -> ReferenceUnreachable:
        return ReferenceUnreachable(settings.without_secrets(f"{_shown(uri)} could not be read: {reason}"))

    deadline = time.monotonic() + min(settings.reference_timeout, context.remaining())
    with watched_client(_Bounded(context, deadline), settings.timeout) as http:
        return Patience(_Bounded(context, deadline), settings.tries, unreachable).persist(
            lambda: _read(http, path, uri, settings)
        )


class _Bounded:
    """The job's context with an earlier end: a reference that dribbles in must not hold the job until its own deadline."""

    def __init__(self, context: HookContext, deadline: float) -> None:
        self.job_id, self.user_id, self.workdir = context.job_id, context.user_id, context.workdir
        self._context, self._deadline = context, deadline

    def check(self) -> None:
        self._context.check()
        if self.remaining() <= 0:
            raise ReferenceUnreachable("the storage did not deliver the reference in time")

    def remaining(self) -> float:
        return self._deadline - time.monotonic()


def _claimed(uri: str, buckets: set[str]) -> bool:
    """Tell whether the path leads into one of our buckets, however it is spelled."""
    spelled = unquote(unquote(uri)).replace("\\", "/")
    return next((part for part in spelled.split("/") if part.strip(". ")), "").strip() in buckets


def own_path(uri: str, user_id: str, buckets: set[str]) -> str:
    """Return ``uri`` where it names a file of the user's own. Raises ReferenceRejected for anything else."""
    if not is_key(uri):
        raise ReferenceRejected(f"{_shown(uri)} is no storage path; allowed are {ALLOWED}")
    bucket, _, key = uri.partition("/")
    owner, _, name = key.partition("/")
    if bucket not in buckets or not user_id or owner != user_id or not name:
        raise ReferenceRejected(
            f"{_shown(uri)} belongs to another user or to nobody; a job of user {user_id!r} may read {bucket}/{user_id}/... only"
        )
    return uri


def _read(http: httpx.Client, path: str, uri: str, settings: SupabaseSettings) -> bytes:
    url = f"{settings.supabase_url}/storage/v1/object/{quote(path)}"
    headers = {**settings.auth_headers(), "Accept-Encoding": "identity"}
    limit = settings.reference_max_bytes
    too_large = ReferenceRejected(f"{_shown(uri)} is larger than the {limit:,} bytes that are allowed")
    try:
        with http.stream("GET", url, headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise _fault(Answer.of(response), uri, settings)
            if int(response.headers.get("content-length", 0)) > limit:
                raise too_large
            body = bytearray()
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > limit:
                    raise too_large
            return bytes(body)
    except httpx.HTTPError as error:
        raise unheard(error, "the storage", settings.timeout) from None


def _fault(answer: Answer, uri: str, settings: SupabaseSettings) -> Passing | ReferenceRejected:
    if answer.may_pass:
        return answer.passing("the storage")
    if is_about_credentials(answer):
        reason = about_credentials(answer)
    elif answer.status == _NOT_FOUND:
        reason = f"it is not there ({answer})"
    else:
        reason = f"the storage answered {answer}"
    return ReferenceRejected(settings.without_secrets(f"{_shown(uri)} cannot be read: {reason}"))


def _shown(uri: str) -> str:
    return repr(uri if len(uri) <= _SHOWN_CHARACTERS else f"{uri[:_SHOWN_CHARACTERS]}...")
