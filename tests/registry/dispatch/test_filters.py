"""The hard filters of §5, each proven alone: its reason, what it needs and what the node has."""

import pytest

from gpu_agent.registry.dispatch import gpu_filters
from gpu_agent.registry.dispatch.declared_filters import model_state
from gpu_agent.registry.dispatch.exclusions import Excluded
from gpu_agent.registry.dispatch.filters import FILTERS, first_exclusion, unschedulable_reason
from gpu_agent.registry.job import Demand, GpuDemand, Job, Sharing, gpu_demand
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import listed
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason, NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeRegister
from tests.registry.dispatch.nodes import HARDWARE, candidate_of, change, gpu, gpus, job, model, node, usage


def excluded_by(record: NodeRecord, wanted: Job) -> Excluded | None:
    return first_exclusion(candidate_of(record), Demand.of(wanted))


def account(record: NodeRecord, wanted: Job) -> tuple[ExclusionReason, str, str]:
    found = excluded_by(record, wanted)
    assert found is not None
    assert found.node_id == record.node_id
    return found.reason, found.need, found.have


def test_each_reason_has_a_filter_in_the_order_of_the_protocol() -> None:
    assert list(dict.fromkeys(one.reason for one in FILTERS)) == list(ExclusionReason)


def test_a_ready_idle_node_takes_a_job_without_demands() -> None:
    assert excluded_by(node(), job()) is None


@pytest.mark.parametrize("status", [status for status in NodeStatus if status is not NodeStatus.READY])
def test_d01_a_node_that_is_not_ready_takes_no_job(status: NodeStatus) -> None:
    record = node(status=status, reason_code=ReasonCode.DRAIN_REQUESTED)
    assert account(record, job()) == (
        ExclusionReason.STATUS_NOT_READY,
        "a ready node",
        f"status {status} (drain_requested)",
    )


def test_d02_a_node_whose_connection_is_gone_takes_no_job() -> None:
    assert account(node(connection=None), job()) == (
        ExclusionReason.DISCONNECTED,
        "a connected node",
        "no connection",
    )


@pytest.mark.parametrize(("why", "shown"), [("new driver", "new driver"), ("", "no reason given")])
def test_d02_a_cordoned_node_takes_no_job(why: str, shown: str) -> None:
    reason, _, have = account(node(cordoned=why), job())
    assert (reason, have) == (ExclusionReason.CORDONED, f"a cordon: {shown}")


def test_d02_a_node_outside_the_allowed_ones_takes_no_job() -> None:
    wanted = job(allowed_nodes=("node-X", "node-B"))
    assert account(node(), wanted) == (ExclusionReason.NOT_ALLOWED, "one of node-B, node-X", "node-A")
    assert excluded_by(node("node-B"), wanted) is None


def test_d02_an_excluded_node_takes_no_job_even_where_it_is_allowed() -> None:
    wanted = job(allowed_nodes=("node-A",), excluded_nodes=("node-A", "node-X"))
    found = excluded_by(node(), wanted)
    assert found is not None
    assert found.reason is ExclusionReason.NOT_ALLOWED
    assert excluded_by(node("node-B"), job(excluded_nodes=("node-A",))) is None


@pytest.mark.parametrize(
    ("capability", "reason"),
    [("8.0", ExclusionReason.GPU_UNAVAILABLE), ("8.9", None), (None, ExclusionReason.GPU_UNAVAILABLE)],
)
def test_d03_a_gpu_of_a_lower_or_unknown_compute_capability_is_not_enough(
    capability: str | None, reason: ExclusionReason | None
) -> None:
    record = node(gpus=gpus(gpu("a", compute_capability=capability)))
    found = excluded_by(record, job(min_compute_capability="8.6"))
    assert (None if found is None else found.reason) is reason


@pytest.mark.parametrize(
    ("name", "reason"), [("a100", ExclusionReason.GPU_UNAVAILABLE), ("a100 mig", None), (None, None)]
)
def test_d03_a_name_without_mig_in_it_matches_no_mig_device(
    name: str | None, reason: ExclusionReason | None
) -> None:
    parent = gpu("P", name="NVIDIA A100", is_parent=True)
    device = gpu("M", name="NVIDIA A100 MIG 3g.20gb", parent_uuid="P")
    found = excluded_by(node(gpus=gpus(parent, device)), job(gpu_count=1, gpu_name=name))
    assert (None if found is None else found.reason) is reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mi300x", ExclusionReason.GPU_UNAVAILABLE), ("mi300x oam partition", None), ("partition cpx", None)],
)
def test_d03_a_name_without_partition_in_it_matches_no_part_of_an_amd_gpu(
    name: str, reason: ExclusionReason | None
) -> None:
    parent = gpu("P", name="AMD Instinct MI300X OAM", is_parent=True)
    part = gpu("Q", name="AMD Instinct MI300X OAM partition CPX NPS4", parent_uuid="P")
    found = excluded_by(node(gpus=gpus(parent, part)), job(gpu_count=1, gpu_name=name))
    assert (None if found is None else found.reason) is reason


