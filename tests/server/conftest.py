import contextlib
import json
import time

import httpx
import pytest

from tests.end_to_end.conftest import Site, payload
from wan_host.testing import instant

KEY = "a-key-that-nobody-guesses"

OTHERS_OFF = {"WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan,qwen_enhance"}
REWRITER = '''
"""An enhancer that shouts, unless a prompt steers it otherwise."""

import os
import time

from wan_host import Enhancement, ModelInfo, hookimpl


@hookimpl
def list_models():
    if os.environ.get("REWRITER_BROKEN"):
        raise ValueError("the test asked for an error")
    return [ModelInfo(name="shouter", family="qwen", runner="rewriter", kind="enhance", path="/models/shouter")]


@hookimpl
def load_model(model, context):
    return model.name


@hookimpl
def enhance_prompt(request, context):
    if "fault" in request.prompt:
        raise ValueError("the prompt asked for an error")
    if "slow" in request.prompt:
        time.sleep(2)
    if "leave" in request.prompt:
        return Enhancement(prompt=request.prompt, source="none", reason="it is good")
    return Enhancement(prompt=f"{request.prompt.upper()} ({request.media})", source="qwen_base")
'''


@pytest.fixture(scope="session")
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "rewriter.py").write_text(REWRITER)
    instant.install(folder, {name: f"wan_host.testing.{name}" for name in ("instant", "store")} | {"rewriter": "rewriter"})
    return folder


def job(job_id, prompt="a red circle", **config):
    """A job as the routes take it."""
    return json.loads(payload(job_id, prompt, **config))


class Api:
    """A worker with a key, as a client sees it."""

    def __init__(self, worker, key=KEY):
        self.worker, self.key = worker, key
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{worker.port()}", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=30
        )

    def submit(self, *jobs):
        answer = self.client.post("/jobs", json=list(jobs))
        assert answer.status_code == 202, answer.text
        return answer.json()["jobs"]

    def job(self, job_id):
        answer = self.client.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_for(self, job_id, *statuses, seconds=30):
        deadline = time.monotonic() + seconds
        while (found := self.job(job_id))["status"] not in statuses:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    def wait_until_step(self, job_id, step=1):
        deadline = time.monotonic() + 30
        while self.job(job_id)["progress"]["step"] < step:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def events(self, job_id, most=None):
        """Yield events as pairs of name and data, until the stream ends."""
        with self.client.stream("GET", f"/jobs/{job_id}/events") as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield from parsed(answer.iter_lines())


def parsed(lines):
    name = data = None
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data = json.loads(line[6:])
        elif not line and name is not None:
            yield name, data
            name = data = None


@contextlib.contextmanager
def served(folder, plugin_folder, **environment):
    with Site(folder, plugin_folder) as there:
        worker = there.start(**{"WAN_WORKER_API_KEY": KEY, "WAN_HOST_HOST": "127.0.0.1", **OTHERS_OFF, **environment})
        api = Api(worker, environment.get("WAN_WORKER_API_KEY", KEY))
        api.site = there
        with api.client:
            yield api


@pytest.fixture(scope="module")
def api(tmp_path_factory, plugins):
    """A worker with a key that all tests of a file share."""
    with served(tmp_path_factory.mktemp("api"), plugins) as there:
        yield there


@pytest.fixture
def serve(tmp_path, plugins):
    """Start a worker with settings of the test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda **environment: stack.enter_context(served(tmp_path, plugins, **environment))
