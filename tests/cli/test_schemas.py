import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpu_agent.cli.agent.doctor import doctor_schema, report_document
from gpu_agent.cli.main import main
from gpu_agent.cli.schema import NAMES, schema_of
from gpu_agent.node.jobs import AnnouncedJob, WorkerProcess, of_process
from gpu_agent.node.public_jobs import Limit, Pause, PublicJobsState
from gpu_agent.runtime.check_results import fail, ok, skipped, warn
from gpu_agent.session.types import State
from gpu_agent.wire.codes import ExclusionReason
from gpu_agent.wire.control import StatusDocument, status_schema
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.explain_document import ExplainDocument, explain_schema
from gpu_agent.wire.inventory import GpuReport, Model, ModelStatus, Outcome
from gpu_agent.wire.messages import Check, StatusDetails
from gpu_agent.wire.probe_document import ProbeDocument, probe_schema
from tests.node.control_harness import HOST, INVENTORY, READY, jobs_in_flight, status_of, why_of
from tests.nvml_fake.control import FakeNvml


def test_all_schemas_are_printed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: schema_of(name) for name in NAMES}


def test_one_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "node_heartbeat"]) == 0
    assert json.loads(capsys.readouterr().out) == schema_of("node_heartbeat")


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "node_teleport"]) == 4
    assert "node_register" in capsys.readouterr().err


def test_schemas_are_written_to_a_folder(tmp_path: Path) -> None:
    assert main(["schema", "--write", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == set(NAMES)


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    assert main(["schema", "node_error", "--write", str(tmp_path / "a" / "b")]) == 0
    assert json.loads((tmp_path / "a" / "b" / "node_error.json").read_text()) == schema_of("node_error")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["schema", "--write", str(tmp_path / "file" / "below")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said
    assert "cannot be written (Not a directory)" in said


BROKEN_INIT: list[tuple[object, ...]] = [
    ("error", call, "*", "DRIVER_NOT_LOADED") for call in ("nvmlInit_v2", "nvmlInitWithFlags")
]
MACHINES: dict[str, tuple[int, list[tuple[object, ...]]]] = {
    "eight well": (8, []),
    "none": (0, []),
    "no kernel module": (8, BROKEN_INIT),
    "one lost": (8, [("error", "nvmlDeviceGetTemperature", 3, "GPU_IS_LOST")]),
    "all lost": (2, [("error", "nvmlDeviceGetTemperature", "*", "GPU_IS_LOST")]),
    "a driver that reports nothing": (2, [("error", "*", "0", "NOT_SUPPORTED")]),
    "in use": (2, [("process", 0, 4711, 1 << 30)]),
    "worn out": (
        2,
        [("remapped_rows", 0, "0 3 1 1"), ("retired_pages_pending", 1, 1), ("ecc_uncorrected", 1, 9)],
    ),
    "slowed": (1, [("clocks_event_reasons", 0, 0x48)]),
    "with a wrong name": (1, [("name", 0, "evil \x1b[2J \udcff card")]),
    "a library that dies": (1, [("crash", "nvmlDeviceGetCount_v2", "*")]),
    "sliced": (1, [("mig", 0, 1)]),
}


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def strict(part: Any) -> Any:  # noqa: ANN401 - a schema is any JSON
    """The same schema, but what it does not name is a fault."""
    if isinstance(part, dict):
        closed = {name: strict(value) for name, value in part.items()}
        if "properties" in part:
            closed.setdefault("additionalProperties", False)
        return closed
    return [strict(one) for one in part] if isinstance(part, list) else part


def objects(document: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - a document is any JSON
    if isinstance(document, dict):
        yield document
        for part in document.values():
            yield from objects(part)
    if isinstance(document, list):
        for part in document:
            yield from objects(part)


@pytest.mark.parametrize("name", MACHINES)
def test_what_the_probe_prints_of_any_machine_is_what_the_schema_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus, statements = MACHINES[name]
    fake = FakeNvml(tmp_path, gpus=gpus)
    for words in statements:
        fake.set(*words)
    for variable, value in fake.environment().items():
        monkeypatch.setenv(variable, value)
    code = main(["probe", "--json"])
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, strict(probe_schema()))
    assert ProbeDocument.model_validate(document).model_dump(by_alias=True, mode="json") == document
    assert document["could_register"] is (code == 0)


def test_models_and_what_is_declared_of_them_are_in_the_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = tmp_path / "agent.toml"
    configuration.write_text(
        '[features]\nemotion_detection = true\n[[declared_models]]\nmodel_id = "m"\nversion = "3"\n'
    )
    assert main(["probe", "--json", "--simulate", "2xL4-24GB", "--config", str(configuration)]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, strict(probe_schema()))
    assert document["models"][0]["model_id"] == "m"


def test_a_machine_without_a_driver_is_in_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert main(["probe", "--json"]) == 2
    jsonschema.validate(json.loads(capsys.readouterr().out), strict(probe_schema()))


def test_the_schema_holds_a_document_to_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(probe_schema())
    with pytest.raises(jsonschema.ValidationError, match="required"):
        jsonschema.validate({"schema": "gpu-agent.probe/1"}, probe_schema())
    for part in objects(probe_schema()["$defs"]):
        if "properties" in part:
            assert part["required"] == list(part["properties"])


RESULTS = [ok("DNS", "a"), warn("clock", "b", "c"), fail("TCP", "d", "e"), skipped("TLS", "f")]
ALL = report_document(RESULTS).model_dump(mode="json", by_alias=True)


def test_every_result_is_in_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(doctor_schema())
    jsonschema.validate(ALL, doctor_schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": "gpu-agent.doctor/2"},
        {"ok": None},
        {"checks": [{"check": "DNS", "verdict": "maybe", "detail": "", "fix": None}]},
        {"checks": [{"check": "DNS"}]},
    ],
)
def test_another_document_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**ALL, **wrong}, doctor_schema())


