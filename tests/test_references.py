"""Fetching references: from where, how much, how long, and what the messages say."""

import base64
import gzip
import io
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wan_host.context import StageContext
from wan_host.errors import DeadlineExceeded, JobCancelled, PluginError, ReferenceRejected, ReferenceUnreachable
from wan_host.references import ReferenceLimits, fetch_bytes, load_references
from wan_host.testing.server import Answer, scripted_server, trickling_server

FIELD = "config.first_frame"
SECRET = "token=eyJhbGciOiJIUzI1NiJ9"


def context(seconds=20.0):
    return StageContext(job_id="j1", user_id="u1", workdir=Path(), deadline=time.monotonic() + seconds)


def nobody(uri):
    return None


@pytest.fixture
def server():
    with scripted_server(lambda asked: Answer(body=b"picture")) as script:
        yield script


def limits(server, **changes):
    return ReferenceLimits(**{"allowed_hosts": frozenset({server.host}), "timeout": 10.0} | changes)


def fetch(uri, bounds=None, *, given=None, private=nobody):
    return fetch_bytes(uri, FIELD, given or context(), limits=bounds or ReferenceLimits(timeout=5.0), fetch_private=private)


def refused(uri, bounds=None, error=ReferenceRejected, **others):
    with pytest.raises(error) as caught:
        fetch(uri, bounds, **others)
    message = str(caught.value)
    assert message.startswith(f"{FIELD}: ")
    assert SECRET not in message
    return message


def picture(color=(10, 200, 30), size=(40, 24)):
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def test_http_gives_the_body_and_asks_for_a_plain_one(server):
    assert fetch(f"{server.url}/a.png?{SECRET}", limits(server)) == b"picture"
    (asked,) = server.asked
    assert asked.path == f"/a.png?{SECRET}"
    assert asked.headers["host"] == server.host
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["user-agent"].startswith("wan-host/")
    assert "authorization" not in asked.headers
    assert "cookie" not in asked.headers


def test_the_query_of_a_signed_url_arrives_as_it_was_signed(server):
    path = "/o/a%20b%2Fc.png?token=a%2Bb%2Fc%3D&x=1+2&e=%C3%A9"
    fetch(server.url + path, limits(server))
    assert server.asked[0].path == path


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_a_server_of_the_own_machine_is_refused_in_every_spelling(server, name):
    assert "not public" in refused(f"http://{name}:{server.port}/a.png?{SECRET}")
    assert server.asked == []


def test_a_name_that_resolves_to_a_private_address_is_refused(server, monkeypatch):
    resolve_to(monkeypatch, "127.0.0.1")
    message = refused(f"http://pictures.example:{server.port}/a.png?{SECRET}")
    assert f"http://pictures.example:{server.port}/a.png leads to an address that is not public" in message
    assert "127.0.0.1" not in message
    assert server.asked == []


def test_a_setting_allows_a_named_host_and_no_other_port(server, monkeypatch):
    resolve_to(monkeypatch, "127.0.0.1")
    bounds = ReferenceLimits(allowed_hosts=frozenset({f"store.internal:{server.port}"}))
    assert fetch(f"http://store.internal:{server.port}/a.png", bounds) == b"picture"
    assert server.asked[0].headers["host"] == f"store.internal:{server.port}"
    with scripted_server(lambda asked: Answer(body=b"other")) as other:
        refused(f"http://store.internal:{other.port}/a.png", bounds)


def test_redirects_are_followed_to_the_picture(server):
    server.answer = lambda asked: Answer(302, headers={"Location": "/b.png"}) if asked.path == "/a" else Answer(body=b"there")
    assert fetch(f"{server.url}/a", limits(server)) == b"there"


def test_every_redirect_is_judged_again(server):
    with scripted_server(lambda asked: Answer(body=b"internal")) as internal:
        server.answer = lambda asked: Answer(302, headers={"Location": f"{internal.url}/latest/meta-data?{SECRET}"})
        assert "not public" in refused(f"{server.url}/a", limits(server))
        assert internal.asked == []


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("file:///etc/passwd", "http and https"),
        ("gopher://127.0.0.1/", "http and https"),
        ("http://user:secret@example.com/", "user name or password"),
        ("http://169.254.169.254/latest/", "not public"),
        ("http://[fd00:ec2::254]/latest/", "not public"),
        ("http://127.0.0.1:22/", "port 22"),
        ("http://[not an address/", "impossible host"),
        ("http://user@:x/", "no URL"),
    ],
)
def test_redirects_to_forbidden_places_are_refused(server, location, reason):
    server.answer = lambda asked: Answer(302, headers={"Location": location})
    assert reason in refused(f"{server.url}/a", limits(server))


def test_redirects_without_end_are_refused(server):
    server.answer = lambda asked: Answer(307, headers={"Location": f"/next?{SECRET}"})
    assert "more than 3 redirects" in refused(f"{server.url}/a", limits(server, max_redirects=3))
    assert len(server.asked) == 4


