"""When the agent runs its checks, on which GPUs, and what it then reports."""

import asyncio
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from gpu_agent.node.checks import Checks
from gpu_agent.probe.checks import process
from gpu_agent.probe.checks.judgement import Expected
from gpu_agent.probe.checks.process import Unfinished
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.wire.declaration import CHECKS_ROOM_BYTES
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Health, HealthReason, Outcome
from gpu_agent.wire.messages import NodeCheck
from tests.cuda_fake.control import FakeCuda
from tests.waiting import patience

BUSY = (GpuProcess(pid=4711),)


def gpu(number: int, **parts: object) -> Gpu:
    known: dict[str, object] = {
        "name": "NVIDIA H100",
        "index": number,
        "memory_mb": 81920,
        "processes": (),
        "recovery_action": "none",
    }
    return Gpu(uuid=f"GPU-{number}", **{**known, **parts})  # type: ignore[arg-type]  # fields of Gpu


def report(*gpus: Gpu) -> GpuReport:
    return GpuReport(outcome=Outcome.OK, gpus=gpus)


@dataclass(slots=True)
class Machine:
    """Checks that run, over a fake libcuda; what the agent was told, and the jobs in flight."""

    checks: Checks
    cuda: FakeCuda
    reported: list[tuple[NodeCheck, ...]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    running: asyncio.Task[None] | None = None

    def result(self, name: str, scope: str = "node") -> bool | None:
        return next((one.ok for one in self.checks.results if (one.name, one.scope) == (name, scope)), None)

    def why(self, name: str, scope: str = "node") -> str:
        return next((one.detail for one in self.checks.states if (one.name, one.scope) == (name, scope)), "")

    def waits(self) -> dict[str, str]:
        """Return why checks that have a result were not run again."""
        return {one.name: one.not_repeated for one in self.checks.states if one.not_repeated is not None}

    async def check_again(self) -> None:
        """Request all checks, and wait for the hook, which is the last of them."""
        before = [one for one in self.checks.states if one.name == "hook"]
        self.checks.request()
        await self.until(lambda: [one for one in self.checks.states if one.name == "hook"] != before)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(patience(20)):
            while not true():
                assert self.running is None or not self.running.done()
                await asyncio.sleep(0.01)


@asynccontextmanager
async def checking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **expected: object
) -> AsyncIterator[Machine]:
    cuda = FakeCuda(tmp_path)
    for name, value in cuda.environ().items():
        monkeypatch.setenv(name, value)
    made: list[Machine] = []

    async def changed() -> None:
        made[0].reported.append(made[0].checks.results)

    checks = Checks(
        Expected(**expected),  # type: ignore[arg-type]  # its fields
        sys_dir=tmp_path / "sys",
        simulated=False,
        jobs_in_flight=lambda: len(made[0].jobs),
        changed=changed,
    )
    made.append(Machine(checks, cuda))
    async with Tasks() as tasks:
        made[0].running = tasks.start("checks", checks.run())
        yield made[0]
        tasks.end()
    made[0].running = None


async def test_the_first_reading_is_checked_and_memory_is_copied_on_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, gpu_count=2, gpu_model="h100") as machine:
        assert machine.checks.results == ()
        machine.checks.observe(report(gpu(0), gpu(1)))
        assert machine.result("gpu_count")
        await machine.until(lambda: machine.result("gpu_model", "GPU-1"))
        assert machine.result("recovery_action", "GPU-0")
        assert machine.result("memory_bandwidth", "GPU-0") is None
        assert "runs on request" in machine.why("memory_bandwidth", "GPU-0")
        machine.checks.request()
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-1"))
        assert machine.result("memory_bandwidth", "GPU-0")
        assert machine.reported[-1] == machine.checks.results


async def test_the_results_of_all_gpus_are_reported_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, min_bandwidth_gb_s=0.001) as machine:
        machine.checks.observe(report(gpu(0), gpu(1), gpu(2)))
        await machine.until(lambda: machine.reported)
        copied = {one.scope for one in machine.reported[0] if one.name == "memory_bandwidth"}
        assert copied == {"GPU-0", "GPU-1", "GPU-2"}


