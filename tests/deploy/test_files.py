"""Every file of `deploy/` is what its own tool wants, names settings that exist, and fits the others."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication

from tests.deploy.monitoring import DEPLOY
from wan_host.settings import Settings
from wan_host.testing.server import Answer, scripted_server

ROOT = DEPLOY.parent
BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
TEMPLATE = json.loads((DEPLOY / "runpod" / "template.json").read_text())
MANIFEST = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "wan-host.yaml").read_text()))
KEDA = {"ScaledObject": ScaledObject, "TriggerAuthentication": TriggerAuthentication}


def check(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_hadolint_is_content_with_the_dockerfile():
    check(BIN / "hadolint", "--config", DEPLOY / "hadolint.yaml", DEPLOY / "Dockerfile")


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_is_content_with_the_scripts(script):
    check(BIN / "shellcheck", script)


def test_the_compose_file_fits_the_compose_specification():
    check(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_the_runpod_template_fits_what_its_api_takes():
    schema = DEPLOY / "runpod" / "template.schema.json"
    check(BIN / "check-jsonschema", "--check-metaschema", schema)
    check(BIN / "check-jsonschema", "--schemafile", schema, DEPLOY / "runpod" / "template.json")


@pytest.mark.parametrize("document", MANIFEST, ids=lambda document: document["kind"])
def test_the_manifest_fits_kubernetes_and_keda(document):
    if document["kind"] in KEDA:
        kept = KEDA[document["kind"]].model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert kept == document, "KEDA's types have no such field"
    else:
        kubernetes_validate.validate(document, desired_version="1.33", strict=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path):
    unit = (DEPLOY / "systemd" / "wan-host.service").read_text()
    (tmp_path / "wan-host.service").write_text(unit.replace("/opt/wan-host/bin/", f"{BIN}/"))
    said = check("systemd-analyze", "verify", "--man=no", tmp_path / "wan-host.service")
    assert str(tmp_path) not in said, said  # a key that it does not know is a line, not an exit status


def settings_in_files():
    """Every variable that a file gives to a worker, with the file's name."""
    unit = (DEPLOY / "systemd" / "wan-host.service").read_text()
    given = {
        "compose.yaml": COMPOSE["services"]["worker"]["environment"],
        "template.json": TEMPLATE["env"],
        "wan-host.yaml": next(document for document in MANIFEST if document["kind"] == "ConfigMap")["data"],
        "start.sh": re.findall(r"export (\w+)=", (DEPLOY / "runpod" / "start.sh").read_text()),
        "wan-host.service": re.findall(r"(?:^Environment=| )([A-Z]\w+)=", unit, re.MULTILINE),
        "Dockerfile": re.findall(r"(WAN_HOST_\w+)=", (DEPLOY / "Dockerfile").read_text()),
    }
    return [(file, name) for file, names in given.items() for name in names]


@pytest.mark.parametrize(("file", "name"), settings_in_files())
def test_a_file_sets_only_what_somebody_reads(file, name):
    libraries = {"HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH"}
    script = (DEPLOY / "runpod" / "start.sh").read_text()
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (ROOT / "docs" / "operations.md").read_text()))
    documented |= set(re.findall(r"`(WAN_HOST_WAN21_\w+)`", (ROOT / "plugins" / "wan21" / "README.md").read_text()))
    documented |= {"SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"}
    for_keda = {"REDIS_ADDRESS"} if file == "wan-host.yaml" else set()
    for_script = {"PULL_MODELS", "ON_IDLE"} if file == "template.json" else set()
    assert all(f"${{{word}" in script for word in for_script)
    assert name in documented | libraries | for_keda | for_script