@pytest.mark.parametrize("zone", ["a", "b"])
def test_d04_a_label_may_have_one_of_several_values(zone: str) -> None:
    assert excluded_by(node(labels={"zone": zone}), job(labels={"zone": ("a", "b")})) is None
    assert account(node(labels={"zone": zone}), job(labels={"zone": ("c", "d")})) == (
        ExclusionReason.LABEL_MISMATCH,
        "label zone one of c, d",
        f"zone={zone}",
    )


def test_d02_a_private_node_takes_no_public_job() -> None:
    assert account(node(), job(public=True)) == (
        ExclusionReason.NOT_IN_PUBLIC_POOL,
        "a node of the public pool",
        "private and assigned jobs only",
    )
    assert excluded_by(node(accept_public_jobs=True), job(public=True)) is None


def test_a_private_job_runs_on_any_node_that_it_is_allowed_on() -> None:
    assert excluded_by(node(accept_public_jobs=True), job()) is None
    assert excluded_by(node(accept_public_jobs=False), job()) is None


def test_d03_a_node_with_too_few_usable_gpus_of_that_name_takes_no_job() -> None:
    record = node(
        gpus=gpus(
            gpu("a", name="NVIDIA H100"),
            gpu("b", name="NVIDIA H100", health="lost"),
            gpu("c", name="NVIDIA L4"),
        )
    )
    assert excluded_by(record, job(gpu_name="h100")) is None
    assert excluded_by(record, job(gpu_count=2)) is None
    assert account(record, job(gpu_name="h100", gpu_count=2)) == (
        ExclusionReason.GPU_UNAVAILABLE,
        "2 usable GPUs named h100",
        "1 (NVIDIA H100: 1 ok and 1 lost, NVIDIA L4: 1 ok)",
    )


@pytest.mark.parametrize(
    ("installed", "state", "have"),
    [
        ((), None, "not installed"),
        ((model("nmt", enabled=False),), None, "disabled"),
        ((model("nmt", status="downloading"),), None, "downloading"),
        ((model("nmt"),), {"nmt": "error"}, "error"),
    ],
)
def test_d04_a_node_without_the_model_ready_takes_no_job(
    installed: tuple[object, ...], state: dict[str, str] | None, have: str
) -> None:
    record = node(installed_models=installed, capability_state=state, ready_models=frozenset({"asr"}))
    wanted = job(required_models=("asr", "nmt"))
    assert account(record, wanted) == (
        ExclusionReason.MODEL_NOT_AVAILABLE,
        "model nmt",
        f"no ready version of it: {have}",
    )


def test_d04_a_node_without_the_feature_takes_no_job() -> None:
    record = node(features=frozenset({"kv_cache", "batched_inference"}))
    assert account(record, job(required_features=("kv_cache", "speaker_identification"))) == (
        ExclusionReason.FEATURE_NOT_SUPPORTED,
        "feature speaker_identification",
        "batched_inference, kv_cache",
    )


def test_a6_advanced_features_never_decide_base_ability() -> None:
    boasting = NodeRegister(version="1", hardware=HARDWARE, advanced_features=("emotion_detection",))
    found = excluded_by(node(registration=boasting), job(required_features=("emotion_detection",)))
    assert found is not None
    assert found.reason is ExclusionReason.FEATURE_NOT_SUPPORTED


@pytest.mark.parametrize(("labels", "have"), [({"zone": "b"}, "zone=b"), ({}, "no zone")])
def test_d04_a_node_with_another_label_takes_no_job(labels: dict[str, str], have: str) -> None:
    wanted = job(labels={"zone": "a"})
    assert account(node(labels=labels), wanted) == (ExclusionReason.LABEL_MISMATCH, "label zone=a", have)


def test_d05_a_full_node_takes_no_job() -> None:
    assert account(node(count=4), job()) == (
        ExclusionReason.CAPACITY_EXCEEDED,
        "a free slot",
        "4 of 4 taken",
    )


