import json
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_agent.cli.local.agent_machine import inventory_of
from gpu_agent.cli.outcome import Failure
from gpu_agent.probe.snapshot import to_document
from gpu_agent.wire.inventory import (
    Gpu,
    GpuProcess,
    GpuReport,
    Health,
    HealthReason,
    Inventory,
    Model,
    ModelStatus,
    Outcome,
)
from tests.cli.hosts import HOST

REASON = HealthReason(code="gpu_lost", detail="gone", action="reboot", since=1.5)
LOST = Gpu(
    uuid="GPU-1",
    name="L4",
    health=Health.LOST,
    reasons=(REASON,),
    processes=(GpuProcess(pid=7, ours=True),),
    events={"xid_79": 1},
    unknowns={"power_w": "not supported"},
    throttle_reasons=("hw_slowdown",),
)
MODEL = Model(model_id="m", version="1", status=ModelStatus.ERROR, detail="a shard is missing")


def inventories() -> Iterator[Inventory]:
    yield Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver"))
    yield Inventory(
        host=HOST,
        gpu=GpuReport(outcome=Outcome.OK, gpus=(LOST,), driver_version="570", cuda_version="12.8"),
        models=(MODEL,),
        models_complete=False,
        models_unsearched={"/srv": "no permission"},
        features_supported={"emotion_detection": True},
        advanced_features=("kv_cache",),
        simulated=True,
        took_ms=3.5,
    )


def told(inventory: Inventory) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(to_document(inventory)))
    return document


@pytest.mark.parametrize("inventory", [*inventories()], ids=["no driver", "one lost"])
def test_what_an_agent_tells_of_its_machine_is_read_back_whole(inventory: Inventory) -> None:
    assert inventory_of({**told(inventory), "probe_age_seconds": 1.0}) == inventory


def test_what_a_newer_agent_tells_besides_is_left_aside() -> None:
    inventory = next(inventories())
    document = told(inventory)
    document["host"]["shoe_size"] = 44
    assert inventory_of({**document, "mood": "fine"}) == inventory


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outcome": "haunted"}, r"read \(Input should be 'ok'"),
        ({"host": None}, r"read \(Input should be a dictionary"),
        ({"gpus": [{"uuid": "x"}]}, r"read \(0\.name: Field required"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_with_the_next_step(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Failure, match=words) as failed:
        inventory_of({**told(next(inventories())), **change})
    assert "restart it after an upgrade" in str(failed.value)


def test_what_is_missing_is_named() -> None:
    document = told(next(inventories()))
    del document["models"]
    with pytest.raises(Failure, match="no models"):
        inventory_of(document)