async def test_a_gpu_in_use_is_left_alone_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, min_bandwidth_gb_s=0.001) as machine:
        machine.cuda.state("error cuInit GPU-0 999")
        machine.checks.observe(report(gpu(0, processes=BUSY), gpu(1)))
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-1"))
        assert {one.scope for one in machine.checks.results} == {"GPU-1"}
        assert machine.why("memory_bandwidth", "GPU-0") == "waits: 1 process uses it"
        machine.checks.observe(report(gpu(0), gpu(1)))
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-0") is False)


async def test_while_a_job_is_in_flight_no_gpu_is_checked_and_no_hook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    async with checking(tmp_path, monkeypatch, hook=("touch", str(ran)), gpu_count=1) as machine:
        machine.jobs.append("job-1")
        machine.checks.observe(report(gpu(0)))
        await machine.until(lambda: machine.why("hook"))
        assert {one.name for one in machine.checks.results} == {"gpu_count"}
        assert machine.why("hook") == "waits: 1 job is in flight on this machine"
        assert not ran.exists()
        machine.jobs.clear()
        machine.checks.observe(report(gpu(0)))
        await machine.until(lambda: machine.result("hook"))
        assert ran.exists()
        assert machine.result("recovery_action", "GPU-0")


async def test_a_hook_that_touches_no_gpu_may_run_beside_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, hook=("true",), hook_while_in_use=True) as machine:
        machine.checks.observe(report(gpu(0, processes=BUSY)))
        await machine.until(lambda: machine.result("hook"))


@pytest.mark.parametrize("health", [Health.LOST, Health.DEGRADED])
async def test_a_gpu_whose_fault_has_cleared_has_failed_until_it_has_passed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, health: Health
) -> None:
    fault = (HealthReason(code="xid_48", detail="a double bit error"),)
    async with checking(tmp_path, monkeypatch, min_bandwidth_gb_s=0.001) as machine:
        machine.checks.observe(report(gpu(0), gpu(1)))
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-0"))
        machine.checks.observe(report(gpu(0, health=health, reasons=fault), gpu(1)))
        assert machine.result("memory_bandwidth", "GPU-0")
        machine.cuda.state("delay cuInit * 300")
        machine.checks.observe(report(gpu(0), gpu(1)))
        assert machine.result("memory_bandwidth", "GPU-0") is False
        assert "to be repeated" in machine.why("memory_bandwidth", "GPU-0")
        assert machine.result("memory_bandwidth", "GPU-1")
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-0"))


async def test_a_check_that_passes_is_logged_at_info_only_after_it_had_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    fault = (HealthReason(code="xid_48", detail="a double bit error"),)
    async with checking(tmp_path, monkeypatch, min_bandwidth_gb_s=0.001) as machine:
        machine.checks.observe(report(gpu(0), gpu(1)))
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-1"))
        assert "check_passed" not in caplog.messages
        machine.checks.observe(report(gpu(0, health=Health.DEGRADED, reasons=fault), gpu(1)))
        machine.checks.observe(report(gpu(0), gpu(1)))
        await machine.until(lambda: "check_passed" in caplog.messages)


async def test_what_a_lost_gpu_does_not_say_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = (HealthReason(code="gpu_lost", detail="no answer"),)
    async with checking(tmp_path, monkeypatch) as machine:
        machine.checks.observe(
            report(gpu(0, health=Health.LOST, reasons=fault, recovery_action=None), gpu(1))
        )
        await machine.until(lambda: machine.result("pcie_link", "GPU-0") is False)
        assert machine.result("recovery_action", "GPU-0") is None
        assert machine.why("recovery_action", "GPU-0") == "the GPU is lost"
        assert machine.result("recovery_action", "GPU-1")


async def test_a_gpu_in_use_keeps_its_results_when_its_fault_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = (HealthReason(code="hw_thermal_slowdown", detail="hot"),)
    async with checking(tmp_path, monkeypatch, min_bandwidth_gb_s=0.001) as machine:
        machine.checks.observe(report(gpu(0)))
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-0"))
        machine.checks.observe(report(gpu(0, processes=BUSY, health=Health.DEGRADED, reasons=fault)))
        machine.checks.observe(report(gpu(0, processes=BUSY)))
        assert machine.result("memory_bandwidth", "GPU-0")


async def test_a_gpu_whose_library_crashes_fails_and_the_others_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, min_bandwidth_gb_s=0.001) as machine:
        machine.cuda.state("crash cuInit GPU-1")
        machine.checks.observe(report(gpu(0), gpu(1), gpu(2)))
        await machine.until(lambda: machine.reported)
        found = {n: machine.result("memory_bandwidth", f"GPU-{n}") for n in range(3)}
        assert found == {0: True, 1: False, 2: True}