def test_credentials_in_the_url_are_refused_and_not_shown(server):
    message = refused(f"http://user:hunter2@{server.host}/a", limits(server))
    assert "hunter2" not in message


def test_ports_of_other_services_are_refused():
    assert "port 25 is not allowed" in refused("http://8.8.8.8:25/")


@pytest.mark.parametrize("uri", ["http://", "http:///a.png", "https://exa mple.com/", "http://a:99999/", "http://[::1/"])
def test_what_is_no_url_is_refused(uri):
    refused(uri)


def test_an_impossible_host_name_is_refused():
    refused(f"http://{'a' * 64}.example/")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 204, 206, 304])
def test_answers_that_will_not_change_are_refusals(server, status):
    server.answer = lambda asked: Answer(status)
    assert f"answered {status}" in refused(f"{server.url}/a.png?{SECRET}", limits(server))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_answers_that_may_change_are_worth_another_attempt(server, status):
    server.answer = lambda asked: Answer(status)
    assert f"answered {status}" in refused(f"{server.url}/a.png?{SECRET}", limits(server), ReferenceUnreachable)


def test_a_server_that_is_not_there_is_worth_another_attempt():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    refused(f"http://{host}/?{SECRET}", ReferenceLimits(allowed_hosts=frozenset({host})), ReferenceUnreachable)


