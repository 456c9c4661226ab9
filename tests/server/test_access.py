"""Who may ask: the key, the Origin, the Host, sizes, and what every answer carries."""

import pytest

from tests.server.conftest import KEY, job
from tests.server.test_jobs import problem
from wan_host.cli.setup import prepare_hooks
from wan_host.errors import SettingsError
from wan_host.server.listener import HttpServer
from wan_host.settings import Settings
from wan_host.worker import Worker

KEYED = ["GET /jobs", "POST /jobs", "GET /jobs/x", "DELETE /jobs/x", "POST /jobs/x/retry", "GET /jobs/x/events"]
KEYED += ["GET /jobs/x/assets/0.mp4", "GET /workers", "POST /enhance", "GET /debug/env", "GET /memory/status"]
KEYED += ["POST /memory/load", "POST /memory/unload", "GET /models"]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer ü"])
@pytest.mark.parametrize("route", KEYED)
def test_routes_that_need_the_key_refuse_everything_else(api, route, header):
    method, path = route.split()
    headers = {"Authorization": header.encode("latin-1")} if header is not None else {"Authorization": ""}
    answer = api.client.request(method, path, headers=headers)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in problem(answer, 401)["detail"]


def test_every_route_but_the_open_ones_needs_the_key(api):
    paths = api.client.get("/openapi.json").json()["paths"]
    keyed = {
        f"{method.upper()} {path}" for path, item in paths.items() for method, found in item.items() if found.get("security")
    }
    assert keyed == {route.replace("/x", "/{job_id}").replace("0.mp4", "{name}") for route in KEYED}
    assert {path for path in paths if not any(route.endswith(f" {path}") for route in keyed)} == {"/health", "/ready", "/metrics"}


def test_the_open_routes_need_no_key(api):
    for path in ("/health", "/ready", "/metrics", "/openapi.json"):
        assert api.client.get(path, headers={"Authorization": ""}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_requests_of_other_sites_change_nothing(api, headers):
    problem(api.client.post("/jobs", json=job("foreign"), headers=headers), 403)
    problem(api.client.delete("/jobs/foreign", headers=headers), 403)
    problem(api.client.get("/jobs/foreign"), 404)
    assert api.client.get("/jobs", headers=headers).status_code == 200


def test_the_workers_own_page_may_change_things(api):
    origin = str(api.client.base_url).rstrip("/")
    answer = api.client.post("/jobs", json=job("own"), headers={"Origin": origin, "Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 202
    assert "access-control-allow-origin" not in answer.headers


def test_sites_that_a_setting_names_may_use_the_routes(serve):
    api = serve(WAN_HOST_CORS_ORIGINS="https://studio.example")
    preflight = {"Origin": "https://studio.example", "Access-Control-Request-Method": "POST"}
    preflight["Access-Control-Request-Headers"] = "authorization,content-type"
    allowed = api.client.options("/jobs", headers=preflight)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://studio.example")
    answer = api.client.post("/jobs", json=job("shared"), headers={"Origin": "https://studio.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, "https://studio.example")
    assert "access-control-allow-origin" not in api.client.get("/jobs", headers={"Origin": "https://evil.example"}).headers


def test_without_a_key_only_this_machine_is_answered(serve):
    api = serve(WAN_WORKER_API_KEY="")
    for host in ("127.0.0.1:7860", "localhost", "[::1]:7860", "worker.localhost"):
        assert api.client.get("/jobs", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "0.0.0.0"):
        problem(api.client.get("/jobs", headers={"Host": host}), 403)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "worker.example"])
def test_without_a_key_no_other_address_is_bound(tmp_path, host):
    settings = Settings(data_dir=tmp_path, host=host, port=0, devices="cpu", disabled_plugins="wan21,tiny_wan,qwen_enhance")
    worker = Worker(settings=settings, hooks=prepare_hooks(settings))
    with pytest.raises(SettingsError, match=r"WAN_HOST_HOST: .* needs WAN_WORKER_API_KEY"):
        HttpServer(worker)


def test_metrics_need_the_key_where_a_setting_says_so(serve):
    api = serve(WAN_HOST_METRICS_KEY="true", WAN_HOST_MAX_BODY_BYTES="2000")
    problem(api.client.get("/metrics", headers={"Authorization": ""}), 401)
    assert api.client.get("/metrics").status_code == 200
    problem(api.client.post("/jobs", json=[job(f"n{number}") for number in range(20)]), 413)
    problem(api.client.post("/jobs", content=(b" " * 100 for _ in range(30))), 413)
    assert api.client.post("/jobs", json=job("small")).status_code == 202


def test_small_routes_take_small_bodies_only(api):
    problem(api.client.post("/enhance", content=b" " * 70_000), 413)
    problem(api.client.post("/enhance", content=(b" " * 1000 for _ in range(70))), 413)


@pytest.mark.parametrize("path", ["/health", "/jobs", "/jobs/nothing", "/nothing", "/metrics", "/openapi.json"])
def test_every_answer_has_the_security_headers(api, path):
    headers = api.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "server" not in headers