def test_d05_a_node_without_enough_free_gpu_memory_takes_no_job() -> None:
    record = node(
        gpus=gpus(gpu("a", used_mb=20_000), gpu("b", used_mb=30_000), gpu("c", memory_mb=None), gpu("d"))
    )
    assert excluded_by(record, job(min_gpu_memory_mb=24_576)) is None
    assert account(record, job(gpu_sharing="memory", min_gpu_memory_mb=8_000, gpu_count=2)) == (
        ExclusionReason.CAPACITY_EXCEEDED,
        "8000 MiB free on each of 2 GPUs",
        "4576 MiB at most on each of 2",
    )


@pytest.mark.parametrize(
    ("figures", "need", "have"),
    [
        ({"cpu": 90.5}, "CPU use of at most 90 %", "90.5 %"),
        ({"gpu_percent": 97}, "GPU use of at most 90 %", "97 %"),
        ({"memory": 99}, "memory use of at most 90 %", "99 %"),
    ],
)
def test_d05_a_node_above_a_resource_limit_takes_no_job(
    figures: dict[str, float], need: str, have: str
) -> None:
    assert account(node(usage=usage(**figures)), job()) == (
        ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED,
        need,
        have,
    )


def test_unknown_figures_and_figures_at_their_limit_pass() -> None:
    assert excluded_by(node(usage=usage(cpu=90, gpu_percent=None, memory=90)), job()) is None
    assert excluded_by(node(usage=None), job()) is None


def test_the_first_filter_that_fails_is_the_reason() -> None:
    record = node(connection=None, cordoned="x", count=9)
    found = excluded_by(record, job(required_models=("asr",)))
    assert found is not None
    assert found.reason is ExclusionReason.DISCONNECTED


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (node(), None),
        (node(status=NodeStatus.DRAINING), ExclusionReason.STATUS_NOT_READY),
        (node(connection=None), ExclusionReason.DISCONNECTED),
        (node(cordoned=""), ExclusionReason.CORDONED),
        (node(count=4), ExclusionReason.CAPACITY_EXCEEDED),
        (node(usage=usage(cpu=100)), ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED),
    ],
)
def test_what_makes_a_node_unschedulable_is_what_the_filters_say(
    record: NodeRecord, reason: ExclusionReason | None
) -> None:
    assert unschedulable_reason(record, Thresholds()) is reason
    found = excluded_by(record, job())
    assert (None if found is None else found.reason) is reason


def test_a_long_list_is_cut_short_for_the_reader() -> None:
    _, need, _ = account(node(), job(allowed_nodes=tuple(f"node-{n:02}" for n in range(20))))
    assert need.endswith("node-07 and 12 more")


LONG = "x" * 1000


@pytest.mark.parametrize(
    "wanted",
    [
        job(gpu_count=99),
        job(gpu_count=40, min_gpu_memory_mb=90_000),
        job(required_models=("asr",)),
        job(required_features=("kv_cache",)),
        job(labels={"zone": "a"}),
    ],
    ids=["GPUs", "memory", "models", "features", "labels"],
)
def test_no_account_of_a_node_is_longer_than_a_sentence_whatever_it_declares(wanted: Job) -> None:
    record = node(
        gpus=gpus(*(gpu(f"GPU-{place}", name=LONG) for place in range(40))),
        installed_models=(model("asr", status=LONG),),
        features=frozenset(f"{place}{LONG}" for place in range(40)),
        labels={"zone": LONG},
    )
    _, need, have = account(record, wanted)
    assert len(need) <= 1000
    assert len(have) <= 1000


@pytest.mark.parametrize(
    ("claims", "ids", "number", "occupied"),
    [
        ((), None, 0, 0),
        (("a", "b"), None, 1, 2),
        (("a",), None, 3, 3),
        (("a", "b"), ("b", "c"), 2, 3),
        (("a",), (), 9, 1),
        ((), ("a", "b"), 0, 2),
    ],
    ids=str,
)
def test_occupied_slots_are_all_ids_that_are_claimed_or_reported_else_the_larger_number(
    claims: tuple[str, ...], ids: tuple[str, ...] | None, number: int, occupied: int
) -> None:
    record = node(
        claims=dict.fromkeys(claims),
        ids=None if ids is None else frozenset(ids),
        count=number,
        max_concurrent_jobs=occupied,
    )
    reason, _, have = account(record, job())
    assert (reason, have) == (ExclusionReason.CAPACITY_EXCEEDED, f"{occupied} of {occupied} taken")
    change(record, max_concurrent_jobs=occupied + 1)
    assert excluded_by(record, job()) is None


