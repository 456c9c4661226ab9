"""OpenAPI is right: whatever is asked, no answer is a fault of the server's and none is undocumented."""

import os
import random

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure as CheckFailure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conftest import job

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "500"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
KNOWN = ("done", "failed", "cancelled")
NAMES = ("0.mp4", "0.thumb.webp", "1.mp4")


@pytest.mark.long
@pytest.mark.timeout(0)
def test_no_request_finds_a_fault_or_an_undocumented_answer(serve):
    api = serve(WAN_HOST_SUBMIT_RATE="1e9", WAN_HOST_ENHANCE_RATE="1e9", WAN_HOST_MAX_ATTEMPTS="1")
    api.submit(job("done"), job("failed", "refuse"), job("cancelled"))
    api.client.delete("/jobs/cancelled")
    api.wait_for("done", "completed")
    api.wait_for("failed", "failed")
    schema = schemathesis.openapi.from_url(f"{api.client.base_url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    asked = dict.fromkeys((operation.label for operation in operations), 0)
    chance = random.Random(1)
    found = []
    examples = -(-REQUESTS // (2 * len(operations)))

    def ask(case):
        if "job_id" in (case.path_parameters or {}) and chance.random() < 0.5:
            case.path_parameters["job_id"] = chance.choice(KNOWN)
            if "name" in case.path_parameters:
                case.path_parameters["name"] = chance.choice(NAMES)
        asked[case.operation.label] += 1
        case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {api.key}"}, timeout=60)

    bounded = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=REQUESTS <= 500,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                bounded(given(case=operation.as_strategy(generation_mode=mode))(ask))()
            except Unsatisfiable:  # there is nothing in it that could be wrong
                continue
            except (FailureGroup, CheckFailure) as error:
                found.append(f"{operation.label}, {mode}: {error}")
    while sum(asked.values()) < REQUESTS:  # operations without anything to vary end early
        operation = max(operations, key=lambda item: len(item.path_parameters) + bool(item.body))
        bounded(given(case=operation.as_strategy())(ask))()
    assert found == []
    assert all(asked.values())
    assert api.client.get("/health").status_code == 200
    assert [line for line in api.worker.events() if line["level"] in {"error", "critical"} and "http" in line["logger"]] == []
