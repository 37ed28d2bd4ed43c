"""The probe's document is written without pydantic, and its model reads it."""

import json
from dataclasses import fields

import pytest

from gpu_agent.probe.simulation.gpus import read_simulated_once
from gpu_agent.probe.snapshot import Sources, take, to_document
from gpu_agent.wire.inventory import Gpu, GpuReport, Host, Inventory, Outcome
from gpu_agent.wire.probe_document import ProbeDocument

NO_DRIVER = GpuReport(outcome=Outcome.NO_DRIVER, detail="No NVIDIA driver was found: install it.")
SIMULATED = "2xH100-80GB:xid95#1,1xA100-80GB/3g.40gb+2x1g.10gb"


@pytest.fixture(params=[None, SIMULATED])
def inventory(request: pytest.FixtureRequest) -> Inventory:
    """A real reading of this machine, with no GPU and with simulated ones."""
    gpu = NO_DRIVER if request.param is None else read_simulated_once(request.param, seed="s", now=1.0)
    return take(gpu, Sources())


def test_a_real_document_is_valid_and_keeps_every_value(inventory: Inventory) -> None:
    written = json.loads(json.dumps(to_document(inventory)))
    read = ProbeDocument.model_validate(written)
    assert read.gpus == inventory.gpu.gpus
    assert read.host == inventory.host
    assert read.models == inventory.models
    assert read.model_dump(mode="json", by_alias=True) == written


def test_the_document_has_the_models_fields_and_no_other(inventory: Inventory) -> None:
    written = to_document(inventory)
    assert [field.alias or name for name, field in ProbeDocument.model_fields.items()] == list(written)
    assert set(written["host"]) == {field.name for field in fields(Host)}  # type: ignore[call-overload]
    for gpu in written["gpus"]:  # type: ignore[attr-defined]
        assert set(gpu) == {field.name for field in fields(Gpu)}