async def test_a_request_during_a_run_is_followed_by_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    script = tmp_path / "hook"
    script.write_text(f"#!/bin/sh\necho run >> {count}\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.02; done\n")
    script.chmod(0o755)
    async with checking(tmp_path, monkeypatch, hook=(str(script),)) as machine:
        machine.checks.observe(report(gpu(0)))
        await machine.until(count.exists)
        machine.checks.request()
        (tmp_path / "go").touch()
        await machine.until(lambda: count.read_text().count("run") == 2)
        await machine.until(lambda: machine.result("hook"))


async def test_the_end_of_the_agent_waits_for_no_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    script = tmp_path / "hook"
    script.write_text(f"#!/bin/sh\ntouch {started}\nexec sleep 600\n")
    script.chmod(0o755)
    async with asyncio.timeout(patience(10)), checking(tmp_path, monkeypatch, hook=(str(script),)) as machine:
        machine.checks.observe(report(gpu(0)))
        await machine.until(started.exists)
    processes = machine.checks._processes
    await machine.until(lambda: processes._left_behind is not None and processes.left_behind_pid is None)


async def test_other_expectations_are_checked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, gpu_count=2) as machine:
        machine.checks.observe(report(gpu(0)))
        await machine.until(lambda: machine.result("gpu_count") is False)
        machine.checks.apply(Expected(gpu_count=1))
        await machine.until(lambda: machine.result("gpu_count"))


async def test_what_is_reported_fits_a_heartbeat_and_failed_checks_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, gpu_model="h100") as machine:
        many = [replace(gpu(number), uuid=f"GPU-{number}-{'x' * 200}") for number in range(256)]
        many[-1] = replace(many[-1], name="NVIDIA L4")
        monkeypatch.setattr("gpu_agent.node.checks.real_child", lambda *_, **__: _no_child)
        machine.checks.observe(report(*many))
        await machine.until(lambda: machine.reported)
        results = machine.checks.results
        assert sum(len(one.model_dump_json()) for one in results) <= CHECKS_ROOM_BYTES
        assert (results[0].scope, results[0].ok) == (many[-1].uuid, False)
        assert len(results) > 50


async def test_a_hook_that_is_due_while_an_earlier_one_does_not_end_runs_once_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.1)
    script, begun, go = (tmp_path / name for name in ("hook", "begun", "go"))
    waiting = f"touch {begun}; trap '' TERM; while ! [ -e {go} ]; do sleep 0.05; done"
    script.write_text(f"#!/bin/sh\n[ -e {begun} ] && exit 0\n{waiting}\n")
    script.chmod(0o755)
    async with checking(tmp_path, monkeypatch, hook=(str(script),), hook_seconds=patience(0.3)) as machine:
        machine.checks.observe(report(gpu(0)))
        await machine.until(lambda: machine.result("hook") is False)
        machine.checks.request()
        await machine.until(lambda: "was asked to end and has not" in machine.waits().get("hook", ""))
        assert machine.checks.are_due
        go.touch()
        async with asyncio.timeout(patience(20)):
            while not machine.result("hook"):
                machine.checks.observe(report(gpu(0)))  # as each reading is
                await asyncio.sleep(0.02)


async def test_a_hook_that_cannot_be_started_for_the_moment_runs_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with checking(tmp_path, monkeypatch, hook=("true",)) as machine:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # its standard streams
        try:
            machine.checks.observe(report(gpu(0, health=Health.LOST)))
            await machine.until(lambda: "Too many open files" in machine.why("hook"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        machine.checks.observe(report(gpu(0, health=Health.LOST)))
        await machine.until(lambda: machine.result("hook"))


async def test_the_gpus_are_counted_in_each_reading_whatever_the_hook_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, gpu_count=2, hook=("true",)) as machine:
        found = []
        for gpus in ([gpu(0), gpu(1)], [gpu(0, processes=BUSY)], [gpu(0), gpu(1)]):
            machine.checks.observe(report(*gpus))
            found.append(machine.why("gpu_count"))
            await machine.until(lambda: machine.result("hook"))
        assert found == ["2 GPUs, as expected", "1 GPU, expected 2", "2 GPUs, as expected"]


async def test_gpus_that_are_not_offered_are_neither_counted_nor_checked_and_keep_no_hook_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphics = gpu(1, name="Intel UHD", vendor="intel", offered=False, processes=BUSY)
    async with checking(tmp_path, monkeypatch, gpu_count=1, gpu_model="H100", hook=("true",)) as machine:
        machine.checks.observe(report(gpu(0), graphics))
        await machine.until(lambda: machine.result("hook"))
        assert machine.result("gpu_count")
        assert {one.scope for one in machine.checks.states} == {"node", "GPU-0"}


async def test_the_hook_that_waits_names_the_gpu_that_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, hook=("true",)) as machine:
        machine.checks.observe(report(gpu(0), gpu(1, processes=BUSY)))
        await machine.until(lambda: machine.why("hook"))
        assert machine.why("hook") == "waits: GPU 1 is in use: 1 process uses it"


