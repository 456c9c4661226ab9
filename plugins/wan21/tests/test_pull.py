"""``wan-host models pull`` against a hub on this machine that answers as the real one does: files, bars, going on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from wan_host_wan21.checkpoint import recognise

REPO, COMMIT = "Wan-AI/Wan2.1-VACE-1.3B-diffusers", "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves one folder as one repository; ``break_after`` cuts the connection after so many bytes of a large file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.break_after: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, *, send_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith(f"/api/models/{REPO}/tree/"):
            files = sorted(file for file in self.server.folder.rglob("*") if file.is_file())
            self._json([self._entry(file) for file in files])
        elif path.startswith(f"/api/models/{REPO}"):
            self._json({"id": REPO, "sha": COMMIT, "siblings": []})
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._file(self.server.folder / path.split(f"/resolve/{COMMIT}/")[1], send_body=send_body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _entry(self, file: Path) -> dict[str, object]:
        name, body = str(file.relative_to(self.server.folder)), file.read_bytes()
        return {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, file: Path, *, send_body: bool) -> None:
        body = file.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if not send_body:
            return
        limit = self.server.break_after
        if limit is not None and len(body) - start > limit:
            self.wfile.write(body[start : start + limit])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(body[start:])


@pytest.fixture
def hub(tiny_folder, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    for file in tiny_folder("vace").rglob("*"):
        target = folder / file.relative_to(tiny_folder("vace"))
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (folder / "pickled.bin").write_bytes(b"never fetched")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def pull(hub, tmp_path):
    def run(name: str) -> subprocess.CompletedProcess[str]:
        code = f"from wan_host_wan21.commands.pull import pull; pull([{name!r}], prog_name='pull')"
        environment = os.environ | {
            "PYTHONPATH": ":".join(sys.path),
            "WAN_HOST_DATA_DIR": str(tmp_path / "data"),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1",
        }
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.long
def test_a_checkpoint_is_fetched_whole_without_pickles(hub, pull, tmp_path):
    done = pull("wan2.1-vace-1.3b")
    assert done.returncode == 0, done.stderr
    target = tmp_path / "data" / "models" / "wan2.1-vace-1.3b"
    assert recognise(target).kind == "vace"
    assert not (target / "pickled.bin").exists()
    assert "reference modes: both, end, none, single, start" in done.stdout
    assert "%" in done.stderr, "a bar"
    before = len(hub.requests)
    assert pull("wan2.1-vace-1.3b").returncode == 0
    assert not any(method == "GET" and "/resolve/" in path for method, path, _ in hub.requests[before:]), "nothing again"


@pytest.mark.long
def test_a_fetch_that_broke_off_is_gone_on_with(hub, pull):
    def fetched(since: int) -> list[str]:
        return [path.rpartition("/")[2] for method, path, _ in hub.requests[since:] if method == "GET" and "/resolve/" in path]

    hub.break_after = 30_000
    broken = pull("wan2.1-vace-1.3b")
    assert broken.returncode == 1
    assert "run the command again to go on" in broken.stderr
    assert "config.json" in fetched(0)
    hub.break_after = None
    before = len(hub.requests)
    assert pull("wan2.1-vace-1.3b").returncode == 0
    again = fetched(before)
    assert "model.safetensors" in again or "diffusion_pytorch_model.safetensors" in again
    assert "config.json" not in again, "what had arrived stays"


@pytest.mark.long
def test_what_the_hub_does_not_have_is_named(pull):
    done = pull("nobody/nothing@main")
    assert done.returncode == 1
    assert "nobody/nothing is not on the hub" in done.stderr
