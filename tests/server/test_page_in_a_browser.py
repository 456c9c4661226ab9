"""The operator's page in a real browser: the key, submitting, watching, playing, cancelling, retrying, dropping references."""

import asyncio
import io
import re
import time
from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from tests.chaos.rest import TOKEN, RestFront
from tests.end_to_end.conftest import plugins  # noqa: F401  # a fixture
from tests.server.browser import CHROMIUM, DRIVER, Browser
from tests.server.conftest import KEY, job, served
from wan_host.metrics import Metrics
from wan_host.queue import EmbeddedServer
from wan_host.testing.media import read_frames
from wan_host.testing.outside import Faults, Outside

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Debian's packages chromium and chromium-driver are not installed"),
]
TIMES = "\N{MULTIPLICATION SIGN}"
PIXELS = """
const video = document.querySelector(".player");
if (!video || video.readyState < 2) return null;
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
const context = canvas.getContext("2d");
context.drawImage(video, 0, 0);
return [video.currentTime, Array.from(context.getImageData(0, canvas.height / 2, canvas.width, 1).data)];
"""

TOO_WIDE = """
const tooWide = (item) => item.getBoundingClientRect().right > innerWidth + 1 && !item.closest(".glow, svg");
return [...document.querySelectorAll("main *")].filter(tooWide).map((item) => item.outerHTML.slice(0, 80));
"""


@pytest.fixture(scope="module")
def outside():
    with Outside(Faults(seed=1, rate=0)) as there:
        yield there


@pytest.fixture(scope="module")
def api(tmp_path_factory, plugins):  # noqa: F811  # a fixture
    with served(tmp_path_factory.mktemp("api"), plugins, WAN_HOST_REFERENCE_HOSTS="127.0.0.1") as there:
        there.submit(job("sample"))  # so that every test finds a result
        there.wait_for("sample", "completed")
        yield there


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(chromium, api):
    """The page with the key in it; whatever a test does, nothing is complained of and nobody else is asked."""
    root = f"http://127.0.0.1:{api.worker.port()}"
    chromium.resize(1360, 900)
    chromium.emulate()
    chromium.driver.get(root)
    chromium.run("sessionStorage.setItem('wan-host-key', arguments[0]); localStorage.clear()", KEY)
    chromium.complaints()
    chromium.requests()
    chromium.driver.get(root)
    chromium.sees("#state", "ready")
    chromium.until(lambda: chromium.find("#form [name=type]").get_attribute("value"))
    yield chromium
    assert chromium.complaints() == []
    asked = chromium.requests()
    assert [url for url in asked if not url.startswith((f"{root}/", f"blob:{root}/", "data:"))] == []
    assert f"{root}/health" in asked


def submit(page, prompt, **settings):
    """Submit by the form and return the new job's id."""
    seen = {item.get_attribute("data-job") for item in page.all("[data-job]")}
    page.type("prompt", prompt)
    for name, value in settings.items():
        page.type(name, str(value))
    page.click("#form [type=submit]")
    return page.until(lambda: next(iter({item.get_attribute("data-job") for item in page.all("[data-job]")} - seen), None))


