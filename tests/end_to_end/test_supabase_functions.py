"""The sample edge functions of `deploy/supabase`, run by Deno: a user's job comes in, a worker does it, its reports come back."""

import asyncio
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Site
from tests.upstash_bridge import upstash_bridge
from wan_host.queue import EmbeddedServer
from wan_host.testing.server import Answer, scripted_server

FUNCTIONS = Path(__file__).parent.parent.parent / "deploy" / "supabase" / "functions"
DENO = Path(sys.executable).parent / "deno"
SECRET, SERVICE_KEY, ANONYMOUS_KEY = "callback-secret", "service-key", "anonymous-key"
USERS = {"Bearer token-of-ada": str(uuid.UUID(int=1)), "Bearer token-of-ben": str(uuid.UUID(int=2))}
numbers = itertools.count()


class Project:
    """Of a Supabase project what the functions use: who a token belongs to, and the table `jobs` behind its REST interface."""

    def __init__(self):
        self.rows = {}
        self.down = False
        self._lock = threading.Lock()

    def __call__(self, asked):
        if self.down:
            return Answer(503, b'{"message":"no connection to the database"}')
        path, _, query = asked.path.partition("?")
        if path == "/auth/v1/user":
            user = USERS.get(asked.headers["authorization"])
            assert asked.headers["apikey"] == ANONYMOUS_KEY
            return Answer(200, json.dumps({"id": user}).encode()) if user else Answer(401, b'{"msg":"invalid JWT"}')
        assert path == "/rest/v1/jobs"
        assert asked.headers["authorization"] == f"Bearer {asked.headers['apikey']}" == f"Bearer {SERVICE_KEY}"
        parameters = dict(urllib.parse.parse_qsl(query, strict_parsing=True))
        with self._lock:
            return self._table(asked, parameters)

    def _table(self, asked, parameters):
        if asked.method == "POST":
            assert parameters == {"on_conflict": "id"}
            assert "resolution=ignore-duplicates" in asked.headers["prefer"]
            row = json.loads(asked.body)
            self.rows.setdefault(row["id"], {"sequence": 0, "assets": [], "error_message": None, **row})
            return Answer(201)
        chosen = parameters.pop("select").split(",")
        rows = [row for row in self.rows.values() if all(_passes(row, *item) for item in parameters.items())]
        if asked.method == "PATCH":
            for row in rows:
                row.update(json.loads(asked.body))
        return Answer(200, json.dumps([{name: row[name] for name in chosen} for row in rows]).encode())


def _passes(row, column, condition):
    operator, _, value = condition.partition(".")
    assert operator in {"eq", "lt"}
    return row[column] == value if operator == "eq" else row[column] < int(value)


