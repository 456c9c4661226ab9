"""Reference images: fetched from where strangers say, with limits on where, how much and how long.

http(s) and ``data:`` are the host's own; every other reference belongs to the plugin that claims it. Errors begin with the
field of the payload, and never hold a URL's query: signed URLs are credentials.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import responses
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import httpcore
import httpx

import wan_host
from wan_host import pictures
from wan_host.addresses import ForbiddenAddress, PinnedBackend, is_allowed
from wan_host.errors import PluginError, ReferenceRejected, ReferenceUnreachable, WanHostError
from wan_host.pictures import fit
from wan_host.request import References

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wan_host.context import HookContext

__all__ = ["ReferenceLimits", "decode_image", "fetch_bytes", "fit", "load_references"]

FetchPrivate = Callable[[str], bytes | None]

SUBJECT_LONGEST_EDGE = 2048

_FIRST_FREE_PORT = 1024
_LAST_PORT = 65535
_HOST = re.compile(rb"[A-Za-z0-9._:-]{1,253}")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429})
_SERVER_FAULT = 500
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class ReferenceLimits:
    """What one reference may cost: encoded bytes, decoded pixels, seconds in all, redirects.

    ``allowed_hosts`` (``name``, ``name:port``, ``[address]:port``) may have addresses and ports that are otherwise refused.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    timeout: float = 30.0
    allowed_hosts: frozenset[str] = frozenset()
    max_redirects: int = 5


def load_references(
    sources: Mapping[str, str],
    subjects: Sequence[str],
    *,
    width: int,
    height: int,
    context: HookContext,
    limits: ReferenceLimits,
    fetch_private: FetchPrivate,
) -> References:
    """Fetch and decode every reference of a job; the same reference twice is fetched once.

    ``sources`` maps ``image``, ``first_frame`` and ``last_frame`` to where they are; these are fitted to ``width`` x
    ``height`` by centre crop. ``subjects`` keep their sizes up to a longest edge of 2,048 pixels and are reduced to it.
    Raises ReferenceRejected, ReferenceUnreachable and what ``context.check`` raises.
    """

    @functools.cache
    def fetched(uri: str, field: str) -> bytes:
        return fetch_bytes(uri, field, context, limits=limits, fetch_private=fetch_private)

    first_use: dict[str, str] = {}

    def load(uri: str, field: str) -> NDArray[np.uint8]:
        context.check()
        data = fetched(uri, first_use.setdefault(uri, field))
        context.check()
        return decode_image(data, field, limits)

    framed = {name: fit(load(uri, f"config.{name}"), width, height) for name, uri in sources.items()}
    return References(
        **framed,
        subjects=tuple(
            pictures.shrink(load(uri, f"config.reference_images[{index}]"), SUBJECT_LONGEST_EDGE)
            for index, uri in enumerate(subjects)
        ),
    )


def decode_image(data: bytes, field: str, limits: ReferenceLimits) -> NDArray[np.uint8]:
    """Decode one picture within ``limits`` to sRGB, uint8 of shape (height, width, 3); see ``pictures.decode``."""
    return pictures.decode(data, field, limits.max_pixels)


def fetch_bytes(uri: str, field: str, context: HookContext, *, limits: ReferenceLimits, fetch_private: FetchPrivate) -> bytes:
    """Return the bytes behind ``uri``: http(s) and ``data:`` here, anything else from ``fetch_private``.

    Raises ReferenceRejected for what will never work, ReferenceUnreachable for what may, and what ``context.check`` raises.
    """
    context.check()
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else ""
    if scheme == "data":
        data = _from_data_uri(uri, field, limits)
    elif scheme in {"http", "https"}:
        data = _from_http(uri, field, context, limits)
    else:
        data = _from_plugin(uri, field, scheme, fetch_private)
    if len(data) > limits.max_bytes:
        raise _too_large(field, limits)
    return data


def _too_large(field: str, limits: ReferenceLimits) -> ReferenceRejected:
    return ReferenceRejected(f"{field}: the reference is larger than the {limits.max_bytes:,} bytes that are allowed")


def _from_plugin(uri: str, field: str, scheme: str, fetch_private: FetchPrivate) -> bytes:
    try:
        data = fetch_private(uri)
    except (ReferenceRejected, ReferenceUnreachable) as error:  # the plugin cannot know which field it was
        raise type(error)(f"{field}: {error}") from error
    except WanHostError:
        raise
    except Exception as error:
        raise ReferenceUnreachable(f"{field}: the plugin for this reference failed ({type(error).__name__})") from error
    if data is None:
        what = f"a reference with the scheme {scheme[:20]!r}" if scheme else "a path in a store"
        raise ReferenceRejected(f"{field}: no installed plugin fetches {what}; http, https and data: always work")
    if not isinstance(data, bytes):
        raise PluginError(f"{field}: fetch_reference returned {type(data).__name__}; it must return bytes or None")
    return data


def _from_data_uri(uri: str, field: str, limits: ReferenceLimits) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ReferenceRejected(f"{field}: the data: URL has no comma; the form is data:image/png;base64,...")
    is_base64 = head.lower().rstrip().endswith(";base64")
    if len(body) > 4 * limits.max_bytes:  # the longest way to write a byte: base64 with every character percent-encoded
        raise _too_large(field, limits)
    raw = unquote_to_bytes(body)
    if not is_base64:
        return raw
    raw = b"".join(raw.split())
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except binascii.Error:
        raise ReferenceRejected(f"{field}: the data: URL is not valid base64") from None


