"""No secret leaves the worker: long random ones in every setting that can hold one, and then everything it says is searched."""

import secrets
import socket
import subprocess
import time

import httpx
import psutil
import pytest

from tests.end_to_end.conftest import Site
from tests.server.conftest import OTHERS_OFF, Api, job
from wan_host.queue.embedded import server_binary
from wan_host.testing.process import WorkerProcess

PIECE = 8


def planted():
    return secrets.token_hex(24)


def leaks(said, hidden):
    """Names of secrets of which any piece of eight characters was said."""
    return {
        name: value
        for name, value in hidden.items()
        if any(value[start : start + PIECE] in said for start in range(len(value) - PIECE + 1))
    }


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """A server with a password, and its port."""
    password = planted()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [server_binary(), "--port", str(port), "--requirepass", password, "--save", "", "--bind", "127.0.0.1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path_factory.mktemp("redis"))
    yield password, port
    server.kill()
    server.wait()


def environment(hidden, receiver_url, queue_url):
    return {
        **OTHERS_OFF,
        "WAN_HOST_HOST": "127.0.0.1",
        "WAN_HOST_QUEUE_URL": queue_url,
        "WAN_HOST_CALLBACK_URL": receiver_url,
        "WAN_HOST_LOG_LEVEL": "debug",
        "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan,qwen_enhance,supabase",
        **{name: value for name, value in hidden.items() if name.isupper()},
    }


def all_that_a_worker_says(api):
    """Ask every route, rightly and wrongly, and the command line; return all of it and the log."""
    said = []

    def ask(method, path, **request):
        answer = api.client.request(method, path, **request)
        said.append(f"{answer.status_code} {answer.headers} {answer.text}")

    api.submit(job("good"), job("fails", "raise"), job("odd", "refuse"))
    api.wait_for("good", "published", "completed", "report_refused")
    api.wait_for("odd", "failed")
    paths = ["/health", "/ready", "/metrics", "/openapi.json", "/debug/env", "/memory/status", "/workers", "/jobs", "/jobs/good"]
    paths += ["/jobs/good/assets/0.mp4", "/jobs/good/events", "/jobs/odd", "/jobs/none", "/none", "/"]
    for path in paths:
        ask("GET", path)
        ask("GET", path, headers={"Authorization": f"Bearer {'x' * 48}"})
        ask("GET", path, headers={"Authorization": api.key})
        ask("PUT", path)
    for path in ("/enhance", "/memory/load", "/memory/unload", "/jobs", "/jobs/odd/retry"):
        ask("POST", path, json={"prompt": "a cat", "model": "none"})
        ask("POST", path, content=b"{")
        ask("POST", path, json={}, headers={"Origin": "https://evil.example"})
    for command in (["doctor"], ["plugins"], ["jobs", "list"], ["workers"], ["models", "list"]):
        result = api.site.cli(*command, check=False)
        said.append(result.stdout + result.stderr)
    said += [path.read_text(errors="replace") for path in api.site.data.glob("*.log")]
    return "\n".join(said)


def test_nothing_that_a_worker_says_has_a_piece_of_a_secret(tmp_path, plugins, redis):
    password, port = redis
    hidden = {
        "WAN_WORKER_API_KEY": planted(),
        "JOB_CALLBACK_SECRET": planted(),
        "HF_TOKEN": planted(),
        "SUPABASE_SERVICE_ROLE_KEY": planted(),
        "SUPABASE_SERVICE_KEY": planted(),
        "UPSTASH_REDIS_REST_TOKEN": planted(),
        "queue password": password,
        "callback password": planted(),
        "callback token": planted(),
        "upstash path": planted(),
    }
    with Site(tmp_path, plugins) as site:
        receiver = site.receiver.url.replace("http://", f"http://user:{hidden['callback password']}@")
        receiver += f"?token={hidden['callback token']}"
        site.environment |= environment(hidden, receiver, f"redis://:{password}@127.0.0.1:{port}/0")
        site.environment["UPSTASH_REDIS_REST_URL"] = f"https://example.upstash.io/{hidden['upstash path']}"
        site.receiver.answer = lambda request: 503 if request.report["job_id"] == "odd" else 404
        api = Api(site.start(), hidden["WAN_WORKER_API_KEY"])
        api.site = site
        with api.client:
            said = all_that_a_worker_says(api)
            assert "report refused" in said
            assert "report will be sent again" in said
            assert "job ended without a result" in said
            site.receiver.__exit__(None, None, None)
            httpx.post(
                f"{api.client.base_url}/jobs", json=job("late"), headers={"Authorization": f"Bearer {api.key}"}
            ).raise_for_status()
            api.wait_for("late", "published")
            lanes = "".join(str(psutil.Process(pid).environ()) for pid in api.worker.lane_pids())
            time.sleep(1)
            said += api.worker.log.read_text(errors="replace")
            site.receiver = Receiverless()
    assert leaks(said, hidden) == {}
    assert leaks(lanes, hidden).keys() == {"HF_TOKEN"}, "models are loaded there, and other people's code runs there"


class Receiverless:
    def __exit__(self, *error):
        """Nothing is left to stop."""


@pytest.mark.parametrize("fault", ["refused credentials", "server away", "broken port"])
def test_a_queue_that_cannot_be_used_is_told_without_its_password(tmp_path, plugins, redis, fault):
    hidden = {"WAN_WORKER_API_KEY": planted(), "queue password": planted()}
    port = {"refused credentials": redis[1], "server away": 1, "broken port": f"{hidden['queue password']}"}[fault]
    url = f"redis://:{hidden['queue password']}@127.0.0.1:{port}/0?token={hidden['queue password']}"
    with Site(tmp_path, plugins) as site:
        settings = {**site.environment, **environment(hidden, site.receiver.url, url)}
        worker = WorkerProcess(data_dir=site.data, environment=settings).start()
        site.workers.append(worker)
        said = ""
        deadline = time.monotonic() + 20
        while fault not in said and time.monotonic() < deadline:
            if worker.ended() is not None:
                break
            try:
                said += str(worker.get("/ready")) + str(worker.get("/health"))
                if "queue: " in said and "127.0.0.1" in said:
                    break
            except (LookupError, OSError):
                pass
            time.sleep(0.2)
        site.environment = settings
        result = site.cli("jobs", "list", check=False)
        said += worker.log_tail() + result.stdout + result.stderr
    assert "queue: " in said or "WAN_HOST_QUEUE_URL" in said
    assert leaks(said, hidden) == {}


@pytest.mark.parametrize("name", ["WAN_HOST_QUEUE_URL", "WAN_HOST_CALLBACK_URL", "UPSTASH_REDIS_REST_URL", "WAN_HOST_PUBLIC_URL"])
def test_a_wrong_setting_that_may_hold_a_secret_is_named_and_not_shown(tmp_path, plugins, name):
    hidden = {name: planted()}
    with Site(tmp_path, plugins) as site:
        site.environment |= OTHERS_OFF
        worker = WorkerProcess(data_dir=site.data, environment={**site.environment, name: f"ftp://{hidden[name]}"}).start()
        site.workers.append(worker)
        assert worker.wait(20) == 1
        assert name in worker.log_tail()
        assert leaks(worker.log_tail(), hidden) == {}