@contextlib.contextmanager
def function(name, **environment):
    """The function in a process of its own, with the rights that it needs; yields its address."""
    inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME"}}
    process = subprocess.Popen(
        [DENO, "run", "--no-remote", "--allow-net=127.0.0.1", "--allow-env", FUNCTIONS / name / "index.ts"],
        env={**inherited, "DENO_SERVE_ADDRESS": "tcp:127.0.0.1:0", "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+?(?=/?\s)", line)
        assert found, line + process.stdout.read()
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        yield found[0]
    finally:
        process.terminate()
        process.wait(10)
        drain.join(5)
        process.stdout.close()


@contextlib.contextmanager
def upstash(url):
    """The bridge to the queue's server, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    context = upstash_bridge(url, token="upstash-token")
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class There:
    """The whole installation, and what a user's browser and a worker send to it."""

    def __init__(self, site, project, bridge, producer, receiver):
        self.site, self.project, self.bridge, self.producer, self.receiver = site, project, bridge, producer, receiver

    def queue_job(self, token="token-of-ada", key=None, **job):
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        headers |= {"Idempotency-Key": key} if key else {}
        body = {"type": "video_fast", "prompt": "a red circle", "config": {"width": 128, "height": 128, "frames": 5}} | job
        return send(self.producer, json.dumps(body).encode(), headers)

    def report(self, job_id, *, signature=None, body=None, **fields):
        body = body if body is not None else json.dumps({"job_id": job_id, "assets": [], "metadata": {}, **fields}).encode()
        signed = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        return send(self.receiver, body, {"X-Callback-Signature": signed if signature is None else signature})

    def row(self, job_id):
        return self.project.rows[job_id]

    def wait_for(self, job_id, status):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.row(job_id)["status"] != status:
            time.sleep(0.05)
        assert self.row(job_id)["status"] == status
        return self.row(job_id)


def send(url, body, headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers, method="POST"), timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def there(tmp_path_factory, plugins):
    project = Project()
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(Site(tmp_path_factory.mktemp("edge"), plugins))
        supabase = stack.enter_context(scripted_server(project)).url
        given = {"SUPABASE_URL": supabase, "SUPABASE_SERVICE_ROLE_KEY": SERVICE_KEY, "SUPABASE_ANON_KEY": ANONYMOUS_KEY}
        receiver = stack.enter_context(function("job-callback", JOB_CALLBACK_SECRET=SECRET, **given))
        site.start(WAN_HOST_CALLBACK_URL=receiver, JOB_CALLBACK_SECRET=SECRET)
        bridge = stack.enter_context(upstash(EmbeddedServer(site.data).url))
        given |= {"UPSTASH_REDIS_REST_URL": bridge.url, "UPSTASH_REDIS_REST_TOKEN": bridge.token}
        producer = stack.enter_context(function("queue-job", **given))
        yield There(site, project, bridge, producer, receiver)


@pytest.fixture
def row(there):
    """A job that was queued and that no worker will see."""
    job_id = f"row-{next(numbers)}"
    there.project.rows[job_id] = {"id": job_id, "user_id": USERS["Bearer token-of-ada"], "status": "queued", "sequence": 0}
    return job_id


def test_a_users_job_goes_the_whole_way(there):
    status, said = there.queue_job()
    assert (status, said["status"]) == (202, "queued")
    row = there.wait_for(said["jobId"], "completed")
    user = USERS["Bearer token-of-ada"]
    assert row["assets"][0]["url"] == f"workspace-temp/{user}/{said['jobId']}/0.mp4"
    assert row["user_id"] == user
    assert row["report"]["model"] == "instant"
    assert row["sequence"] > 0


def test_a_job_that_fails_says_why_in_its_row(there):
    _, said = there.queue_job(prompt="refuse")
    assert "refusal" in there.wait_for(said["jobId"], "failed")["error_message"]


@pytest.mark.parametrize("signature", ["", "sha256=", "sha256=" + "0" * 64, "0" * 64, "SHA256=" + "a" * 64])
def test_a_report_without_the_right_signature_changes_nothing(there, row, signature):
    assert there.report(row, signature=signature, status="completed", sequence=5)[0] == 401
    assert there.row(row)["status"] == "queued"


def test_a_report_that_was_changed_on_the_way_changes_nothing(there, row):
    body = json.dumps({"job_id": row, "status": "failed", "sequence": 5}).encode()
    signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert there.report(row, signature=signature, body=body.replace(b"failed", b"completed"))[0] == 401
    assert there.report(row, signature=signature, body=body)[0] == 200
    assert there.row(row)["status"] == "failed"


def test_a_report_that_comes_again_is_skipped(there, row):
    accepted, said = there.report(row, status="completed", sequence=5)
    assert (accepted, said) == (200, {"success": True, "jobId": row})
    assert there.report(row, status="completed", sequence=5) == (200, {"success": True, "jobId": row, "skipped": True})


def test_a_late_report_does_not_overwrite_the_end(there, row):
    there.report(row, status="completed", sequence=5, assets=[{"url": "a"}])
    assert there.report(row, status="processing", sequence=4)[1].get("skipped")
    assert (there.row(row)["status"], there.row(row)["assets"]) == ("completed", [{"url": "a"}])


def test_a_job_that_is_run_anew_by_hand_is_reported_anew(there, row):
    there.report(row, status="failed", sequence=5, error_message="no")
    there.report(row, status="processing", sequence=6)
    assert (there.row(row)["status"], there.row(row)["error_message"]) == ("processing", None)


def test_a_report_of_an_unknown_job_is_taken_and_skipped(there):
    assert there.report("nobody's", status="completed", sequence=5)[1]["skipped"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"no json", "JSON"),
        (b'{"job_id": "x", "status": NaN}', "JSON"),
        (b"\xff", "JSON"),
        (b"null", "job_id"),
        (b'{"job_id": "x", "status": "done", "sequence": 1}', "done"),
        (b'{"job_id": "x", "status": "failed", "sequence": "1"}', "sequence"),
    ],
)
def test_a_report_that_is_none_is_refused_for_ever(there, body, word):
    status, said = there.report("x", body=body)
    assert (status, word in said["error"]) == (400, True)