JOBS = jobs_in_flight(
    AnnouncedJob("job-1", of_process(4711, 1), 0, 1.5),
    AnnouncedJob("job-2", WorkerProcess("connection-2"), 0, 1.5),
)
DETAILS = StatusDetails(
    checks=(Check(name="gpu", ok=True, detail="fine"),), in_flight_jobs=2, clears_when="x"
)
UNKNOWN = dict.fromkeys(
    (
        "node_id",
        "registry_status",
        "inventory",
        "state_since",
        "link_since",
        "last_heartbeat_at",
        "interval_seconds",
    )
)
STANDINGS: dict[str, dict[str, Any]] = {
    "ready": {"registry_status": READY.model_copy(update={"details": DETAILS, "since": 3.5})},
    "fresh": {**UNKNOWN, "state": State.WAITING_GPU},
    "away": {"state": State.BACKING_OFF, "next_attempt_at": 103.0, "last_refusal": "connection refused"},
    "drains": {"drain_reason": "new fans", "drain_until": 200.0},
    "paused": {"public_jobs": PublicJobsState(wanted=True, pauses=(Pause(Limit.SCHEDULE, "not now"),))},
    "owned": {"owner": Owner(labels={"zone": "a"}, max_concurrent_jobs=2), "models_left_out": ("m",)},
    "no driver": {"inventory": replace(INVENTORY, gpu=GpuReport(outcome=Outcome.NO_DRIVER, detail="none"))},
    "models": {"inventory": replace(INVENTORY, models=(Model(model_id="m", version="1"),))},
}


def document(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - a snapshot's fields
    return status_of(JOBS, **fields)


@pytest.mark.parametrize("name", STANDINGS)
def test_the_status_of_every_state_matches_the_schema(name: str) -> None:
    jsonschema.validate(document(**STANDINGS[name]), strict(status_schema()))


def test_the_schema_holds_a_document_to_every_field__status_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(status_schema())
    whole = document()
    for name in status_schema()["required"]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({key: value for key, value in whole.items() if key != name}, status_schema())
    for part in objects(status_schema()):
        if "properties" in part and isinstance(part["properties"], dict):
            assert part["required"] == list(part["properties"])


BROKEN = Model(model_id="m", version="1", status=ModelStatus.ERROR)
WHY_SCHEMA_STANDINGS: dict[str, dict[str, Any]] = {
    "ready": {},
    "away": {"state": State.BACKING_OFF, "next_attempt_at": 103.0, "last_refusal": "connection refused"},
    "fresh": {"state": State.IDLE, "node_id": None, "registry_status": None, "inventory": None},
    "drains": {"drain_reason": "new fans", "drain_until": 200.0},
    "degraded": {"registry_status": READY.model_copy(update={"status": "degraded"})},
    "private and full": {"public_jobs": PublicJobsState(wanted=False), "owner": Owner(max_concurrent_jobs=0)},
    "no driver": {"inventory": replace(INVENTORY, gpu=GpuReport(outcome=Outcome.NO_DRIVER))},
    "broken and busy": {
        "inventory": replace(INVENTORY, models=(BROKEN,), host=replace(HOST, cpu_percent=99.0))
    },
}


@pytest.mark.parametrize("name", WHY_SCHEMA_STANDINGS)
def test_whatever_is_refused_is_reported_as_the_schema_says(name: str) -> None:
    answer = why_of(**WHY_SCHEMA_STANDINGS[name])
    assert (answer["exclusions"] == []) is (name == "ready")
    jsonschema.validate(answer, strict(explain_schema()))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(explain_schema())


def test_the_schemas_list_the_words_that_this_version_sends() -> None:
    parts = status_schema()["$defs"]
    assert parts["SessionInfo"]["properties"]["state"]["enum"] == list(State)
    assert parts["PauseInfo"]["properties"]["limit"]["enum"] == list(Limit)
    reason = explain_schema()["$defs"]["NodeExclusionView"]["properties"]["reason"]
    assert reason["enum"] == list(ExclusionReason)


def test_a_reader_accepts_a_word_of_a_newer_agent() -> None:
    paused = {"public_jobs": PublicJobsState(wanted=True, pauses=(Pause(Limit.SCHEDULE, "not now"),))}
    status, why = document(**paused), why_of(inventory=None)
    status["session"]["state"] = status["public_jobs"]["pauses"][0]["limit"] = "of_2031"
    why["exclusions"][0]["reason"] = "of_2031"
    assert StatusDocument.model_validate(status).session.state == "of_2031"
    assert ExplainDocument.model_validate(why).exclusions[0].reason == "of_2031"
