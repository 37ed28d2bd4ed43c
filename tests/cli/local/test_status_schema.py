import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from gpu_agent.cli.local.status_schema import schema
from gpu_agent.node.limits import Limit, Pause
from gpu_agent.node.public_pool import Standing
from gpu_agent.node.socket.jobs import Announced
from gpu_agent.node.socket.status import Moment, status
from gpu_agent.session.story import State
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import GpuReport, Model, Outcome
from gpu_agent.wire.messages import Check, StatusDetails
from tests.cli.probe.test_schema import objects, strict
from tests.node.an_agent import INVENTORY, READY, picture

JOBS = (
    Announced("job-1", 0, 1.5, pid=4711, held_by="process", holder="process-4711-1"),
    Announced("job-2", 0, 1.5, pid=None, held_by="connection", holder="connection-2"),
)
DETAILS = StatusDetails(
    checks=(Check(name="gpu", ok=True, detail="fine"),), in_flight_jobs=2, clears_when="x"
)
UNKNOWN = dict.fromkeys(
    ("node_id", "verdict", "inventory", "state_since", "link_since", "last_beat_at", "interval_seconds")
)
STANDINGS: dict[str, dict[str, Any]] = {
    "ready": {"verdict": READY.model_copy(update={"details": DETAILS, "since": 3.5})},
    "fresh": {**UNKNOWN, "state": State.WAITING_GPU},
    "away": {"state": State.BACKING_OFF, "next_attempt_at": 103.0, "last_refusal": "connection refused"},
    "drains": {"drain_reason": "new fans", "drain_until": 200.0},
    "paused": {"public_jobs": Standing(wanted=True, pauses=(Pause(Limit.SCHEDULE, "not now"),))},
    "owned": {"owner": Owner(labels={"zone": "a"}, max_concurrent_jobs=2), "models_left_out": ("m",)},
    "no driver": {"inventory": replace(INVENTORY, gpu=GpuReport(outcome=Outcome.NO_DRIVER, detail="none"))},
    "models": {"inventory": replace(INVENTORY, models=(Model(model_id="m", version="1"),))},
}


def document(**stands: object) -> dict[str, Any]:
    moment = Moment(monotonic=100.0, wall=5000.0)
    made = status(picture(**stands), JOBS, announced=True, started_at=4000.0, moment=moment)
    return dict(json.loads(json.dumps(made)))


@pytest.mark.parametrize("name", STANDINGS)
def test_however_an_agent_stands_its_status_is_what_the_schema_says(name: str) -> None:
    jsonschema.validate(document(**STANDINGS[name]), strict(schema()))


def test_the_schema_holds_a_document_to_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    whole = document()
    for name in schema()["required"]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({key: value for key, value in whole.items() if key != name}, schema())
    for part in objects(schema()):
        if "properties" in part and isinstance(part["properties"], dict):
            assert part["required"] == list(part["properties"])
