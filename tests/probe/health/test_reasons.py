"""The table of reasons and what it makes of them."""

import pytest

from gpu_agent.probe.health.reasons import (
    REASONS,
    Clears,
    gpu_steps,
    health_from,
    how_to,
    meaning,
    next_step,
    reason,
)
from gpu_agent.probe.health.xids import XIDS, Action, xid_code, xid_of_code
from gpu_agent.wire.gpu_reasons import NO_NEW_JOBS, ONE_GPU_ONLY
from gpu_agent.wire.inventory import Gpu, Health


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_leads_away_from_ok_with_a_sentence_and_a_next_step(code: str) -> None:
    made = reason(code, since=5.0)
    assert REASONS[code].health is not Health.OK
    assert made.detail
    assert made.action
    assert made.since == 5.0


def test_no_reason_is_ok() -> None:
    assert health_from([]) is Health.OK


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        (["row_remap_pending"], Health.DEGRADED),
        (["row_remap_pending", "nvml_hung"], Health.UNKNOWN),
        (["gpu_lost", "nvml_hung", "row_remap_pending"], Health.LOST),
    ],
)
def test_the_worst_reason_decides(codes: list[str], worst: Health) -> None:
    assert health_from(reason(code) for code in codes) is worst


def test_an_unknown_health_ends_with_the_next_reading() -> None:
    unknown = [entry for entry in REASONS.values() if entry.health is Health.UNKNOWN]
    assert {entry.clears for entry in unknown} == {Clears.READING}


def test_every_event_has_a_meaning_whether_it_counts_or_not() -> None:
    assert meaning("xid_79") == REASONS["xid_79"].detail
    assert "program" in meaning("xid_13")
    assert "catalogue" in meaning("xid_9999")
    assert meaning("ecc_uncorrected") == REASONS["ecc_uncorrected"].detail


@pytest.mark.parametrize(
    ("name", "indexes", "tool"),
    [
        ("NVIDIA L4", [1], "`nvidia-smi --gpu-reset -i 1`"),
        ("Tesla T4", [0, 3, 3], "`nvidia-smi --gpu-reset -i 0,3`"),
        ("NVIDIA L4", [None], "`nvidia-smi --gpu-reset -i INDEX`"),
        ("AMD Instinct MI300X", [1], "`amd-smi reset --gpureset`"),
    ],
)
def test_a_reset_is_said_as_what_to_type(name: str, indexes: list[int | None], tool: str) -> None:
    reset = f"drain the node, stop the agent, run {tool}, then start the agent again"
    assert next_step(["row_remap_pending"], name=name, indexes=indexes) == reset
    again = next_step(["ecc_uncorrected"], name=name, indexes=indexes)
    assert again == f"restart the programs that use the GPU; if it happens again, {reset}"


@pytest.mark.parametrize("code", REASONS)
def test_no_next_step_asks_for_a_reset_without_saying_how(code: str) -> None:
    said = how_to(REASONS[code].action, name="NVIDIA L4", indexes=(0,))
    assert "reset GPU" not in said
    assert said not in {action.value for action in Action}
    assert "{" not in said


def test_gpus_with_the_same_next_step_are_named_in_one() -> None:
    gpus = [
        Gpu(index=number, uuid=f"GPU-{number}", name="NVIDIA L4", reasons=(reason(code),))
        for number, code in ((0, "xid_48"), (1, "xid_79"), (2, "row_remap_pending"))
    ]
    reset = "drain the node, stop the agent, run `nvidia-smi --gpu-reset -i 0,2`, then start the agent again"
    assert gpu_steps(gpus) == (reset, "drain the node, then reboot it")
    lost = Gpu(index=3, uuid="GPU-3", name="NVIDIA L4", reasons=(reason("gpu_lost"),))
    reboot = "drain the node, then reboot it; if the GPU stays lost, reseat it"
    assert gpu_steps([*gpus, lost]) == (reset, reboot)


# The table of Xids against what the specification asks of it.


RESET, REBOOT = Action.RESET_GPU, Action.REBOOT
PAGE: dict[tuple[Health | None, Action], set[int]] = {
    (Health.LOST, REBOOT): {79},
    (Health.LOST, RESET): {95, 119, 120, 140, 143, 158},
    (Health.DEGRADED, RESET): {
        *(46, 48, 62, 64, 74, 109, 110, 136, 155, 156, 167, 169),
        *range(144, 151),
    },
    (Health.DEGRADED, Action.RESTART_APP): {94},
    (Health.DEGRADED, Action.NONE): {92},
    (Health.DEGRADED, Action.CHECK_MACHINE): {54},
    (Health.DEGRADED, REBOOT): {151},
    (None, Action.NONE): {45, 63, 154},
    (None, Action.RESTART_APP): {8, 11, 13, 25, 31, 32, 39, 40, 41, 43, 60, 68, 69, 70, 71, 80},
}
COUNTING = sorted(number for (health, _), numbers in PAGE.items() if health for number in numbers)


def test_each_xid_leads_to_the_health_and_the_action_that_the_page_states() -> None:
    found: dict[tuple[Health | None, Action], set[int]] = {}
    for number, xid in XIDS.items():
        found.setdefault((xid.health, xid.action), set()).add(number)
    assert found == PAGE


@pytest.mark.parametrize("number", COUNTING)
def test_an_xid_that_counts_names_itself(number: int) -> None:
    assert f"Xid {number}" in XIDS[number].detail


@pytest.mark.parametrize("number", [144, 145, 146, 147, 148, 149, 150, 74, 136, 155])
def test_an_xid_of_a_link_says_that_it_is_nvlink(number: int) -> None:
    assert "NVLink" in XIDS[number].detail


def test_a_lost_gpu_is_never_left_without_something_to_do() -> None:
    mild = {xid.action for xid in XIDS.values() if xid.health is Health.LOST}
    assert mild <= {Action.RESET_GPU, Action.REBOOT}


def test_a_code_leads_back_to_its_row() -> None:
    assert xid_code(79) == "xid_79"
    assert xid_of_code(xid_code(79)) is XIDS[79]
    assert xid_of_code("xid_9999") is None
    assert xid_of_code("ecc_uncorrected") is None


# What reasons mean for jobs, as the registry knows it.


def test_a_degraded_gpu_that_waits_for_a_reset_or_a_reboot_gets_no_new_job() -> None:
    waiting = {
        code
        for code, entry in REASONS.items()
        if entry.health is Health.DEGRADED and entry.action in (RESET.value, REBOOT.value)
    }
    assert waiting | {"recovery_drain_and_reset"} == NO_NEW_JOBS


def test_a_gpu_with_a_fault_of_the_fabric_serves_jobs_of_one_gpu_and_says_so() -> None:
    fabric = {code for code in REASONS if code.startswith("fabric_")}
    assert fabric | {"recovery_drain_p2p"} == ONE_GPU_ONLY
    assert all(REASONS[code].health is Health.DEGRADED for code in ONE_GPU_ONLY)
    assert all("jobs of one GPU" in REASONS[code].detail for code in ONE_GPU_ONLY)
