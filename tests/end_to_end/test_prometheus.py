"""A real Prometheus scrapes a working worker: what the dashboard asks for is there, and the numbers are right."""

import http.client
import json
import shutil
import socket
import statistics
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
import yaml

from tests.deploy.monitoring import ALERTS, alerts, filled_in, panel_queries
from tests.end_to_end.conftest import Site, payload

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed"),
]
RECEIVER_DOWN = "never-accepted"


class Prometheus:
    """A Prometheus server with the configuration of `deploy/`, that scrapes one worker every second."""

    def __init__(self, folder, worker_port):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        config = yaml.safe_load((ALERTS.parent / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        (scrape,) = config["scrape_configs"]
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{worker_port}"]}]
        folder.mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(ALERTS, folder)
        arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        arguments += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(["prometheus", *arguments], stdout=self.log, stderr=self.log)

    def ask(self, path, **query):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            said = json.load(answer)
        assert said["status"] == "success"
        return said["data"]

    def samples(self, query):
        return [(sample["metric"], float(sample["value"][1])) for sample in self.ask("query", query=query)["result"]]

    def value(self, query):
        ((_, value),) = self.samples(query)
        return value

    def wait_for(self, query, wanted, seconds=30):
        deadline = time.monotonic() + seconds
        seen = None
        while time.monotonic() < deadline:
            try:
                seen = self.samples(query)
            except OSError:  # not listening yet
                seen = None
            if seen and seen[0][1] == wanted:
                return
            assert self.process.poll() is None, "Prometheus ended"
            time.sleep(0.2)
        raise AssertionError(f"{query} is {seen}, not {wanted}")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory, plugins):
    """A worker that was scraped before, while and after it did jobs of all kinds."""
    folder = tmp_path_factory.mktemp("scraped")
    with Site(folder, plugins) as site:
        site.receiver.answer = lambda request: 503 if request.report["job_id"] == RECEIVER_DOWN else 200
        worker = site.start(WAN_HOST_MAX_ATTEMPTS="2", WAN_HOST_LEASE_SECONDS="15")
        with Prometheus(folder / "prometheus", worker.port()) as prometheus:
            prometheus.wait_for('up{job="wan-host"}', 1)
            prometheus.wait_for("wan_host_attempts_total", 0)
            for number in range(4):
                site.push(payload(f"good-{number}", prompt="pace:0.1"))
                site.receiver.wait_for(f"good-{number}", "completed")
            site.push(payload("refused", prompt="refuse"))
            site.receiver.wait_for("refused", "failed")
            site.push(payload("crashed", prompt="crash:2"))
            site.receiver.wait_for("crashed", "completed")
            site.push("no json")
            site.push(payload(RECEIVER_DOWN))
            prometheus.wait_for('sum(wan_host_jobs_total{outcome="completed"})', 6)
            prometheus.wait_for("wan_host_dead_letters_total{reason='not_json'}", 1)
            time.sleep(3)  # two more scrapes: rates need them
            yield site, prometheus


def test_the_counters_are_what_happened(scraped):
    _, prometheus = scraped
    assert prometheus.value("sum(wan_host_attempts_total)") == 8
    assert prometheus.value('sum(wan_host_jobs_total{outcome="failed"})') == 1
    assert prometheus.value('sum(wan_host_jobs_total{outcome="retried"})') == 1
    letters = {labels["reason"]: value for labels, value in prometheus.samples("wan_host_dead_letters_total")}
    assert letters == {"not_json": 1, "unsupported": 1}
    assert prometheus.value("sum(wan_host_lane_restarts_total)") == 1
    assert prometheus.value("sum(wan_host_queue_wait_seconds_count)") == 8


def test_what_lanes_measured_crosses_the_process_border(scraped):
    _, prometheus = scraped
    assert prometheus.value('wan_host_step_seconds_count{model="instant"}') >= 6 * 4
    assert 4 * 4 * 0.1 <= prometheus.value('sum(wan_host_stage_seconds_sum{stage="denoise"})') < 60
    assert prometheus.value('sum(wan_host_gpu_busy_seconds_total{device="cpu"})') == 0, "a CPU is no GPU"
    assert prometheus.value('wan_host_model_loaded{model="instant"}') == 1


def test_a_report_that_is_not_accepted_is_pending_all_the_time(scraped):
    _, prometheus = scraped
    prometheus.wait_for("wan_host_report_pending", 1)
    time.sleep(10)
    assert prometheus.value("min_over_time(wan_host_report_pending[9s])") == 1


@pytest.mark.parametrize(("title", "query"), panel_queries())
def test_every_panel_has_something_to_show(scraped, title, query):
    _, prometheus = scraped
    assert prometheus.samples(filled_in(query, "2m")), f"{title} stays empty"


def test_prometheus_evaluates_every_rule(scraped):
    _, prometheus = scraped
    (group,) = prometheus.ask("rules")["groups"]
    assert {rule["name"] for rule in group["rules"]} == {rule["alert"] for rule in alerts()}
    assert {rule["name"]: rule.get("lastError") for rule in group["rules"] if rule["health"] != "ok"} == {}
    firing = {rule["name"] for rule in group["rules"] if rule["state"] == "firing"}
    assert firing == {"WanHostDeadLetters"}, "one job was refused and one entry was no job"


def test_a_scrape_is_cheap(scraped):
    _, prometheus = scraped
    assert prometheus.value('quantile_over_time(0.5, scrape_duration_seconds{job="wan-host"}[1m])') < 0.1


def test_promtool_finds_nothing_to_say_about_a_scrape(scraped):
    site, _ = scraped
    text = site.workers[0].get("/metrics")[1]
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(300)
def test_a_scrape_takes_less_than_20_ms_after_1000_jobs(tmp_path, plugins):
    with Site(tmp_path, plugins) as site:
        worker = site.start()
        for number in range(1000):
            job = {"id": f"job-{number}", "type": "image_fast", "prompt": "x", "user_id": f"user-{number}"}
            site.push(json.dumps(job | {"config": {"width": 64, "height": 64}}))
        for number in range(1000):
            site.receiver.wait_for(f"job-{number}", "completed")
        assert 'wan_host_jobs_total{job_type="image_fast",model="instant",outcome="completed"' in worker.get("/metrics")[1]
        scraper, taken = http.client.HTTPConnection("127.0.0.1", worker.port()), []
        for _ in range(21):
            started = time.perf_counter()
            scraper.request("GET", "/metrics")
            scraper.getresponse().read()
            taken.append(time.perf_counter() - started)
        scraper.close()
        assert statistics.median(taken) < 0.02