def test_the_unit_and_the_manifest_wait_longer_than_the_worker_needs_to_stop():
    unit = (DEPLOY / "systemd" / "wan-host.service").read_text()
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > int(re.search(r"STOP_GRACE=(\d+)", unit)[1])
    kinds = {document["kind"]: document for document in MANIFEST}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > int(kinds["ConfigMap"]["data"]["WAN_HOST_STOP_GRACE"])
    worker = COMPOSE["services"]["worker"]
    assert int(worker["stop_grace_period"].rstrip("s")) > worker["environment"]["WAN_HOST_STOP_GRACE"]


def test_every_file_knows_the_port():
    port = Settings.model_fields["port"].default
    assert f"EXPOSE {port}" in (DEPLOY / "Dockerfile").read_text()
    assert TEMPLATE["ports"] == [f"{port}/http"]
    assert COMPOSE["services"]["worker"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert prometheus["scrape_configs"][0]["static_configs"] == [{"targets": [f"worker:{port}"]}]


def test_compose_mounts_files_that_are_there():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).is_dir()


def test_grafana_and_prometheus_find_each_other_and_their_files():
    services = COMPOSE["services"]
    folder = DEPLOY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "wan-host.yml").read_text())["providers"]
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
    assert {"prometheus", "worker"} <= set(services), "the names in these addresses"


def test_the_template_names_plugins_of_this_repository():
    named = TEMPLATE["env"]["WAN_HOST_REQUIRED_PLUGINS"].split(",")
    assert all((ROOT / "plugins" / name / "pyproject.toml").is_file() for name in named)


class Chosen:
    """What `distributions.py` says for some plugins."""

    def __init__(self, *names):
        self.folders = check(sys.executable, DEPLOY / "distributions.py", "folders", *names).split()
        self.requirements = check(sys.executable, DEPLOY / "distributions.py", "requirements", *names).splitlines()


def test_an_image_has_every_plugin_unless_some_are_chosen():
    plugins = {str(path.parent) for path in (ROOT / "plugins").glob("*/pyproject.toml")}
    assert set(Chosen().folders) == {str(ROOT)} | plugins
    assert any(line.startswith("torch>") for line in Chosen().requirements)


def test_an_image_of_one_plugin_has_what_that_one_needs_and_no_torch():
    chosen = Chosen("thumbnail")
    assert chosen.folders == [str(ROOT), str(ROOT / "plugins/thumbnail")]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(declared) <= set(chosen.requirements)
    assert not any(re.match(r"torch|wan-host", line) for line in chosen.requirements)


def test_a_plugin_brings_the_one_that_it_needs():
    assert str(ROOT / "plugins/wan21") in Chosen("tiny_wan").folders


def test_a_plugin_that_is_not_there_is_named():
    command = [sys.executable, DEPLOY / "distributions.py", "folders", "wan22"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith("PLUGINS: 'wan22' is not in plugins/")) == (1, True)