def test_a_job_is_submitted_watched_and_its_result_plays(page, api):
    job_id = submit(page, "a red circle, pace:0.25 preview", num_inference_steps=24, width=160, frames=17)
    card = f"#now [data-job='{job_id}']"
    page.sees(f"{card} .prompt", "a red circle")

    bar = page.until(lambda: page.find(f"{card} [role=progressbar]"))
    steps = [page.until(lambda: int(bar.get_attribute("aria-valuenow")))]
    steps.append(page.until(lambda: (step := int(bar.get_attribute("aria-valuenow"))) > steps[0] + 2 and step))
    assert bar.get_attribute("aria-valuemax") == "24"
    assert len(page.all(f"{card} .ticks .done")) >= steps[1]
    assert re.fullmatch(r"Step \d+ of 24", page.text(f"{card} .stage"))
    assert re.fullmatch(r"0:\d\d", page.until(lambda: page.text(f"{card} .left")))
    assert page.sees(f"{card} [aria-current=step]").text == "denoise"
    page.sees("#lanes [data-status=busy]", "denoise")
    shown = page.sees(f"{card} .preview img").get_attribute("src")
    assert shown.startswith("data:image/jpeg")
    page.until(lambda: page.find(f"{card} .preview img").get_attribute("src") != shown)
    page.screenshot("running")

    tile = page.sees(f"#results [data-job='{job_id}'] .tile")
    page.until(lambda: page.run("return arguments[0].querySelector('img')?.naturalWidth", tile))
    assert not page.all(".player")
    page.hover(tile)
    time_before, pixels_before = page.until(lambda: page.run(PIXELS))
    time_after, pixels_after = page.until(lambda: (now := page.run(PIXELS)) and abs(now[0] - time_before) > 0.4 and now)
    assert time_after != time_before
    assert np.abs(np.subtract(pixels_after, pixels_before)).max() > 3, "the frame stands still"
    page.hover(page.find("h1"))
    page.until(lambda: not page.all(".player"))

    page.run("document.querySelector('#theme').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.TAB)  # the keyboard's way to it
    page.until(lambda: page.run("return window.player = document.querySelector('.player')"))
    api.submit(job("another"))
    page.sees("#results [data-job='another']")
    assert page.run("return window.player.isConnected && !window.player.paused"), "a new result stops it"

    tile.click()
    page.until(lambda: page.run("return document.querySelector('#job video')?.videoWidth") == 160)
    seed = str(api.job(job_id)["seed"])
    facts = page.text("#job dl")
    for fact in ("completed", "instant", f"160{TIMES}128, 17 frames at 8 a second", seed, job_id):
        assert fact in facts
    assert page.find("#job a[download]").get_attribute("download") == f"{job_id}-0.mp4"
    page.sees("#job .bars", "denoise")
    page.screenshot("details")
    page.click("#job button", "Use for a new job")
    assert page.find("#form [name=seed]").get_attribute("value") == seed
    assert page.find("#form [name=width]").get_attribute("value") == "160"
    assert not page.find("#job").is_displayed()


def test_jobs_that_run_and_jobs_that_wait_are_cancelled(page, api):
    running = submit(page, "pace:0.5 one", num_inference_steps=100)
    page.sees(f"#now [data-job='{running}'] .stage", "Step")
    others = [submit(page, f"pace:0.5 {name}", num_inference_steps=100) for name in ("two", "three")]  # one may be taken ahead
    assert re.search(r"[12] waiting", page.sees("#queue-count", "waiting").text)
    assert page.sees(f"#queue [data-job='{others[1]}'] .place").text in {"1", "2"}
    page.screenshot("queue")
    for job_id in reversed(others):
        page.click(f"[data-job='{job_id}'] button", "Cancel")
        page.sees(f"#failed [data-job='{job_id}'] .tag", "cancelled")
    page.sees("#queue-empty")
    page.click(f"#now [data-job='{running}'] button", "Cancel")
    page.sees(f"#failed [data-job='{running}'] .tag", "cancelled")
    page.sees("#now-empty")
    assert {api.job(name)["status"] for name in (running, *others)} == {"cancelled"}


def test_a_failed_job_says_why_and_runs_anew(page, api, outside):
    api.submit(job("lost", "with a reference", reference_mode="start", first_frame=f"{outside.url}/references/lost.png"))
    row = "#failed [data-job='lost']"
    assert "404" in page.sees(f"{row} .why", "reference").text
    page.screenshot("failed")
    outside.references["lost.png"] = png(64, 64, (10, 200, 30))
    page.click(f"{row} button", "Retry")
    page.sees("#notices", "lost waits to run anew")
    page.sees("#results [data-job='lost']")
    assert not page.all(row)
    assert api.job("lost")["status"] in {"published", "completed"}


def png(width, height, colour):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def test_references_are_dropped_into_their_slots(page, api, tmp_path):
    (tmp_path / "blue.png").write_bytes(png(300, 200, (0, 0, 255)))
    noise = np.random.default_rng(1).integers(0, 255, (2000, 3000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "huge.png", compress_level=1)
    (tmp_path / "letter.txt").write_text("no image")

    page.click("#modes [data-mode=both]")
    page.drop("[data-slot=first_frame]", tmp_path / "blue.png")
    page.sees("[data-slot=first_frame].filled", f"300{TIMES}200")
    page.drop("[data-slot=last_frame]", tmp_path / "letter.txt")
    page.sees("#notices", "letter.txt: this is no image")
    page.type("prompt", "from one to another")
    page.click("#form [type=submit]")
    assert "Last frame" in page.sees("#form-fault").text
    page.drop("[data-slot=last_frame]", tmp_path / "huge.png")
    page.sees("[data-slot=last_frame].filled", f"3000{TIMES}2000 made")
    page.until(lambda: not page.find("#form-fault").is_displayed())
    page.screenshot("references")

    job_id = submit(page, "from one to another")
    page.sees(f"#results [data-job='{job_id}']")
    done = api.job(job_id)
    assert (done["metadata"]["reference_mode"], done["metadata"]["reference_mode_source"]) == ("both", "config")
    config = done["payload"]["config"]
    assert config["first_frame"].startswith("data:image/png")
    assert config["last_frame"].startswith("data:image/jpeg")
    (asset,) = done["assets"]
    frames = read_frames(api.site.data / "outputs" / asset["url"])
    assert frames[..., 2].mean() > 180, "the blue reference does not show"


def test_a_file_that_is_dropped_beside_the_slots_chooses_a_mode(page, tmp_path):
    (tmp_path / "red.png").write_bytes(png(64, 64, (255, 0, 0)))
    page.drop("#form [name=prompt]", tmp_path / "red.png")
    page.sees("[data-slot=image].filled", f"64{TIMES}64")
    assert page.find("#modes [value=single]").is_selected()
    assert page.find("#strength").is_displayed()
    page.click("[data-slot=image] button", "Remove")
    page.until(lambda: not page.all(".slot.filled"))


def test_modes_follow_the_type_of_job(page):
    page.run(
        "const type = document.querySelector('[name=type]'); type.value = 'image_fast'; type.dispatchEvent(new Event('change'))"
    )
    able = {item.get_attribute("value") for item in page.all("#modes input") if item.is_enabled()}
    assert able == {"none", "single"}
    page.click("#form summary")
    assert page.find("#form [name=num_images]").is_displayed()
    assert not page.find("#form [name=frames]").is_displayed()


@pytest.mark.parametrize(
    ("name", "value", "said"), [("width", "twelve", "Width: “twelve” is no number"), ("seed", "9" * 17, "Seed: at most")]
)
def test_a_wrong_value_is_named_and_its_field_has_the_focus(page, api, name, value, said):
    before = api.client.get("/jobs").json()
    page.type("prompt", "wrong")
    page.type(name, value)
    page.click("#form [type=submit]")
    assert said in page.sees("#form-fault").text
    assert page.driver.switch_to.active_element.get_attribute("name") == name
    assert page.find(f"#form [name={name}]").get_attribute("aria-invalid") == "true"
    assert len(api.client.get("/jobs").json()["jobs"]) == len(before["jobs"])


def test_what_the_worker_refuses_is_told_at_the_field(page):
    page.type("prompt", "wrong")
    page.type("width", "127")
    page.click("#form [type=submit]")
    assert "multiples of 16" in page.sees("#form-fault").text
    assert page.driver.switch_to.active_element.get_attribute("name") == "width"
    assert ["422" in message for message in page.complaints()] == [True]  # the browser tells of every refusal


def test_texts_of_strangers_stay_texts(page, api):
    prompt = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    api.submit(job("markup", f"{prompt} refuse"))
    page.sees("#failed [data-job='markup'] .prompt", prompt)
    page.click("#failed [data-job='markup'] .prompt")
    page.sees("#job-title", prompt)
    assert page.driver.title == "wan-host"
    page.click("#job button", "Close")


def test_the_page_is_worked_with_the_keyboard_alone(page):
    field = page.find("#form [name=prompt]")
    field.send_keys("by keyboard")
    field.send_keys(Keys.CONTROL, Keys.ENTER)
    tile = page.sees("#results .tile")
    page.run("document.querySelector('#results .tile').focus()")
    tile.send_keys(Keys.ENTER)
    page.sees("#job")
    assert page.run("return document.querySelector('#job').contains(document.activeElement)")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until(lambda: not page.find("#job").is_displayed())
    assert page.run("return document.activeElement.className") == "tile"


def test_every_control_has_a_name(page):
    page.sees("#results .tile")
    page.click("#modes [data-mode=both]")
    nameless = page.run("""
        const text = (item) => item?.textContent.trim();
        const named = (item) => item.getAttribute("aria-label") || text(item) || text(item.labels?.[0]);
        const controls = [...document.querySelectorAll("button, a, input, select, textarea")];
        return controls.filter((item) => !named(item)).map((item) => item.outerHTML);
    """)
    assert nameless == []


def test_whoever_wants_less_motion_gets_none_unasked(page):
    page.emulate(motion="reduce")
    tile = page.sees("#results .tile")
    page.hover(tile)
    time.sleep(1)
    assert not page.all(".player")
    assert page.run("return getComputedStyle(document.querySelector('#lanes .dot')).animationName") == "none"
    tile.click()
    assert page.until(lambda: page.run("return document.querySelector('#job video')?.readyState")) is not None
    assert page.run("return document.querySelector('#job video').paused")
    page.click("#job button", "Close")


def ground(page):
    return [int(part) for part in re.findall(r"\d+", page.run("return getComputedStyle(document.body).backgroundColor"))[:3]]


def test_it_is_light_or_dark_as_the_system_or_as_chosen_and_fits_a_phone(page):
    page.sees("#results .tile")
    assert min(ground(page)) > 200
    page.screenshot("light")
    page.emulate("dark")
    page.until(lambda: max(ground(page)) < 60)
    page.screenshot("dark")
    page.click("#theme")
    page.until(lambda: min(ground(page)) > 200)
    page.driver.refresh()
    page.sees("#results .tile")
    assert min(ground(page)) > 200
    page.click("#theme")
    page.until(lambda: max(ground(page)) < 60)
    for width in (320, 390, 768):
        page.resize(width, 844, phone=True)
        page.screenshot(f"phone-{width}")
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
        assert page.run(TOO_WIDE) == []
    page.sees(".jump").click()
    page.until(
        lambda: page.run(
            "const { top } = document.querySelector('#new').getBoundingClientRect(); return Math.abs(top) < innerHeight / 2"
        )
    )


def test_charts_have_what_was_measured(page):
    page.sees("#timings .bar", "denoise")
    assert re.search(r"mean of \d+ jobs?, ", page.text("#timings-count"))
    page.sees("#devices .device", "cpu")
    page.until(lambda: (page.find("#devices .line").get_attribute("d") or "").count("L") >= 1)


def test_the_memory_of_gpus_is_drawn_from_the_metrics(page):
    metrics, texts = Metrics(), []
    for gib in (10, 30, 42):
        for device, kind, value in (
            ("cuda:0", "used", gib),
            ("cuda:0", "peak", 55),
            ("cuda:0", "total", 80),
            ("cuda:1", "total", 80),
        ):
            metrics.vram_bytes.labels(device, kind).set(value * 2**30)
        texts.append(metrics.render().decode())
    page.run("Object.defineProperty(document, 'hidden', { get: () => true })")  # so that the page rests
    first, second = page.driver.execute_async_script(
        """
        const [texts, done] = arguments;
        Promise.all([import("/page/metrics.js"), import("/page/charts.js")]).then(([{ Devices, parse }, { showDevices }]) => {
            const devices = new Devices();
            texts.forEach((text, index) => {
                devices.look([{ device: "cuda:0", job_id: index ? "a" : "" }, { device: "cuda:1", job_id: "" }]);
                devices.add(parse(text), 60 * index);
            });
            showDevices(devices);
            const path = (device, part) => device.querySelector(`.memory .${part}`).getAttribute("d");
            const of = (device) => ({ text: device.innerText, line: path(device, "line"), mark: path(device, "mark") });
            done([...document.querySelectorAll("#devices .device")].map(of));
        });
        """,
        texts,
    )
    page.screenshot("devices")
    assert "cuda:0" in first["text"]
    assert "100 % busy" in first["text"]
    assert "42.0 GiB of 80.0 GiB, peak 55.0 GiB" in first["text"]
    assert (first["line"].count("L"), first["mark"] != "") == (2, True)
    assert "0 % busy" in second["text"]


def test_many_jobs_hide_neither_what_runs_nor_what_was_made(page, api):
    api.submit(job("occupies", "pace:0.5", num_inference_steps=200))
    api.wait_until_step("occupies")
    entry = job("crowd", "refuse")
    names = [item["id"] for item in api.submit({**entry, "grid": {"config.seed": list(range(110))}})]
    page.sees("#queue-count", "the next 50 are shown")
    assert re.match(r"1(10|09) waiting", page.text("#queue-count"))
    page.sees("#now [data-job='occupies'] .stage", "Step")
    page.sees("#results [data-job='sample']")
    assert len(page.all("#queue li")) == 50
    for name in (*names, "occupies"):
        api.client.delete(f"/jobs/{name}")
    page.sees("#queue-empty")
    page.sees("#now-empty")
    page.sees("#failed-count", "1")
    page.sees("#results [data-job='sample']")


def test_the_key_is_asked_for_once_and_kept_in_this_tab_alone(chromium, api):
    root = f"http://127.0.0.1:{api.worker.port()}"
    chromium.driver.get(root)
    chromium.run("sessionStorage.clear()")
    chromium.driver.get("about:blank")  # the page that lost its key asks no more
    chromium.complaints()
    chromium.driver.get(root)
    field = chromium.sees("#key input")
    assert chromium.complaints() == []  # nothing was asked without it
    field.send_keys("wrong\n")
    chromium.sees("#key-fault", "not the key")
    assert not any("wrong" in message for message in chromium.complaints())
    chromium.find("#key input").send_keys(f"{KEY}\n")
    chromium.sees("#results .tile")
    chromium.complaints()
    chromium.driver.refresh()
    chromium.sees("#results .tile")
    assert not chromium.find("#key").is_displayed()
    assert chromium.run("return Object.values(localStorage).join()").find(KEY) == -1
    first = chromium.driver.current_window_handle
    chromium.driver.switch_to.new_window("tab")
    chromium.driver.get(root)
    chromium.sees("#key input")
    chromium.driver.close()
    chromium.driver.switch_to.window(first)
    chromium.click("#forget")
    chromium.sees("#key input")
    assert chromium.run("return sessionStorage.length") == 0


def test_a_worker_that_is_gone_is_said_to_be_and_found_again(chromium, serve):
    api = serve(WAN_WORKER_API_KEY="")
    chromium.driver.get(f"http://127.0.0.1:{api.worker.port()}")
    chromium.sees("#state", "ready")
    assert not chromium.find("#key").is_displayed()
    port = str(api.worker.port())
    api.worker.__exit__(None, None, None)
    chromium.sees("#state", "no answer")
    api.site.start(WAN_HOST_PORT=port, WAN_WORKER_API_KEY="")
    chromium.sees("#state", "ready")
    assert not chromium.find("#fleet-section").is_displayed()
    # with a lease longer than an idle worker's pause: shorter ones let it look dead in between
    api.site.start(WAN_HOST_WORKER_ID="second", WAN_WORKER_API_KEY="", WAN_HOST_LEASE_SECONDS="30")
    chromium.sees("#fleet", "second")
    chromium.driver.get("about:blank")


def test_over_rest_where_questions_are_billed_the_queue_is_seldom_asked(chromium, serve, tmp_path):
    queue = EmbeddedServer(tmp_path / "queue")
    asyncio.run(queue.start())
    front = RestFront(queue.url, seed=1, rate=0)
    front.start()
    try:
        api = serve(
            UPSTASH_REDIS_REST_URL=front.url, UPSTASH_REDIS_REST_TOKEN=TOKEN, WAN_WORKER_API_KEY="", WAN_HOST_LEASE_SECONDS=""
        )
        chromium.driver.get(f"http://127.0.0.1:{api.worker.port()}")
        chromium.sees("#devices .device")  # the metrics have told it
        chromium.requests()
        time.sleep(20)
        asked = Counter(urlsplit(url).path for url in chromium.requests())
        assert asked["/health"] >= 5
        assert 1 <= asked["/jobs"] <= 3
        assert asked["/workers"] <= 1
        chromium.driver.get("about:blank")
    finally:
        front.stop()
        asyncio.run(queue.stop())
