"""The operator's page as it is served: whole, from here alone, and fresh; and what it asks beside the routes of jobs."""

import re

import pytest

from tests.server.test_jobs import problem
from wan_host.server import page

ADDRESS = re.compile(rb"""https?://[\w.]+|["'`]//\w|@import|url\(""")
INLINE = re.compile(rb"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=\"|javascript:", re.IGNORECASE)
HTML_FROM_TEXT = re.compile(rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function")


def referred(name, data):
    """The files that a file of the page asks for."""
    if name.endswith(".html"):
        return {found.decode() for found in re.findall(rb'(?:src|href)="page/([^"]+)"', data)}
    return {found.decode() for found in re.findall(rb'from "\./([^"]+)"', data)}


def test_the_page_is_open_and_is_html(api):
    for headers in ({}, {"Authorization": ""}):
        answer = api.client.get("/", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.text.startswith("<!doctype html>")


def test_every_file_that_the_page_asks_for_is_there_and_no_other_is_carried(api):
    wanted = {"index.html"}
    for name in page._FILES:
        wanted |= referred(name, page._FILES[name])
    assert wanted == set(page._FILES)
    kinds = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
    for name in wanted - {"index.html"}:
        answer = api.client.get(f"/page/{name}", headers={"Authorization": ""})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == kinds[name.rsplit(".")[-1]]


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..%2fapp.py", "%2e%2e%2f%2e%2e%2fsettings.py"])
def test_nothing_else_of_that_folder_is_served(api, name):
    problem(api.client.get(f"/page/{name}"), 404)


def test_the_page_needs_nothing_from_elsewhere_and_makes_no_html_of_texts():
    for name, data in page._FILES.items():
        assert not INLINE.search(data), name
        assert not HTML_FROM_TEXT.search(data), name
        assert set(ADDRESS.findall(data)) <= {b"http://www.w3.org"}, name  # the namespace of SVG


@pytest.mark.parametrize("path", ["/", "/page/app.js"])
def test_the_browser_is_told_to_refuse_what_is_not_the_pages_own(api, path):
    headers = api.client.get(path).headers
    policy = dict(item.split(" ", 1) for item in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/page/style.css"])
def test_a_browser_asks_again_and_gets_a_file_only_when_it_has_changed(api, path):
    first = api.client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = api.client.get(path, headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert api.client.get(path, headers={"If-None-Match": '"other"'}).content == first.content
    head = api.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == first.headers["etag"]


def test_the_page_is_no_part_of_the_documented_interface(api):
    paths = api.client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]


def test_models_are_listed_with_what_a_job_of_theirs_gets(api):
    answer = api.client.get("/models").json()
    assert answer["default"] == "instant"
    assert answer["max_prompt_characters"] == 4000
    assert answer["max_entry_bytes"] == 1 << 20
    (model,) = [item for item in answer["models"] if item["name"] == "instant"]
    assert model["reference_modes"] == ["none", "single", "start", "end", "both"]
    assert model["job_types"]["video_fast"] | {"frames": 9, "num_inference_steps": 4} == model["job_types"]["video_fast"]
    assert model["bounds"]["multiple"] == 16
    assert not [item for item in answer["models"] if not item["job_types"]]


def test_health_tells_whether_a_key_is_needed_and_why_the_worker_is_not_ready(api):
    health = api.client.get("/health", headers={"Authorization": ""}).json()
    assert (health["ready"], health["problems"], health["key_required"]) == (True, [], True)
