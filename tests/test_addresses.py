"""Which addresses count as public, and that connections go only to addresses that were judged."""

import datetime as dt
import socket
import ssl
import threading
import time
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import httpcore
import pytest
from hypothesis import given, strategies

from wan_host import references
from wan_host.addresses import ForbiddenAddress, PinnedBackend, is_allowed, is_public, resolve
from wan_host.context import StageContext
from wan_host.errors import ReferenceRejected
from wan_host.references import ReferenceLimits
from wan_host.testing.server import Answer, scripted_server


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",  # carrier-grade NAT
        "100.100.100.200",  # Alibaba's metadata
        "127.0.0.1",
        "168.63.129.16",  # Azure's host agent
        "169.254.169.254",  # metadata of AWS, Google, Azure
        "172.16.0.1",
        "192.0.0.192",  # Oracle's metadata
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "2001::1",  # Teredo
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:a9fe:a9fe::1",
        "2606:4700::5efe:10.0.0.1",  # ISATAP of 10.0.0.1
        "fc00::1",
        "fd00:ec2::254",  # metadata of AWS
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_private_and_special_addresses_are_not_public(address):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", "2606:4700:4700::1111", "2002:808:808::1"]
)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(ip_address(address))


@given(strategies.ip_addresses(v=4))
def test_an_address_is_as_public_inside_an_ipv6_form_as_by_itself(inner):
    mapped, nat64 = IPv6Address(0xFFFF << 32 | int(inner)), IPv6Address((0x64FF9B << 96) | int(inner))
    sixtofour = IPv6Address(0x2002 << 112 | int(inner) << 80 | 1)
    assert is_public(mapped) == is_public(nat64) == is_public(inner)
    assert is_public(inner) or not is_public(sixtofour)


def test_hosts_are_allowed_by_name_by_name_and_port_and_by_address():
    assert is_allowed("minio.local", 9000, ["Minio.Local"])
    assert is_allowed("minio.local", 9000, ["minio.local:9000"])
    assert is_allowed("::1", 9000, ["[::1]:9000"])
    assert not is_allowed("minio.local", 9001, ["minio.local:9000"])
    assert not is_allowed("minio.local.evil.example", 9000, ["minio.local"])


def test_a_resolver_that_hangs_is_left_behind_at_the_deadline(monkeypatch):
    hang = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: hang.wait(10))
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        resolve("slow.example", 80, deadline=start + 0.3, check=lambda: None)
    assert time.monotonic() - start < 2
    hang.set()


def test_every_address_of_a_name_must_be_public(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", fake_resolver("8.8.8.8", "10.0.0.7"))
    with pytest.raises(ForbiddenAddress):
        backend().connect_tcp("mixed.example", 80)


def test_a_name_is_resolved_once_and_the_connection_goes_to_the_address_that_was_judged(monkeypatch):
    asked = []

    def resolver(host, *args, **kwargs):
        asked.append(host)
        return fake_resolver("8.8.8.8" if len(asked) == 1 else "127.0.0.1")()

    connected = []

    def connect(self, host, port, *args):
        connected.append((host, port))
        raise httpcore.ConnectError("nobody there")

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    with pytest.raises(httpcore.ConnectError):
        backend().connect_tcp("rebinding.example", 80)
    assert asked == ["rebinding.example"]
    assert connected == [("8.8.8.8", 80)]


def test_the_next_address_is_tried_when_one_does_not_answer(monkeypatch):
    connected = []

    def connect(self, host, port, *args):
        connected.append(host)
        if host == "8.8.8.8":
            raise httpcore.ConnectTimeout("nobody there")
        return httpcore.MockStream([])

    monkeypatch.setattr(socket, "getaddrinfo", fake_resolver("8.8.8.8", "1.1.1.1"))
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    backend().connect_tcp("two.example", 80)
    assert connected == ["8.8.8.8", "1.1.1.1"]


def test_a_certificate_must_be_valid_for_the_name_in_the_url(monkeypatch, tmp_path):
    server_tls, client_tls = certificate(tmp_path, "store.internal")
    with scripted_server(lambda asked: Answer(body=b"safe"), tls=server_tls) as script:
        monkeypatch.setattr(socket, "getaddrinfo", fake_resolver("127.0.0.1", port=script.port))
        assert "certificate" in refused(f"https://store.internal:{script.port}/")
        monkeypatch.setattr(references, "_tls_context", lambda: client_tls)
        assert fetch(f"https://store.internal:{script.port}/") == b"safe"
        assert "certificate" in refused(f"https://other.internal:{script.port}/")


def refused(uri):
    with pytest.raises(ReferenceRejected) as caught:
        fetch(uri)
    return str(caught.value)


def fetch(uri):
    context = StageContext(job_id="j1", user_id="u1", workdir=Path(), deadline=time.monotonic() + 20)
    limits = ReferenceLimits(allowed_hosts=frozenset({"store.internal", "other.internal"}))
    return references.fetch_bytes(uri, "config.image", context, limits=limits, fetch_private=lambda uri: None)


def backend():
    return PinnedBackend(frozenset(), time.monotonic() + 5, lambda: None)


def fake_resolver(*addresses, port=80):
    answer = [
        (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address in addresses
    ]
    return lambda *args, **kwargs: answer


def certificate(folder, name):
    """Make a self-signed certificate for ``name``; return a server's and a client's TLS context that know it."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ip_address("192.0.2.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    client = ssl.create_default_context(cafile=str(file))
    return server, client
