"""Recordings of true machines are valid, and do not identify the machine."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpu_agent.probe.snapshot import Sources, take, to_document
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Outcome
from gpu_agent.wire.probe_document import probe_schema
from tests.gpu.recording import DATA, scrubbed

UUID = "GPU-8a1d2c3b-1111-2222-3333-444455556666"


def probed() -> dict[str, Any]:
    """A document with all that must not be recorded."""
    whole = Gpu(uuid=UUID, name="H100", index=0, processes=(GpuProcess(pid=4242),))
    mig_device = Gpu(uuid="MIG-1", name="MIG device", index=0, parent_uuid=UUID)
    report = GpuReport(outcome=Outcome.OK, gpus=(whole, mig_device))
    document: dict[str, Any] = json.loads(json.dumps(to_document(take(report, Sources()))))
    document["models"] = [{"model_id": "secret/model"}]
    document["host"]["hostname"] = "host.example"
    return document


def test_a_recording_has_no_serials_names_or_models_and_mig_devices_have_their_parents() -> None:
    document = probed()
    recorded = scrubbed(document)
    text = json.dumps(recorded)
    for secret in ("8a1d2c3b", "host.example", "secret/model", "4242", document["host"]["boot_id"] or "none"):
        assert secret not in text
    assert recorded["gpus"][1]["parent_uuid"] == recorded["gpus"][0]["uuid"] != UUID
    assert document["gpus"][0]["uuid"] == UUID


def test_the_recording_is_valid() -> None:
    jsonschema.validate(scrubbed(probed()), probe_schema())


@pytest.mark.parametrize("recorded", sorted(DATA.glob("*.json")), ids=lambda path: path.stem)
def test_each_recorded_machine_is_valid(recorded: Path) -> None:
    document = json.loads(recorded.read_text(encoding="utf-8"))
    jsonschema.validate(document, probe_schema())
    assert scrubbed(document)["gpus"]