def test_a_report_waits_while_the_database_is_down(there):
    there.project.down = True
    try:
        job = {"id": f"patient-{next(numbers)}", "user_id": "u", "type": "video_fast", "prompt": "x", "config": {"frames": 5}}
        there.project.rows[job["id"]] = {"id": job["id"], "status": "queued", "sequence": 0}
        job["config"] |= {"width": 128, "height": 128}
        there.site.push(json.dumps(job))
        assert there.report(job["id"], status="processing", sequence=1)[0] == 503
        time.sleep(2)
        assert there.row(job["id"])["status"] == "queued"
    finally:
        there.project.down = False
    there.wait_for(job["id"], "completed")


def pushes(there):
    return sum(names == ["RPUSH"] for names in there.bridge.requests)


def test_a_request_that_comes_again_makes_one_job(there):
    before, key = pushes(there), f"key-{next(numbers)}"
    assert there.queue_job(key=key)[0] == 202
    there.wait_for(key, "completed")
    assert there.queue_job(key=key)[1] == {"jobId": key, "status": "completed"}
    assert pushes(there) == before + 1


def test_a_push_that_failed_is_made_good_by_the_next_request(there):
    from tests.upstash_bridge import Fault

    key = f"key-{next(numbers)}"
    there.bridge.faults.append(Fault("error", status=500))
    status, said = there.queue_job(key=key)
    assert (status, said["jobId"], there.row(key)["status"]) == (503, key, "queued")
    assert there.queue_job(key=key)[0] == 202
    there.wait_for(key, "completed")


def test_a_user_cannot_be_another_one(there):
    key = f"key-{next(numbers)}"
    assert there.queue_job(key=key)[0] == 202
    assert there.queue_job(key=key, token="token-of-ben")[0] == 409
    _, said = there.queue_job(token="token-of-ben", user_id=USERS["Bearer token-of-ada"])
    assert there.row(said["jobId"])["user_id"] == USERS["Bearer token-of-ben"]


@pytest.mark.parametrize("token", [None, "forged"])
def test_who_is_not_signed_in_queues_nothing(there, token):
    rows, before = len(there.project.rows), pushes(there)
    assert there.queue_job(token=token)[0] == 401
    assert (len(there.project.rows), pushes(there)) == (rows, before)


@pytest.mark.parametrize(
    ("job", "key", "word"),
    [({"type": "sdxl_fast"}, None, "video7b_high_enhanced"), ({"prompt": " "}, None, "prompt"), ({}, "../x", "Idempotency-Key")],
)
def test_a_wrong_job_is_refused_with_what_is_allowed(there, job, key, word):
    status, said = there.queue_job(key=key, **job)
    assert (status, word in said["error"]) == (400, True)


def test_the_producer_takes_the_job_types_that_the_worker_has(there):
    from wan_host.payload import parse_payload

    text = there.queue_job(type="nothing")[1]["error"]
    named = set(re.findall(r"[a-z]+(?:7b)?_\w+", text))
    assert len(named) == 8
    for job_type in named:
        assert parse_payload(json.dumps({"id": "x", "user_id": "u", "type": job_type, "prompt": "x"})).type == job_type


@pytest.mark.parametrize(
    "arguments", [("fmt", "--check"), ("lint",), ("check", "job-callback/index.ts", "queue-job/index.ts")], ids=" ".join
)
def test_deno_is_content_with_the_functions(arguments):
    done = subprocess.run(
        [DENO, *arguments], cwd=FUNCTIONS, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