async def test_a_check_with_a_result_that_waits_to_run_again_says_for_what_until_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch, hook=("true",), min_bandwidth_gb_s=0.001) as machine:
        machine.checks.observe(report(gpu(0)))
        await machine.until(lambda: machine.result("hook"))
        machine.checks.observe(report(gpu(0, processes=BUSY)))
        assert machine.waits() == {}
        machine.checks.request()
        await machine.until(lambda: "hook" in machine.waits())
        assert machine.waits() == {
            "memory_bandwidth": "1 process uses it",
            "hook": "GPU 0 is in use: 1 process uses it",
        }
        assert machine.result("hook")
        assert machine.result("memory_bandwidth", "GPU-0")
        machine.checks.observe(report(gpu(0)))
        await machine.until(lambda: machine.waits() == {})


async def test_a_check_that_gives_no_result_when_it_runs_again_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checking(tmp_path, monkeypatch) as machine:
        machine.checks.observe(report(gpu(0)))
        machine.checks.request()
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-0"))
        machine.checks.observe(report(gpu(0, processes=None)))
        machine.checks.request()
        await machine.until(machine.waits)
        assert machine.waits() == {"memory_bandwidth": "it is not known whether a process uses it"}
        assert machine.result("memory_bandwidth", "GPU-0")


async def test_a_gpu_that_sleeps_keeps_no_hook_waiting_is_woken_on_request_and_checked_once_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"asleep": True, "processes": None, "recovery_action": None}
    async with checking(tmp_path, monkeypatch, gpu_model="H100", hook=("true",)) as machine:
        machine.checks.observe(report(gpu(0, **parts)))
        await machine.until(lambda: machine.result("hook"))
        assert machine.result("gpu_model", "GPU-0")
        assert machine.result("memory_bandwidth", "GPU-0") is None
        await machine.check_again()
        assert machine.result("memory_bandwidth", "GPU-0")
        assert machine.why("recovery_action", "GPU-0") == "does not apply while the GPU sleeps"
        machine.checks.observe(report(gpu(0, recovery_action="recovery_reset")))
        assert machine.result("recovery_action", "GPU-0") is False
        machine.checks.observe(report(gpu(0, **parts)))
        await machine.check_again()
        assert machine.result("recovery_action", "GPU-0") is False


async def test_a_request_has_memory_copied_once_and_a_result_of_it_is_repeated_after_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = (HealthReason(code="xid_48", detail="a double bit error"),)
    async with checking(tmp_path, monkeypatch) as machine:
        machine.checks.observe(report(gpu(0)))
        await machine.until(lambda: machine.why("memory_bandwidth", "GPU-0"))
        machine.checks.request()
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-0"))
        machine.checks.observe(report(gpu(0), gpu(1)))
        await machine.until(lambda: "runs on request" in machine.why("memory_bandwidth", "GPU-1"))
        for health, reasons in ((Health.LOST, fault), (Health.OK, ())):
            machine.checks.observe(
                report(gpu(0, health=health, reasons=reasons), gpu(1, health=health, reasons=reasons))
            )
        assert "to be repeated" in machine.why("memory_bandwidth", "GPU-0")
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-0"))
        await machine.until(lambda: machine.result("recovery_action", "GPU-1"))
        assert machine.result("memory_bandwidth", "GPU-1") is None
        machine.checks.apply(Expected(gpu_model="H100"))
        await machine.until(lambda: machine.result("memory_bandwidth", "GPU-0"))
        assert machine.result("memory_bandwidth", "GPU-1") is None


def _no_child(*_: object) -> object:
    return Unfinished("not run here")
