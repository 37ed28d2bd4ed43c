from dataclasses import replace

from gpu_agent.node.faults import Faults
from gpu_agent.probe.reasons import REASONS, health_from, reason
from gpu_agent.session.events import FaultFound
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome
from gpu_agent.wire.messages import NodeError


def gpu(index: int, *codes: str, parent_uuid: str | None = None) -> Gpu:
    reasons = tuple(reason(code) for code in codes)
    return Gpu(
        uuid=f"GPU-{index}",
        name="H100",
        index=index,
        parent_uuid=parent_uuid,
        health=health_from(reasons),
        reasons=reasons,
    )


def report(*gpus: Gpu, outcome: Outcome = Outcome.OK) -> GpuReport:
    return GpuReport(outcome=outcome, gpus=gpus)


def test_a_machine_that_is_well_has_no_faults() -> None:
    assert Faults().found_in(report(gpu(0), gpu(1, "row_remap_pending"))) == ()


def test_a_lost_gpu_is_one_fault_that_says_which_why_and_what_to_do() -> None:
    faults = Faults()
    (fault,) = faults.found_in(report(gpu(0), gpu(1, "gpu_lost", "xid_79")))
    assert fault.code == "GPU_LOST"
    for words in ("GPU 1 (GPU-1)", "fallen off the bus", "Next: reboot"):
        assert words in fault.message
    assert faults.found_in(report(gpu(0), gpu(1, "xid_79"))) == ()


def test_a_gpu_that_is_lost_again_is_a_fault_again() -> None:
    faults = Faults()
    faults.found_in(report(gpu(0, "gpu_lost")))
    assert faults.found_in(report(gpu(0))) == ()
    assert len(faults.found_in(report(gpu(0, "gpu_lost")))) == 1


def test_gpus_lost_together_are_one_fault_of_bounded_length() -> None:
    (fault,) = Faults().found_in(report(*[gpu(index, "gpu_lost") for index in range(64)]))
    assert "GPU 3 (GPU-3)" in fault.message
    assert "And 60 more." in fault.message
    assert len(fault.message) < 1024


def test_a_fault_fits_into_its_message_however_much_is_wrong_and_however_long_the_driver_speaks() -> None:
    everything = [gpu(index, *REASONS) for index in range(4)]
    (lost, _) = Faults().found_in(report(*everything))
    broken = reason("driver_broken", detail="word " * 2000)
    (unread,) = Faults().found_in(report(replace(gpu(0), reasons=(broken,)), outcome=Outcome.DRIVER_BROKEN))
    for fault in (lost, unread):
        assert NodeError(code=fault.code, message=fault.message).message.endswith("…")


def test_the_slices_of_a_lost_gpu_are_no_faults_of_their_own() -> None:
    (fault,) = Faults().found_in(report(gpu(0, "gpu_lost"), gpu(9, "gpu_lost", parent_uuid="GPU-0")))
    assert "GPU-9" not in fault.message


def test_what_keeps_all_gpus_from_being_read_is_one_fault_while_it_lasts() -> None:
    faults = Faults()
    hung = report(gpu(0, "nvml_hung"), gpu(1, "nvml_hung"), outcome=Outcome.DRIVER_BROKEN)
    assert faults.found_in(hung) == (FaultFound("NVML_HUNG", reason("nvml_hung").detail),)
    assert faults.found_in(hung) == ()
    assert faults.found_in(report(gpu(0), gpu(1))) == ()
    assert len(faults.found_in(hung)) == 1
