import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.features import FeaturePolicy
from gpu_agent.probe.models.catalogue import Catalogue
from gpu_agent.probe.models.declared import Declaration
from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.probe.simulated import SimulatedGpus
from gpu_agent.probe.snapshot import SCHEMA, Sources, able_to_serve, exit_code, take, to_document
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, HealthReason, Host, Inventory, Outcome

HOST = Host(
    cpu_logical_cores=1,
    cpu_physical_cores=None,
    memory_total_mb=1,
    memory_used_mb=None,
    memory_available_mb=None,
    platform="linux",
)
GOOD = Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
LOST = Gpu(uuid="GPU-2", name="NVIDIA L4", memory_mb=23034, health=Health.LOST)


def inventory(outcome: Outcome, *gpus: Gpu) -> Inventory:
    return Inventory(host=HOST, gpu=GpuReport(outcome=outcome, gpus=gpus))


def test_a_snapshot_holds_gpus_host_models_and_features(tmp_path: Path) -> None:
    sources = Sources(
        catalogue=Catalogue(
            [HubCache([tmp_path])], [Declaration(model_id="mood", version="1", kind="emotion")]
        ),
        policy=FeaturePolicy(advanced=("kv_cache",)),
    )
    report = SimulatedGpus("2xL4", seed="m").read(0)
    taken = take(report, sources, simulated=True)
    assert taken.gpu is report
    assert taken.host.cpu_logical_cores >= 1
    assert [disk.path for disk in taken.host.cache_disks] == [str(tmp_path)]
    assert [model.model_id for model in taken.models] == ["mood"]
    assert taken.features_supported["emotion_detection"] is True
    assert taken.advanced_features == ("kv_cache",)
    assert taken.simulated is True


def test_what_could_not_be_searched_for_models_is_in_the_document(tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("no folder")
    catalogue = Catalogue([HubCache([tmp_path / "hub"])])
    document = to_document(take(GpuReport(outcome=Outcome.OK), Sources(catalogue=catalogue)))
    assert document["models_unsearched"] == {str(tmp_path / "hub"): "it is not a folder"}
    assert document["models_complete"] is True


def test_a_search_that_ran_out_of_its_time_says_so(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"models--{name}").mkdir()
    sources = Sources(catalogue=Catalogue([HubCache([tmp_path])]), scan_budget_seconds=0)
    assert take(GpuReport(outcome=Outcome.OK), sources).models_complete is False
    assert take(GpuReport(outcome=Outcome.OK), sources).models_complete is False


def test_what_it_took_counts_the_gpus_reading_too() -> None:
    ticks = iter((5.0, 5.25))
    report = GpuReport(outcome=Outcome.OK, gpus=(GOOD,), took_ms=100)
    assert take(report, Sources(), monotonic=lambda: next(ticks)).took_ms == 350


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (inventory(Outcome.OK, GOOD), 0),
        (inventory(Outcome.OK, LOST, GOOD), 0),
        (inventory(Outcome.NO_DRIVER), 2),
        (inventory(Outcome.OK), 2),
        (inventory(Outcome.DRIVER_BROKEN), 3),
        (inventory(Outcome.DRIVER_BROKEN, GOOD), 3),
        (inventory(Outcome.OK, LOST), 3),
        (inventory(Outcome.OK, Gpu(uuid="GPU-3", name="?", memory_mb=None)), 3),
    ],
)
def test_r01_only_a_machine_that_could_register_exits_with_zero(found: Inventory, code: int) -> None:
    assert exit_code(found) == code


def test_r01_a_gpu_serves_when_it_is_healthy_and_its_memory_is_known() -> None:
    blind = Gpu(uuid="GPU-3", name="?", memory_mb=None)
    assert able_to_serve(GpuReport(outcome=Outcome.OK, gpus=(GOOD, LOST, blind))) == (GOOD,)


def test_the_document_has_the_keys_of_its_schema_in_their_order() -> None:
    document = to_document(take(SimulatedGpus("L4", seed="m").read(0), Sources(), simulated=True))
    assert list(document) == [
        "schema",
        "outcome",
        "detail",
        "could_register",
        "simulated",
        "host",
        "gpus",
        "models",
        "models_complete",
        "models_unsearched",
        "features_supported",
        "advanced_features",
        "driver_version",
        "cuda_version",
        "took_ms",
    ]
    assert (document["schema"], document["outcome"], document["simulated"]) == (SCHEMA, "ok", True)


def test_the_document_is_strict_json_with_plain_words_and_null_for_unknown() -> None:
    reason = HealthReason(code="xid_79", detail="fell off the bus", action="reboot")
    gpu = Gpu(uuid="GPU-1", name="n", health=Health.LOST, reasons=(reason,), unknowns={"power_w": "lost"})
    text = json.dumps(to_document(inventory(Outcome.OK, gpu)), allow_nan=False)
    (written,) = json.loads(text)["gpus"]
    assert list(written)[:5] == ["index", "uuid", "name", "memory_mb", "health"]
    assert (written["health"], written["memory_kind"], written["power_w"]) == ("lost", "unknown", None)
    assert written["reasons"] == [
        {"code": "xid_79", "detail": "fell off the bus", "action": "reboot", "since": None}
    ]
    assert written["unknowns"] == {"power_w": "lost"}


def test_loading_it_loads_nothing_heavy() -> None:
    program = (
        "import sys, gpu_agent.probe.snapshot; print(*{'pydantic', 'asyncio', 'pynvml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