def test_many_names_are_a_few_in_order_and_a_count() -> None:
    assert listed(["b", "a"]) == "a, b"
    assert listed(map(str, range(10, 22))) == "10, 11, 12, 13, 14, 15, 16, 17 and 4 more"
    assert listed(["b", "a"], in_order=True) == "b, a"
    assert listed([]) == "none"


def test_gpus_that_are_alike_are_counted_so_that_none_of_many_is_left_out() -> None:
    states = [gpu(str(place), name=f"NVIDIA L{place // 12}") for place in range(16)]
    assert gpu_filters._gpus(node(gpus=gpus(*states))) == "NVIDIA L0: 12 ok, NVIDIA L1: 4 ok"


def test_gpus_are_named_with_their_health() -> None:
    parent = gpu("m", name="NVIDIA H100")
    parent.is_parent = True
    record = node(gpus=gpus(gpu("a"), gpu("b", health="lost"), parent))
    assert gpu_filters._gpus(record) == "NVIDIA L4: 1 ok and 1 lost"
    assert gpu_filters._gpus(node(gpus=gpus())) == "no GPU"


def test_of_free_memory_the_most_is_shown_and_debt_counts_as_none() -> None:
    assert gpu_filters._most_free([24_000, None, -5], 1) == "24000 MiB at most"
    assert gpu_filters._most_free([24_000, 9, -5], 2) == "9 MiB at most on each of 2"
    assert gpu_filters._most_free([-5], 1) == "0 MiB at most"
    assert gpu_filters._most_free([], 1) == "no such GPU"
    assert gpu_filters._most_free([1, None], 2) == "1 such GPUs"


@pytest.mark.parametrize(
    ("installed", "reported", "state"),
    [
        ((), None, "not_installed"),
        ((model("m", enabled=False),), None, "disabled"),
        ((model("m", status="downloading"),), None, "downloading"),
        ((model("m", status="downloading"),), {"m": "error"}, "error"),
        ((model("m", enabled=False, status="ready"), model("m", status="error")), None, "error"),
    ],
)
def test_the_state_of_a_model_is_one_word(
    installed: tuple[object, ...], reported: dict[str, str] | None, state: str
) -> None:
    assert model_state(node(installed_models=installed, capability_state=reported), "m") == state


def test_a_model_that_can_serve_is_ready_whatever_its_other_versions_are() -> None:
    record = node(installed_models=(model("m", status="error"), model("m")), ready_models=frozenset({"m"}))
    assert model_state(record, "m") == "ready"


def test_a_demand_left_out_is_no_demand() -> None:
    demand = Demand.of(job())
    assert (demand.allowed, demand.excluded, demand.labels) == (None, frozenset(), ())
    assert demand.gpus == GpuDemand(sharing=None, number=1, name="", memory_mb=0, capability=(0, 0))


def test_an_empty_list_of_allowed_nodes_allows_no_node() -> None:
    assert Demand.of(job(allowed_nodes=())).allowed == frozenset()


def test_a_gpu_name_is_compared_whatever_its_case() -> None:
    assert Demand.of(job(gpu_name="H100")).gpus.name == "h100"


@pytest.mark.parametrize(
    ("wanted", "sharing", "number"),
    [
        (job(), None, 1),
        (job(min_gpu_memory_mb=0), None, 1),
        (job(gpu_count=2), Sharing.EXCLUSIVE, 2),
        (job(gpu_count=2, min_gpu_memory_mb=9), Sharing.EXCLUSIVE, 2),
        (job(min_gpu_memory_mb=9), Sharing.MEMORY, 1),
        (job(gpu_sharing="memory", min_gpu_memory_mb=9, gpu_count=3), Sharing.MEMORY, 3),
    ],
    ids=str,
)
def test_what_a_job_states_about_gpus_decides_how_it_uses_them(
    wanted: Job, sharing: Sharing | None, number: int
) -> None:
    demand = gpu_demand(wanted)
    assert (demand.sharing, demand.number) == (sharing, number)


@pytest.mark.parametrize("demands", [{"gpu_sharing": "memory"}, {"gpu_sharing": "exclusive"}], ids=str)
def test_a_way_of_sharing_without_what_it_needs_is_a_contradiction(demands: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs"):
        job(**demands)
