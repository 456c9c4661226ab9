"""Where a stranger's URL may lead, and connections that cannot go anywhere else.

A name is resolved once, every address that it has must be public, and the connection goes to one of these very addresses:
a second look-up, which could answer differently, does not happen. TLS still checks the certificate against the name.
Every wait is bounded by one deadline over the whole exchange, so a server that trickles cannot hold a thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import httpcore

if TYPE_CHECKING:
    import ssl

Address = IPv4Address | IPv6Address

_SLICE = 0.25  # seconds between looks at cancel and deadline while waiting for a server
_CONNECT = 5.0  # seconds for one address; the next one is tried then
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL = tuple(  # what some versions of Python's ipaddress take for global
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's host agent: a public address that only its guests reach
        "192.0.0.0/24",  # protocol assignments, Oracle's metadata among them
        "192.88.99.0/24",  # 6to4 relays
        "64:ff9b:1::/48",  # NAT64 of a site's own
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
    )
)
_ISATAP = (0x00005EFE, 0x02005EFE)
_WORD = 0xFFFFFFFF


class ForbiddenAddress(Exception):
    """The host has an address that is not public."""


def is_public(address: Address) -> bool:
    """Say whether ``address`` is one that anybody on the internet can reach.

    False for private, loopback, link-local (with the metadata services), shared (100.64/10), multicast, reserved and
    unspecified ones, and for IPv6 forms that carry such an IPv4 address (mapped, 6to4, NAT64, ISATAP).
    """
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, IPv6Address):
        if address.scope_id is not None or address.is_site_local:
            return False
        if not all(is_public(inner) for inner in _embedded(address)):
            return False
        if address.ipv4_mapped is not None or address in _NAT64:
            return True
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: IPv6Address) -> Iterator[IPv4Address]:
    number = int(address)
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address in _NAT64 or (number >> 32) & _WORD in _ISATAP:
        yield IPv4Address(number & _WORD)


def resolve(host: str, port: int, *, deadline: float, check: Callable[[], None]) -> list[Address]:
    """Return the addresses of ``host`` in the resolver's order, each once.

    The system's resolver has no time limit of its own, so it runs in a thread that is left behind when ``deadline``
    (``time.monotonic``) passes. Raises OSError or UnicodeError as it does, TimeoutError, and whatever ``check`` raises.
    """
    answers: list[list[tuple[Any, ...]]] = []
    faults: list[Exception] = []
    done = threading.Event()

    def ask() -> None:
        try:
            answers.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # noqa: BLE001  # handed to the thread that asked
            faults.append(error)
        done.set()

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    while not done.wait(max(0.0, min(_SLICE, deadline - time.monotonic()))):
        check()
        if time.monotonic() >= deadline:
            raise TimeoutError("the name was not resolved in time")
    if faults:
        raise faults[0]
    return list(dict.fromkeys(ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in answers[0]))


def is_allowed(host: str, port: int, allowed_hosts: Iterable[str]) -> bool:
    """Say whether a setting exempts ``host`` (as ``name``, ``name:port`` or ``[address]:port``) from the address check."""
    return not {host, f"{host}:{port}", f"[{host}]:{port}"}.isdisjoint(entry.lower() for entry in allowed_hosts)


@dataclass(frozen=True, slots=True)
class PinnedBackend(httpcore.NetworkBackend):
    """Connects to public addresses only (``allowed_hosts`` apart) and keeps every wait within ``deadline``."""

    allowed_hosts: frozenset[str]
    deadline: float
    check: Callable[[], None]

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # one deadline governs all
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve, judge and connect; raises ForbiddenAddress, OSError and httpcore's connection errors."""
        addresses = resolve(host, port, deadline=self.deadline, check=self.check)
        if not is_allowed(host, port, self.allowed_hosts) and not all(map(is_public, addresses)):
            raise ForbiddenAddress(host)
        fault: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses:
            self.check()
            limit = min(_CONNECT, self.deadline - time.monotonic())
            if limit <= 0:
                raise httpcore.ConnectTimeout("no time left")
            try:
                stream = httpcore.SyncBackend().connect_tcp(str(address), port, limit, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = error
            else:
                return BoundedStream(stream, self.deadline, self.check)
        raise fault


@dataclass(frozen=True, slots=True)
class BoundedStream(httpcore.NetworkStream):
    """A connection whose reads end at ``deadline``, however busily the other side trickles, and when ``check`` raises."""

    stream: httpcore.NetworkStream
    deadline: float
    check: Callable[[], None]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002  # one deadline governs all
        """Return up to ``max_bytes``, waiting in slices."""
        while True:
            self.check()
            limit = min(_SLICE, self._remaining(httpcore.ReadTimeout))
            with contextlib.suppress(httpcore.ReadTimeout):
                return self.stream.read(max_bytes, limit)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002  # one deadline governs all
        """Send ``buffer``."""
        self.check()
        self.stream.write(buffer, self._remaining(httpcore.WriteTimeout))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002  # one deadline governs all
    ) -> httpcore.NetworkStream:
        """Shake hands; the certificate is checked against ``server_hostname``, the name in the URL."""
        limit = min(2 * _CONNECT, self._remaining(httpcore.ConnectTimeout))
        return BoundedStream(self.stream.start_tls(ssl_context, server_hostname, limit), self.deadline, self.check)

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()

    def get_extra_info(self, info: str) -> Any:
        """Return what the connection knows of itself."""
        return self.stream.get_extra_info(info)

    def _remaining(self, error: type[Exception]) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise error("the time for the whole exchange is over")
        return left
