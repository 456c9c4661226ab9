"""Files of jobs by HTTP: whole, in parts, and nothing else that lies on the disk."""

import json

import pytest

from tests.server.conftest import job
from tests.server.test_jobs import problem


@pytest.fixture(scope="module")
def done(api):
    api.submit(job("done"))
    api.wait_for("done", "completed")
    return api.site.data / "outputs" / "workspace-temp" / "user-1" / "done"


def test_a_video_is_fetched_whole(api, done):
    answer = api.client.get("/jobs/done/assets/0.mp4")
    assert answer.status_code == 200
    assert answer.content == (done / "0.mp4").read_bytes()
    assert (answer.headers["content-type"], answer.headers["accept-ranges"]) == ("video/mp4", "bytes")
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("asked", "part"), [("bytes=0-99", slice(0, 100)), ("bytes=100-", slice(100, None)), ("bytes=-50", slice(-50, None))]
)
def test_a_video_is_fetched_in_parts(api, done, asked, part):
    data = (done / "0.mp4").read_bytes()
    answer = api.client.get("/jobs/done/assets/0.mp4", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == data[part]
    assert answer.headers["content-range"].endswith(f"/{len(data)}")


def test_a_part_beyond_the_end_is_a_problem_that_names_the_size(api, done):
    answer = api.client.get("/jobs/done/assets/0.mp4", headers={"Range": "bytes=99999999-"})
    problem(answer, 416)
    assert answer.headers["content-range"] == f"bytes */{(done / '0.mp4').stat().st_size}"
    problem(api.client.get("/jobs/done/assets/0.mp4", headers={"Range": "bytes=x"}), 400)


def test_thumbnails_are_files_too(api, done):
    name = api.job("done")["assets"][0]["thumbnail"]
    if name is None:
        pytest.skip("the thumbnail plugin is not installed")
    answer = api.client.get(f"/jobs/done/assets/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")


@pytest.mark.parametrize("name", ["../0.mp4", "..%2f..%2fsecret", "%2e%2e/secret", ".hidden", "0.mp4%00", "a/b", "0.mp4/"])
def test_names_that_lead_elsewhere_find_nothing(api, done, name):
    (done / ".hidden").write_text("partial")
    (done.parent / "secret").write_text("of another job")
    answer = api.client.get(f"/jobs/done/assets/{name}", follow_redirects=False)
    assert answer.status_code in {307, 404, 422}
    assert b"of another job" not in answer.content
    assert b"partial" not in answer.content


def test_links_and_folders_are_not_followed(api, done):
    (done / "link.mp4").symlink_to("/etc/passwd")
    (done / "folder.mp4").mkdir()
    problem(api.client.get("/jobs/done/assets/link.mp4"), 404)
    problem(api.client.get("/jobs/done/assets/folder.mp4"), 404)


def test_a_file_that_no_browser_shows_is_a_download(api, done):
    (done / "0.notes.html").write_text("<script>alert(1)</script>")
    answer = api.client.get("/jobs/done/assets/0.notes.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_a_file_in_another_store_is_told_where_it_is(serve):
    api = serve(WAN_HOST_PUBLISHER="store")
    store = api.site.folder / "store"
    api.site.workers[0].__exit__(None, None, None)
    worker = api.site.start(
        WAN_WORKER_API_KEY=api.key, WAN_HOST_HOST="127.0.0.1", WAN_HOST_PUBLISHER="store", WAN_HOST_TESTING_STORE=str(store)
    )
    store.mkdir()
    api.client.base_url = f"http://127.0.0.1:{worker.port()}"
    api.submit(job("away"))
    api.wait_for("away", "completed")
    assert "'store/user-1/away/0.mp4'" in problem(api.client.get("/jobs/away/assets/0.mp4"), 404)["detail"]


def test_files_of_a_job_that_was_too_large_to_be_kept_are_found(api):
    api.submit({**job("large"), "metadata": {"note": "x" * 700_000}})
    done = api.wait_for("large", "completed")
    assert "note" not in done["payload"].get("metadata", {})
    assert (done["user_id"], done["prompt"]) == ("user-1", "a red circle")
    assert api.client.get("/jobs/large/assets/0.mp4").status_code == 200


def test_a_payload_whose_owner_is_no_path_finds_nothing(api):
    api.site.push(json.dumps({"id": "bad-owner", "user_id": "../..", "type": "video_fast", "prompt": "x"}))
    api.wait_for("bad-owner", "failed")
    problem(api.client.get("/jobs/bad-owner/assets/0.mp4"), 404)