def test_a_name_that_is_not_known_is_worth_another_attempt(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "resolved" in refused(f"https://nowhere.example/?{SECRET}", error=ReferenceUnreachable)


def test_a_body_that_says_it_is_too_large_is_refused_unread(server):
    server.answer = lambda asked: Answer(headers={"Content-Length": "1001"}, body=b"x")
    assert "1,000 bytes" in refused(f"{server.url}/a", limits(server, max_bytes=1000))


def test_a_body_that_grows_too_large_is_cut_off(server):
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield bytes(64 << 10)

    server.answer = lambda asked: Answer(body=endless())
    assert "1,000,000 bytes" in refused(f"{server.url}/a", limits(server, max_bytes=1_000_000))
    assert len(sent) < 200


def test_a_body_of_exactly_the_limit_is_taken(server):
    server.answer = lambda asked: Answer(body=bytes(1000))
    assert len(fetch(f"{server.url}/a", limits(server, max_bytes=1000))) == 1000


def test_compressed_bodies_are_refused_and_never_unpacked(server):
    bomb = gzip.compress(bytes(50_000_000))
    server.answer = lambda asked: Answer(headers={"Content-Encoding": "gzip"}, body=bomb)
    assert "compressed" in refused(f"{server.url}/a", limits(server))


def test_a_body_that_ends_too_early_is_worth_another_attempt(server):
    server.answer = lambda asked: Answer(headers={"Content-Length": "500", "Connection": "close"}, body=b"half")
    refused(f"{server.url}/a", limits(server), ReferenceUnreachable)


def test_a_server_that_trickles_its_body_is_given_up_in_time(server):
    def trickle():
        for _ in range(200):
            time.sleep(0.05)
            yield b"x"

    server.answer = lambda asked: Answer(body=trickle())
    assert took(lambda: refused(f"{server.url}/a", limits(server, timeout=0.6), ReferenceUnreachable)) < 2


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_a_server_that_trickles_its_headers_is_given_up_in_time(head):
    with trickling_server(head, b"a", every=0.05) as host:
        bounds = ReferenceLimits(timeout=0.6, allowed_hosts=frozenset({host}))
        assert took(lambda: refused(f"http://{host}/a", bounds, ReferenceUnreachable)) < 2


def test_a_server_that_never_shakes_hands_is_given_up_in_time():
    with trickling_server(b"", b"", every=0.05) as host:
        bounds = ReferenceLimits(timeout=0.6, allowed_hosts=frozenset({host}))
        assert took(lambda: refused(f"https://{host}/a", bounds, ReferenceUnreachable)) < 2


def test_cancelling_ends_a_fetch_that_waits():
    given = context()
    with trickling_server(b"", b"", every=0.05) as host:
        threading.Timer(0.2, given.cancel).start()
        with pytest.raises(JobCancelled):
            fetch(f"http://{host}/a", ReferenceLimits(allowed_hosts=frozenset({host})), given=given)


def test_the_deadline_of_the_stage_ends_a_fetch_that_waits():
    with trickling_server(b"", b"", every=0.05) as host, pytest.raises(DeadlineExceeded):
        fetch(f"http://{host}/a", ReferenceLimits(allowed_hosts=frozenset({host})), given=context(0.4))


def test_proxies_of_the_environment_are_ignored(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(f"{server.url}/a", limits(server)) == b"picture"


def test_data_urls_are_decoded():
    raw = bytes(range(256))
    text = base64.b64encode(raw).decode()
    assert fetch(f"data:image/png;base64,{text}") == raw
    assert fetch(f"DATA:image/png;charset=utf-8;BASE64,{text.rstrip('=')}") == raw
    assert fetch("data:image/png;base64,AA%3D%3D") == b"\x00"
    assert fetch("data:;base64,AA\n A=") == b"\x00\x00"
    assert fetch("data:,a%20b") == b"a b"


@pytest.mark.parametrize("uri", ["data:image/png;base64", "data:image/png;base64,@@@@", "data:image/png;base64,AAAAA"])
def test_bad_data_urls_are_refused_and_not_quoted(uri):
    assert "data: URL" in refused(uri)


def test_data_urls_have_the_same_size_limit():
    refused("data:;base64," + "A" * 2000, ReferenceLimits(max_bytes=1000))
    refused("data:;base64," + "A" * 200_000, ReferenceLimits(max_bytes=1000))


def test_everything_else_belongs_to_plugins():
    asked = []

    def private(uri):
        asked.append(uri)
        return b"from the store"

    assert fetch("library/u1/a.png", private=private) == b"from the store"
    assert fetch("s3://bucket/a.png", private=private) == b"from the store"
    assert asked == ["library/u1/a.png", "s3://bucket/a.png"]


def test_what_no_plugin_claims_is_refused_by_field_and_scheme():
    assert "'s3'" in refused(f"s3://bucket/a.png?{SECRET}")
    assert "a path in a store" in refused(f"library/u1/a.png?{SECRET}")
    assert "'file'" in refused("file:///etc/passwd")


def test_plugins_decide_between_never_and_later():
    def raising(error):
        def private(uri):
            raise error

        return private

    with pytest.raises(ReferenceRejected, match="not yours"):
        fetch("a", private=raising(ReferenceRejected("not yours")))
    assert "OSError" in refused("a", error=ReferenceUnreachable, private=raising(OSError(SECRET)))
    with pytest.raises(PluginError):
        fetch("a", private=lambda uri: "text")
    refused("a", ReferenceLimits(max_bytes=3), private=lambda uri: b"four")


def test_references_are_fitted_and_subjects_keep_their_size(server):
    server.answer = lambda asked: Answer(body=picture(size=(4096, 8) if "wide" in asked.path else (40, 24)))
    loaded = load(
        {"first_frame": f"{server.url}/1", "last_frame": f"{server.url}/2"}, [f"{server.url}/3", f"{server.url}/wide"], server
    )
    assert loaded.image is None
    assert loaded.first_frame.shape == loaded.last_frame.shape == (64, 32, 3)
    assert [subject.shape for subject in loaded.subjects] == [(24, 40, 3), (4, 2048, 3)]
    assert (loaded.first_frame == (10, 200, 30)).all()


def test_the_same_reference_is_fetched_once(server):
    server.answer = lambda asked: Answer(body=picture())
    uri = f"{server.url}/same.png"
    loaded = load({"first_frame": uri, "last_frame": uri}, [uri, uri], server)
    assert len(server.asked) == 1
    assert (loaded.first_frame == loaded.last_frame).all()
    assert len(loaded.subjects) == 2


def test_messages_name_the_field_of_the_payload(server):
    server.answer = lambda asked: Answer(404)
    with pytest.raises(ReferenceRejected, match=r"^config\.last_frame: "):
        load({"last_frame": f"{server.url}/a"}, [], server)
    server.answer = lambda asked: Answer(body=b"<html>")
    with pytest.raises(ReferenceRejected, match=r"^config\.reference_images\[1\]: this is no image"):
        load({}, ["data:;base64," + base64.b64encode(picture()).decode(), f"{server.url}/a"], server)


def test_no_references_need_nothing():
    loaded = load_references({}, [], width=32, height=64, context=context(), limits=ReferenceLimits(), fetch_private=nobody)
    assert loaded.image is None
    assert loaded.subjects == ()


def load(sources, subjects, server):
    loaded = load_references(
        sources, subjects, width=32, height=64, context=context(), limits=limits(server), fetch_private=nobody
    )
    for image in (loaded.image, loaded.first_frame, loaded.last_frame, *loaded.subjects):
        assert image is None or image.dtype == np.uint8
    return loaded


def took(work):
    start = time.monotonic()
    work()
    return time.monotonic() - start


def resolve_to(monkeypatch, address):
    def resolver(host, port, *args, **kwargs):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)


def test_a_plugins_refusal_names_the_field_too():
    def refuse(_uri):
        raise ReferenceRejected("user-library/u2/x.png belongs to somebody else")

    with pytest.raises(ReferenceRejected, match=r"^config\.image: user-library/u2/x\.png belongs"):
        fetch_bytes("user-library/u2/x.png", "config.image", context(), limits=ReferenceLimits(), fetch_private=refuse)
