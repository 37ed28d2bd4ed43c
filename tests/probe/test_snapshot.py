import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.models.all_sources import SOURCES
from gpu_agent.probe.models.declared import ModelDeclaration
from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.probe.models.scanner import ModelScanner
from gpu_agent.probe.simulation.gpus import SimulatedGpus
from gpu_agent.probe.snapshot import (
    SCHEMA,
    FeaturePolicy,
    ProbeOptions,
    Sources,
    able_to_serve,
    advanced_features,
    document_fields,
    exit_code,
    open_sources,
    supported_features,
    take,
    to_document,
)
from gpu_agent.wire.inventory import (
    BASE_FEATURES,
    Gpu,
    GpuReport,
    Health,
    HealthReason,
    Host,
    Inventory,
    Model,
    ModelStatus,
    Outcome,
)
from gpu_agent.wire.probe_document import ProbeDocument

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
        scanner=ModelScanner(
            [HubCache([tmp_path])], [ModelDeclaration(model_id="mood", version="1", kind="emotion")]
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
    scanner = ModelScanner([HubCache([tmp_path / "hub"])])
    document = to_document(take(GpuReport(outcome=Outcome.OK), Sources(scanner=scanner)))
    assert document["models_unsearched"] == {str(tmp_path / "hub"): "it is not a folder"}
    assert document["models_complete"] is True


def test_a_path_that_is_no_utf8_leaves_a_document_that_programs_can_read(tmp_path: Path) -> None:
    paths = [Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/caf\xe9", b"/d\xe9j\xe0")]
    paths[0].mkdir()
    paths[1].write_text("no folder")
    scanner = ModelScanner([HubCache([path]) for path in paths])
    taken = take(GpuReport(outcome=Outcome.OK), Sources(scanner=scanner))
    document = ProbeDocument.model_validate(document_fields(taken))
    assert document.models_unsearched == {f"{tmp_path}/d?j?": "it is not a folder"}
    assert [disk.path for disk in document.host.cache_disks] == [f"{tmp_path}/caf?"]
    json.dumps(to_document(taken), ensure_ascii=False).encode()


def test_a_scan_that_ran_out_of_its_budget_is_incomplete(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"models--{name}").mkdir()
    sources = Sources(scanner=ModelScanner([HubCache([tmp_path])]), scan_budget_seconds=0)
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


def test_without_options_the_default_hub_paths_are_searched(tmp_path: Path) -> None:
    sources = open_sources(ProbeOptions(), environ={"HF_HUB_CACHE": str(tmp_path / "hub")}, home=tmp_path)
    assert tmp_path / "hub" in sources.scanner.paths


def test_folders_and_declarations_reach_the_scanner(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"model_id": "mine/asr", "version": "3", "kind": "asr"}))
    options = ProbeOptions(
        model_paths={"huggingface": (), "directory": (tmp_path / "models",)},
        declared_models=(ModelDeclaration(model_id="declared/llm", version="1", kind="llm"),),
    )
    found = open_sources(options, environ={}, home=tmp_path).scanner.scan().models
    assert {model.model_id for model in found} == {"mine/asr", "declared/llm"}


EMOTION = Model(model_id="iic/emotion2vec", version="1", kind="emotion")


def test_without_configuration_or_models_every_base_feature_is_false() -> None:
    assert supported_features(FeaturePolicy(), []) == dict.fromkeys(BASE_FEATURES, False)


def test_an_enabled_ready_emotion_model_proves_emotion_detection() -> None:
    assert supported_features(FeaturePolicy(), [EMOTION])["emotion_detection"] is True


@pytest.mark.parametrize(
    "model",
    [
        Model(model_id="m", version="1", kind="emotion", enabled=False),
        Model(model_id="m", version="1", kind="emotion", status=ModelStatus.DOWNLOADING),
        Model(model_id="m", version="1", kind="emotion", status=ModelStatus.ERROR),
        Model(model_id="emotion", version="1", kind="llm"),
    ],
)
def test_a_model_that_cannot_serve_proves_nothing(model: Model) -> None:
    assert supported_features(FeaturePolicy(), [model])["emotion_detection"] is False


def test_no_model_proves_what_the_configuration_forbids() -> None:
    policy = FeaturePolicy(stated={"emotion_detection": False})
    assert supported_features(policy, [EMOTION])["emotion_detection"] is False


def test_stated_features_are_claimed_also_those_that_the_protocol_does_not_know() -> None:
    claimed = supported_features(FeaturePolicy(stated={"lip_sync": True, "speech_rate_control": True}), [])
    assert claimed["lip_sync"] is claimed["speech_rate_control"] is True
    assert list(claimed) == [*BASE_FEATURES, "lip_sync"]


def test_a6_a_base_feature_among_the_advanced_ones_claims_nothing() -> None:
    policy = FeaturePolicy(advanced=("kv_cache", "emotion_detection", "kv_cache", "streaming_tts"))
    assert advanced_features(policy) == ("kv_cache", "streaming_tts")
    assert supported_features(policy, [])["emotion_detection"] is False


def test_roots_come_from_what_is_handed_in_and_each_once() -> None:
    home = Path("/home/ada")
    usual = home / ".cache" / "huggingface" / "hub"
    assert SOURCES["huggingface"].default_paths({}, home) == (usual,)
    assert SOURCES["huggingface"].default_paths({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, home) == (
        Path("/a"),
        Path("/b/hub"),
        usual,
    )
    assert SOURCES["huggingface"].default_paths({"HF_HOME": str(home / ".cache" / "huggingface")}, home) == (
        usual,
    )
    assert SOURCES["huggingface"].default_paths({"HF_HUB_CACHE": ""}, home) == (usual,)


def test_the_environment_is_read_as_the_hubs_library_reads_it() -> None:
    home = Path("/home/ada")
    usual = home / ".cache" / "huggingface" / "hub"
    assert SOURCES["huggingface"].default_paths({"HF_HUB_CACHE": "~/a", "HF_HOME": "~/b"}, home) == (
        home / "a",
        home / "b/hub",
        usual,
    )
    assert SOURCES["huggingface"].default_paths({"XDG_CACHE_HOME": "/c"}, home) == (
        Path("/c/huggingface/hub"),
        usual,
    )
    assert SOURCES["huggingface"].default_paths({"HF_HOME": "~/b"}, None) == (Path("~/b/hub"),)


def test_roots_are_the_named_one_the_users_and_the_services() -> None:
    service = Path("/usr/share/ollama/.ollama/models")
    assert SOURCES["ollama"].default_paths({}, None) == (service,)
    assert SOURCES["ollama"].default_paths({"OLLAMA_MODELS": "/m"}, Path("/home/ada")) == (
        Path("/m"),
        Path("/home/ada/.ollama/models"),
        service,
    )
    assert SOURCES["ollama"].default_paths({"OLLAMA_MODELS": ""}, None) == (service,)