def _from_http(uri: str, field: str, context: HookContext, limits: ReferenceLimits) -> bytes:
    deadline = time.monotonic() + min(limits.timeout, context.remaining())
    backend = PinnedBackend(limits.allowed_hosts, deadline, context.check)
    url = _parsed(uri, field)
    # httpcore and not httpx: it reads no environment, follows nothing, decodes nothing, and lets the backend choose the address.
    with httpcore.ConnectionPool(ssl_context=_tls_context(), network_backend=backend, max_connections=1) as pool:
        for _ in range(limits.max_redirects + 1):
            _check_url(url, field, limits)
            try:
                answer = _get(pool, url, field, limits)
            except ForbiddenAddress:
                raise ReferenceRejected(
                    f"{field}: {_shown(url)} leads to an address that is not public; WAN_HOST_REFERENCE_HOSTS can allow the host"
                ) from None
            except UnicodeError:
                raise ReferenceRejected(f"{field}: {_shown(url)} has an impossible host name") from None
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
                context.check()
                raise _fault(error, url, field, limits) from None
            if isinstance(answer, bytes):
                return answer
            url = answer
    raise ReferenceRejected(f"{field}: more than {limits.max_redirects} redirects, the last one to {_shown(url)}")


def _get(pool: httpcore.ConnectionPool, url: httpx.URL, field: str, limits: ReferenceLimits) -> bytes | httpx.URL:
    """Return the body, or where the server redirects to."""
    headers: dict[bytes | str, bytes | str] = {
        "Host": url.netloc,
        "User-Agent": f"wan-host/{wan_host.__version__}",
        "Accept": "image/*,*/*;q=0.5",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    with pool.stream("GET", target, headers=headers) as response:
        answered = httpx.Headers(response.headers)
        if response.status in _REDIRECTS and "location" in answered:
            return _redirected(url, answered["location"], field)
        _check_status(response.status, url, field)
        if answered.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
            raise ReferenceRejected(f"{field}: {_shown(url)} came compressed, though asked not to; allowed is a plain body")
        if int(answered.get("content-length", 0)) > limits.max_bytes:  # h11 has checked that it is a number
            raise _too_large(field, limits)
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > limits.max_bytes:
                raise _too_large(field, limits)
        return bytes(body)


def _parsed(uri: str, field: str) -> httpx.URL:
    try:
        return httpx.URL(uri)
    except (httpx.InvalidURL, UnicodeError):
        raise ReferenceRejected(f"{field}: this is no valid URL") from None


def _redirected(url: httpx.URL, location: str, field: str) -> httpx.URL:
    try:
        return url.join(location)
    except (httpx.InvalidURL, UnicodeError):
        raise ReferenceRejected(f"{field}: {_shown(url)} redirects to something that is no URL") from None


def _check_url(url: httpx.URL, field: str, limits: ReferenceLimits) -> None:
    """Refuse what must not be connected to, whatever its address."""
    if url.scheme not in {"http", "https"} or not url.host:
        raise ReferenceRejected(f"{field}: a redirect to the scheme {url.scheme[:20]!r}; allowed are http and https")
    if url.userinfo:
        raise ReferenceRejected(f"{field}: {_shown(url)} holds a user name or password; that is not allowed")
    if not _HOST.fullmatch(url.raw_host):
        raise ReferenceRejected(f"{field}: {_shown(url)} has an impossible host name")
    port = _port(url)
    web = port in {80, 443} or _FIRST_FREE_PORT <= port <= _LAST_PORT
    if not web and not is_allowed(url.host, port, limits.allowed_hosts):
        raise ReferenceRejected(f"{field}: port {port} is not allowed; allowed are 80, 443 and 1024 to 65535")


def _port(url: httpx.URL) -> int:
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80


def _check_status(status: int, url: httpx.URL, field: str) -> None:
    if status in {200, 203}:
        return
    text = f"{field}: {_shown(url)} answered {status} {responses.get(status, '')}".rstrip()
    if status in _TRY_AGAIN or status >= _SERVER_FAULT:
        raise ReferenceUnreachable(text)
    raise ReferenceRejected(text)


def _fault(error: Exception, url: httpx.URL, field: str, limits: ReferenceLimits) -> ReferenceRejected | ReferenceUnreachable:
    """Say what became of the connection."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return ReferenceRejected(f"{field}: the certificate of {_shown(url)} is not valid: {cause.verify_message}")
    if isinstance(error, (httpcore.TimeoutException, TimeoutError)):
        return ReferenceUnreachable(f"{field}: {_shown(url)} did not arrive within {limits.timeout:g} s")
    if isinstance(error, socket.gaierror):
        return ReferenceUnreachable(f"{field}: the host of {_shown(url)} cannot be resolved")
    return ReferenceUnreachable(f"{field}: {_shown(url)} could not be fetched ({type(error).__name__})")


def _shown(url: httpx.URL) -> str:
    """Return the URL without credentials and query, percent-encoded as it was."""
    text = f"{url.scheme}://{url.netloc.decode()}{url.raw_path.partition(b'?')[0].decode()}"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Return the trust store, loaded once: loading takes longer than a small fetch."""
    return httpcore.default_ssl_context()