@pytest.fixture
def pod(tmp_path):
    """A pod: a volume, and a wan-host that notes how it was called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "wan-host"
    program.write_text(
        "#!/usr/bin/env bash\n"
        'echo "wan-host $*" >> "$NOTES"; env > "$NOTES.env"\n'
        '[[ $1 == run ]] || exit "${PULL_STATUS:-0}"\n'
        "trap 'echo stopping >> \"$NOTES\"; sleep 0.2; exit 0' TERM\n"
        'if [[ -n ${STAY:-} ]]; then while :; do sleep 0.05; done; fi; exit "${RUN_STATUS:-0}"\n'
    )
    program.chmod(0o755)
    volume = tmp_path / "volume"
    volume.mkdir()
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes"), "VOLUME": str(volume)}
    return tmp_path, {**environment, "RUNPOD_POD_ID": "pod7", "HOME": str(tmp_path)}


def start(pod, **more):
    folder, environment = pod
    command = ["bash", DEPLOY / "runpod" / "start.sh"]
    done = subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=30, check=False)
    notes = folder / "notes"
    return done, notes.read_text().splitlines() if notes.exists() else []


def test_a_pod_keeps_models_and_caches_on_the_volume_and_its_spool_apart(pod):
    done, notes = start(pod, HF_HOME=str(pod[0] / "mine"))
    assert (done.returncode, notes) == (0, ["wan-host run"])
    seen = dict(line.split("=", 1) for line in (pod[0] / "notes.env").read_text().splitlines() if "=" in line)
    volume = pod[0] / "volume"
    assert seen["WAN_HOST_MODELS_DIR"] == f"{volume}/models"
    assert seen["WAN_HOST_DATA_DIR"] == f"{volume}/pods/pod7"
    assert seen["TORCHINDUCTOR_CACHE_DIR"] == f"{volume}/cache/inductor"
    assert seen["HF_HOME"] == str(pod[0] / "mine"), "what is set already stays"
    assert (volume / "pods" / "pod7").is_dir()
    assert (volume / "pods" / "pod7" / "wan21").resolve() == volume / "cache" / "wan21"
    assert start(pod)[0].returncode == 0, "the same pod, started again"


def test_a_model_is_pulled_once(pod):
    assert start(pod, PULL_MODELS="wan2.1-vace-1.3b me/mine@1")[1] == [
        "wan-host models pull wan2.1-vace-1.3b",
        "wan-host models pull me/mine@1",
        "wan-host run",
    ]
    (pod[0] / "notes").unlink()
    assert start(pod, PULL_MODELS="wan2.1-vace-1.3b me/mine@1")[1] == ["wan-host run"]


def test_a_pull_that_breaks_off_is_the_end_and_is_tried_again(pod):
    done, notes = start(pod, PULL_MODELS="m", PULL_STATUS="4")
    assert (done.returncode, notes) == (4, ["wan-host models pull m"])
    (pod[0] / "notes").unlink()
    assert start(pod, PULL_MODELS="m")[1] == ["wan-host models pull m", "wan-host run"]


@pytest.mark.parametrize(
    ("status", "on_idle", "call"),
    [
        ("3", "remove", [("DELETE", "/pods/pod7")]),
        ("3", "stop", [("POST", "/pods/pod7/stop")]),
        ("3", "keep", []),
        ("1", "remove", []),
        ("0", "remove", []),
    ],
)
def test_a_pod_is_given_back_only_when_its_worker_was_idle(pod, status, on_idle, call):
    with scripted_server(lambda _: Answer(204)) as runpod:
        done, notes = start(pod, RUN_STATUS=status, ON_IDLE=on_idle, RUNPOD_API=runpod.url, RUNPOD_API_KEY="key")
        assert [(asked.method, asked.path) for asked in runpod.asked] == call
        assert all(asked.headers["authorization"] == "Bearer key" for asked in runpod.asked)
    assert (done.returncode, notes) == (int(status), ["wan-host run"])


def test_a_pod_that_could_not_be_given_back_says_that_it_is_paid_for(pod):
    with scripted_server(lambda _: Answer(401)) as runpod:
        done, _ = start(pod, RUN_STATUS="3", ON_IDLE="remove", RUNPOD_API=runpod.url, RUNPOD_API_KEY="key")
    assert (done.returncode, "is paid for" in done.stderr) == (1, True)


def test_sigterm_reaches_the_worker_and_is_waited_for(pod):
    folder, environment = pod
    process = subprocess.Popen(["bash", DEPLOY / "runpod" / "start.sh"], env=environment | {"STAY": "1"})
    try:
        for _ in range(200):
            if (folder / "notes").exists():
                break
            time.sleep(0.05)
        time.sleep(0.2)  # until its trap stands
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
    assert (folder / "notes").read_text().splitlines() == ["wan-host run", "stopping"]


@pytest.mark.parametrize(("variable", "value"), [("VOLUME", "/no/such"), ("ON_IDLE", "explode")])
def test_a_wrong_variable_is_one_line(pod, variable, value):
    done, notes = start(pod, **{variable: value})
    assert (done.returncode, notes) == (1, [])
    assert re.fullmatch(rf"start-on-runpod: {variable}: .*{value}.*\n", done.stderr)
