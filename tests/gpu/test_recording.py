"""What was kept of true machines is valid, and tells nobody which machine it was."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpu_agent.cli import schema as probe_schema
from gpu_agent.probe.snapshot import Sources, take, to_document
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Outcome
from tests.gpu.recording import DATA, scrubbed

UUID = "GPU-8a1d2c3b-1111-2222-3333-444455556666"


def probed() -> dict[str, Any]:
    """A document with all that must not be kept."""
    whole = Gpu(uuid=UUID, name="H100", index=0, processes=(GpuProcess(pid=4242),))
    slice_ = Gpu(uuid="MIG-1", name="slice", index=0, parent_uuid=UUID)
    report = GpuReport(outcome=Outcome.OK, gpus=(whole, slice_))
    document: dict[str, Any] = json.loads(json.dumps(to_document(take(report, Sources()))))
    document["models"] = [{"model_id": "secret/model"}]
    document["host"]["hostname"] = "host.example"
    return document


def test_serials_names_and_models_are_not_kept_and_a_slice_still_has_its_parent() -> None:
    document = probed()
    kept = scrubbed(document)
    text = json.dumps(kept)
    for secret in ("8a1d2c3b", "host.example", "secret/model", "4242", document["host"]["boot_id"] or "none"):
        assert secret not in text
    assert kept["gpus"][1]["parent_uuid"] == kept["gpus"][0]["uuid"] != UUID
    assert document["gpus"][0]["uuid"] == UUID


def test_what_is_kept_is_valid() -> None:
    jsonschema.validate(scrubbed(probed()), probe_schema.probe_schema())


@pytest.mark.parametrize("kept", sorted(DATA.glob("*.json")), ids=lambda path: path.stem)
def test_each_machine_that_was_kept_is_valid(kept: Path) -> None:
    document = json.loads(kept.read_text(encoding="utf-8"))
    jsonschema.validate(document, probe_schema.probe_schema())
    assert scrubbed(document)["gpus"]
