"""What a refusal of the storage means, and what somebody can do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import PublishRefused

if TYPE_CHECKING:
    from wan_host import OutputFile
    from wan_host_supabase.answers import Answer
    from wan_host_supabase.settings import SupabaseSettings

_CREDENTIALS = frozenset({401, 403})


def publish_refused(answer: Answer, file: OutputFile, settings: SupabaseSettings) -> PublishRefused:
    """Return the error for a file that the storage will not take."""
    reason = _reason(answer, file, settings)
    return PublishRefused(settings.without_secrets(f"{settings.bucket}/{file.key} cannot be published: {reason}"))


def is_about_credentials(answer: Answer) -> bool:
    """Tell whether the key, not the request, is what is refused."""
    return answer.status in _CREDENTIALS or answer.says("Compact JWS", "authorization")


def about_credentials(answer: Answer) -> str:
    """Say what is wrong with the key, and what to set."""
    if answer.says("signature"):
        problem = "it was not signed for this project; set SUPABASE_SERVICE_ROLE_KEY to the key of the project at SUPABASE_URL"
    elif answer.says('"exp"', "expired"):
        problem = "it has expired; set SUPABASE_SERVICE_ROLE_KEY to a new one"
    elif answer.says("Compact JWS", "malformed"):
        problem = "it is no whole key; copy SUPABASE_SERVICE_ROLE_KEY again"
    elif answer.says("row-level security", "policy"):
        problem = "it may not do this; SUPABASE_SERVICE_ROLE_KEY must be the service role key, not the anonymous one"
    else:
        problem = "set SUPABASE_SERVICE_ROLE_KEY to the service role key of the project at SUPABASE_URL"
    return f"the key is refused ({answer}): {problem}"


def _reason(answer: Answer, file: OutputFile, settings: SupabaseSettings) -> str:
    if answer.says("bucket not found", "NoSuchBucket"):
        return f"the bucket {settings.bucket!r} does not exist; create it, or set WAN_HOST_BUCKET to one that does"
    if is_about_credentials(answer):
        return about_credentials(answer)
    size = f"{file.file_size_bytes:,} bytes"
    redirect = "SUPABASE_URL redirects, and keys do not follow redirects; set the final address"
    known = {
        402: f"the project is over its quota ({answer}); free space or change its plan",
        404: f"no storage answers at SUPABASE_URL ({answer}); it must be the project's address, like https://abcdefgh.supabase.co",
        413: f"{size} are more than the file size limit of the bucket or the project allows ({answer}); raise it there",
        415: f"the bucket does not allow the type {file.content_type}; add it to the bucket's allowed MIME types",
    } | dict.fromkeys((301, 302, 307, 308), redirect)
    return known.get(answer.status, f"the storage answered {answer}")
