"""What the scaler of `deploy/kubernetes` reads from the queue's keys is what there is to be done."""

from pathlib import Path

import pytest
import yaml

from tests.queue.entries import REPORT, job

MANIFEST = Path(__file__).parent.parent.parent / "deploy" / "kubernetes" / "wan-host.yaml"


@pytest.fixture
def scaler():
    (found,) = [item for item in yaml.safe_load_all(MANIFEST.read_text()) if item["kind"] == "ScaledObject"]
    return found["spec"]


@pytest.fixture
def seen(scaler, redis, name):
    """The sum of LLEN and XLEN, which KEDA's scalers `redis` and `redis-streams` (with a streamLength) read."""

    async def ask():
        total = 0
        for trigger in scaler["triggers"]:
            told = trigger["metadata"]
            if trigger["type"] == "redis":
                total += await redis.llen(told["listName"].replace("wan_queue", name))
            else:
                assert "consumerGroup" not in told, "KEDA would count something else"
                total += await redis.xlen(told["stream"].replace("wan_queue", name))
        return total

    return ask


def test_the_formula_adds_up_every_trigger(scaler):
    names = [trigger["name"] for trigger in scaler["triggers"]]
    assert scaler["advanced"]["scalingModifiers"]["formula"].split(" + ") == names


async def test_the_scaler_counts_what_waits_and_what_runs(seen, queue, redis, name):
    assert await seen() == 0
    await redis.rpush(name, *(job(str(number), priority=number) for number in range(10)), job("default"), "poison")
    assert await seen() == 12
    claims = (await queue.poll(claims=3)).claims
    assert await seen() == 11, "what is no job is none"
    for claim in claims:
        await queue.start(claim)
    await queue.finish(claims[0], status="published", report=REPORT)
    assert await seen() == 10, "running jobs hold their workers"
    await queue.release(claims[1], defer=60, reason="test", refund=True)
    assert await seen() == 10, "what was handed back waits"
    await queue.finish(claims[2], status="failed", report=REPORT, dead_letter="test")
    await queue.cancel("default")
    assert await seen() == 8
    await redis.lmove(name, f"{{{name}}}:intake", "LEFT", "RIGHT")
    await redis.rpush(f"{{{name}}}:intake", job("read"))
    assert await seen() == 9, "what a worker that died had just read"


async def test_the_lag_of_the_group_would_not_do(queue, redis, name):
    await redis.rpush(name, *(job(str(number)) for number in range(4)))
    (claim,) = (await queue.poll(claims=1)).claims
    await queue.start(claim)
    ((group),) = await redis.xinfo_groups(f"{{{name}}}:stream:0")
    assert group["lag"] == 3, "the running job does not count"
    await queue.cancel("2")
    ((group),) = await redis.xinfo_groups(f"{{{name}}}:stream:0")
    assert group["lag"] is None
