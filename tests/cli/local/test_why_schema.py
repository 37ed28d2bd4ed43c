import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from gpu_agent.cli.local.why_schema import schema
from gpu_agent.node.public_pool import Standing
from gpu_agent.node.socket.status import Moment
from gpu_agent.node.socket.why import why
from gpu_agent.session.story import State
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import GpuReport, Model, ModelStatus, Outcome
from tests.cli.probe.test_schema import strict
from tests.node.an_agent import HOST, INVENTORY, READY, picture

BROKEN = Model(model_id="m", version="1", status=ModelStatus.ERROR)
STANDINGS: dict[str, dict[str, Any]] = {
    "ready": {},
    "away": {"state": State.BACKING_OFF, "next_attempt_at": 103.0, "last_refusal": "connection refused"},
    "fresh": {"state": State.IDLE, "node_id": None, "verdict": None, "inventory": None},
    "drains": {"drain_reason": "new fans", "drain_until": 200.0},
    "degraded": {"verdict": READY.model_copy(update={"status": "degraded"})},
    "private and full": {"public_jobs": Standing(wanted=False), "owner": Owner(max_concurrent_jobs=0)},
    "no driver": {"inventory": replace(INVENTORY, gpu=GpuReport(outcome=Outcome.NO_DRIVER))},
    "broken and busy": {
        "inventory": replace(INVENTORY, models=(BROKEN,), host=replace(HOST, cpu_percent=99.0))
    },
}


@pytest.mark.parametrize("name", STANDINGS)
def test_whatever_is_refused_is_told_as_the_schema_says(name: str) -> None:
    told = why(picture(**STANDINGS[name]), 0, moment=Moment(monotonic=100.0, wall=5000.0))
    assert (told["objections"] == []) is (name == "ready")
    jsonschema.validate(json.loads(json.dumps(told)), strict(schema()))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
