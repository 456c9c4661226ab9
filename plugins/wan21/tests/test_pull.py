"""``wan-host models pull`` against a hub on this machine that answers as the real one does: files, bars, going on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from wan_host_wan21 import download as download_module
from wan_host_wan21.catalogue import offered_models
from wan_host_wan21.checkpoint import recognise
from wan_host_wan21.download import DownloadFailed, RemoteFile, download
from wan_host_wan21.settings import CustomModel, Wan21Settings

from wan_host import ModelLoadFailed

REPO, COMMIT = "Wan-AI/Wan2.1-VACE-1.3B-diffusers", "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves one folder as one repository.

    ``break_after`` cuts the connection after so many bytes of a file, ``hang_after`` lets it stand still there; ``status``
    answers for every file; ``ranges`` off gives files from their beginning only; ``excess`` goes on after a file's end.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.break_after: int | None = None
        self.hang_after: int | None = None
        self.status: int | None = None
        self.ranges = True
        self.excess = 0
        self.closing = threading.Event()
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
        if path.startswith(f"/api/models/{REPO}"):
            files = sorted(file for file in self.server.folder.rglob("*") if file.is_file())
            self._json({"id": REPO, "sha": COMMIT, "siblings": [self._entry(file) for file in files]})
        elif self.server.status is not None:
            self._nothing(self.server.status)
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._file(self.server.folder / path.split(f"/resolve/{COMMIT}/")[1], send_body=send_body)
        else:
            self._nothing(404, "RepoNotFound")

    def _nothing(self, status: int, code: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _entry(self, file: Path) -> dict[str, object]:
        """Return a sibling as the hub describes it: weights are stored as LFS, the rest in git."""
        name, body = str(file.relative_to(self.server.folder)), file.read_bytes()
        entry = {"rfilename": name, "size": len(body), "blobId": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}
        if file.suffix == ".safetensors":
            entry["lfs"] = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest(), "pointerSize": 130}
        return entry

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, file: Path, *, send_body: bool) -> None:
        body = file.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0]) if self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body) - start + self.server.excess))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if not send_body:
            return
        for limit, hangs in ((self.server.break_after, False), (self.server.hang_after, True)):
            if limit is not None and len(body) - start > limit:
                self.wfile.write(body[start : start + limit])
                self.wfile.flush()
                if hangs:
                    self.server.closing.wait(60)
                self.connection.close()
                self.close_connection = True
                return
        self.wfile.write(body[start:] + bytes(self.server.excess))


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
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def start(hub, tmp_path):
    """Return a function that starts ``wan-host models pull`` as a user does."""

    def started(name: str, **more: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": ":".join(sys.path),
            "WAN_HOST_DATA_DIR": str(tmp_path / "data"),
            "WAN_HOST_DISABLED_PLUGINS": "",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "COLUMNS": "200",
            **more,
        }
        command = [sys.executable, "-m", "wan_host", "models", "pull", name]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return started


@pytest.fixture
def pull(start):
    def run(name: str, **more: str) -> subprocess.CompletedProcess[str]:
        process = start(name, **more)
        said = process.communicate(timeout=100)
        return subprocess.CompletedProcess(process.args, process.returncode, *said)

    return run


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "models" / "wan2.1-vace-1.3b"


def fetched(hub, since: int = 0) -> dict[str, str | None]:
    """Return the files that were asked for, with their ranges."""
    return {path.partition(f"{COMMIT}/")[2]: range_ for method, path, range_ in hub.requests[since:] if "/resolve/" in path}


def same(target: Path, hub: Hub) -> bool:
    """Whether the folder holds what the hub serves, no more and no less."""
    ours, theirs = (
        {str(file.relative_to(top)): file.read_bytes() for file in top.rglob("*") if file.is_file()}
        for top in (target, hub.folder)
    )
    return ours == {name: body for name, body in theirs.items() if name != "pickled.bin"} | {
        ".pull.lock": b"",
        ".pull.repository": REPO.encode(),
    }


def test_a_checkpoint_is_fetched_whole_without_pickles_and_checked_the_second_time(hub, pull, target):
    done = pull("wan2.1-vace-1.3b")
    assert done.returncode == 0, done.stderr
    assert recognise(target).kind == "vace"
    assert same(target, hub)
    assert "reference modes: both, end, none, single, start" in done.stdout
    assert re.search(r"transformer/diffusion_pytorch_model\.safetensors .*100%", done.stderr), "a bar"
    before = len(hub.requests)
    (target / "vae" / "config.json").write_text("spoilt")
    assert pull("wan2.1-vace-1.3b").returncode == 0
    assert set(fetched(hub, before)) == {"vae/config.json"}, "nothing that is there and right"
    assert same(target, hub)


def test_a_killed_fetch_goes_on_in_the_middle_of_a_file(hub, start, pull, target):
    large = "transformer/diffusion_pytorch_model.safetensors"
    hub.hang_after = 30_000
    killed = start("wan2.1-vace-1.3b")
    partial = target / f"{large}.partial"
    deadline = time.monotonic() + 60
    while not (partial.is_file() and partial.stat().st_size >= 30_000 - 8192):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    have = partial.stat().st_size
    with pytest.raises(ModelLoadFailed, match="no model_index"):
        recognise(target)
    hub.hang_after = None
    before = len(hub.requests)
    done = pull("wan2.1-vace-1.3b")
    assert done.returncode == 0, done.stderr
    assert fetched(hub, before)[large] == f"bytes={have}-"
    assert same(target, hub)


def files_of(hub) -> list[RemoteFile]:
    """Return what a listing of the hub gives, without asking it over the hub's library, which reads its address at import."""
    found = []
    for file in sorted(hub.folder.rglob("*.*")):
        name, body = str(file.relative_to(hub.folder)), file.read_bytes()
        digest = hashlib.sha256(body).hexdigest()
        found.append(RemoteFile(path=name, url=f"{hub.url}/{REPO}/resolve/{COMMIT}/{name}", size=len(body), digest=digest))
    return found


@pytest.fixture
def counted(hub, tmp_path, monkeypatch):
    """Return a function that downloads and returns the bytes that the bars were told of, by file."""
    monkeypatch.setattr(download_module, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run(files=None, repo=REPO) -> dict[str, int]:
        told: dict[str, int] = defaultdict(int)

        def progress(file, count):
            told[file.path] += count

        download(repo, files or files_of(hub), tmp_path / "target", progress)
        return dict(told)

    return run


@pytest.mark.parametrize("ranges", [True, False])
def test_connections_that_break_are_gone_on_with_and_the_bars_end_at_the_size(*, ranges, hub, counted, tmp_path):
    (tmp_path / "target").mkdir()
    large = max(files_of(hub), key=lambda file: file.size)
    (tmp_path / "target" / large.path).parent.mkdir()
    (tmp_path / "target" / f"{large.path}.partial").write_bytes((hub.folder / large.path).read_bytes()[:1000])
    hub.ranges = ranges
    hub.break_after = 20_000 if ranges else None
    told = counted()
    assert told == {file.path: file.size for file in files_of(hub)}
    assert all((tmp_path / "target" / file.path).read_bytes() == (hub.folder / file.path).read_bytes() for file in files_of(hub))
    assert any(range_ is not None for range_ in fetched(hub).values())


def test_what_is_not_what_the_hub_has_is_refused_and_not_kept(hub, counted, tmp_path):
    wrong = [replace(file, digest="0" * 64) if file.path.startswith("vae/diffusion") else file for file in files_of(hub)]
    with pytest.raises(DownloadFailed, match=r"vae/diffusion_pytorch_model\.safetensors: what came is not what the hub has"):
        counted(wrong)
    assert not list((tmp_path / "target" / "vae").glob("diffusion*"))
    assert not (tmp_path / "target" / "model_index.json").exists()


def test_more_than_the_hub_has_is_refused_where_it_begins(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub.excess = 50_000_000
    told = []
    (file,) = (file for file in files_of(hub) if file.path == "model_index.json")
    with pytest.raises(DownloadFailed, match=r"model_index\.json: what came is not what the hub has"):
        download(REPO, [file], tmp_path / "target", lambda _, count: told.append(count))
    assert sum(told) < 1_000_000
    assert not list((tmp_path / "target").glob("model_index*"))


@pytest.mark.parametrize(
    ("status", "message"), [(403, "HF_TOKEN must be"), (404, "answered 404"), (429, "answered 429"), (503, "answered 503")]
)
def test_a_hub_that_refuses_files_is_quoted(hub, counted, status, message):
    hub.status = status
    with pytest.raises(DownloadFailed, match=message):
        counted()
    asked = [path for _, path, _ in hub.requests if path.endswith("README.md")]
    assert len(asked) == (1 if status in {403, 404} else 6), "what will not pass is not asked again"


def test_a_path_that_leads_out_of_the_folder_is_refused(hub, counted, tmp_path):
    with pytest.raises(DownloadFailed, match="no path inside"):
        counted([replace(files_of(hub)[0], path="../outside.json")])
    assert not (tmp_path / "outside.json").exists()


def test_two_pulls_do_not_write_one_folder(counted, tmp_path):
    (tmp_path / "target").mkdir()
    with (tmp_path / "target" / ".pull.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DownloadFailed, match="another pull is writing"):
            counted()


def test_another_owners_repository_of_the_same_name_does_not_replace_what_was_pulled(hub, pull, target, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (file,) = (file for file in files_of(hub) if file.path == "model_index.json")
    download("else/where", [file], target, lambda *_: None)
    (hub.folder / file.path).write_text("{}")
    done = pull("wan2.1-vace-1.3b")
    assert done.returncode == 1
    message = f"{target} holds else/where, and {REPO} would replace it: name another folder with --output, or remove that one"
    assert message in done.stderr
    assert hashlib.sha256((target / file.path).read_bytes()).hexdigest() == file.digest


def test_a_repository_is_the_same_one_in_other_letters(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (file,) = (file for file in files_of(hub) if file.path == "model_index.json")
    for repo in (REPO, REPO.upper()):
        download(repo, [file], tmp_path / "target", lambda *_: None)
    assert (tmp_path / "target" / file.path).is_file()


def unmarked(hub, tmp_path) -> Path:
    """Return a folder as a pull before there was the mark had left it, broken off."""
    folder = tmp_path / "target"
    for file in files_of(hub):
        if not file.path.startswith("vae/") and file.path != "model_index.json":
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.path).write_bytes((hub.folder / file.path).read_bytes())
    return folder


def test_a_folder_that_does_not_say_whose_it_is_is_gone_on_with_where_all_of_it_is_right(hub, counted, tmp_path):
    folder = unmarked(hub, tmp_path)
    told = counted()
    assert told == {file.path: file.size for file in files_of(hub)}
    assert all((folder / file.path).read_bytes() == (hub.folder / file.path).read_bytes() for file in files_of(hub))
    assert {path.split("/")[0] for path in fetched(hub)} == {"vae", "model_index.json"}, "nothing that was there"
    counted(repo=REPO.upper())  # the hub tells no letters apart by their case


def test_a_folder_that_does_not_say_whose_it_is_is_not_replaced(hub, counted, tmp_path):
    folder = unmarked(hub, tmp_path)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    mine = bytes(weights.stat().st_size)
    weights.write_bytes(mine)
    message = f"{folder} holds another transformer/diffusion_pytorch_model.safetensors than {REPO}, which would replace it: "
    with pytest.raises(click.ClickException, match=re.escape(message + "name another folder with --output, or remove that one")):
        counted()
    assert weights.read_bytes() == mine
    assert fetched(hub) == {}


def test_weights_of_other_names_in_a_folder_that_does_not_say_whose_it_is_are_not_mixed_with(hub, counted, tmp_path):
    folder = unmarked(hub, tmp_path)
    other = folder / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    other.touch()
    message = f"{folder} holds transformer/{other.name}, which {REPO} does not have: name another folder with --output, or"
    with pytest.raises(click.ClickException, match=re.escape(message)):
        counted()
    assert fetched(hub) == {}
    other.rename(folder / "turbo.safetensors")  # an operator puts it beside a checkpoint's own files
    counted()


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(hub, counted, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(click.ClickException, match=r"needs .* GB, and 0\.0 GB are free"):
        counted()
    assert fetched(hub) == {}


def test_a_pinned_repository_that_was_pulled_serves_the_row_of_the_table_that_names_it(pull, tmp_path, monkeypatch):
    done = pull(f"{REPO}@{COMMIT}")
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rows = {"mine": CustomModel(path=f"{REPO}@{COMMIT}")}
    (model,) = offered_models(Wan21Settings(data_dir=tmp_path / "data", models=rows))
    assert model.name == "mine"
    assert model.path.endswith(f"Wan2.1-VACE-1.3B-diffusers@{COMMIT}")


def test_a_pull_that_broke_off_does_not_hide_the_hubs_cache(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_folder("vace"))
    (tmp_path / "models" / f"Wan2.1-VACE-1.3B-diffusers@{COMMIT}" / "vae").mkdir(parents=True)
    rows = {"mine": CustomModel(path=f"{REPO}@{COMMIT}")}
    (model,) = offered_models(Wan21Settings(models_dir=tmp_path / "models", models=rows))
    assert model.path == str(snapshot)


def test_what_the_hub_does_not_have_is_named(pull):
    done = pull("nobody/nothing@main")
    assert done.returncode == 1
    assert "nobody/nothing is not on the hub" in done.stderr
