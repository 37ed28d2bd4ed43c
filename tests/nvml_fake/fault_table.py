"""Every fault that a driver reports, on fake drivers of three kinds: seen when, said how, healed when.

    python -m tests.nvml_fake.fault_table [--driver datacenter|mig|old]

Each fault is laid on GPU 0 of a machine with two. The true child reads it every `POLL_SECONDS` of a clock
that is handed in, and the daemon's own tracker judges it: as on a machine in use. While nothing uses the GPUs
and all are well, events and losses are seen as soon, and other faults at the reading before the next
heartbeat. `gpu-agent probe` and `status` show the same lines about it. What `registry node show` says is the
GPU's row of its page, after a heartbeat to a registry.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.cli.agent.probe_page import trouble_lines
from gpu_agent.cli.output.text import plain_text
from gpu_agent.cli.registry.node_page import node_page
from gpu_agent.probe.health.tracker import HealthTracker
from gpu_agent.probe.nvml.client import PendingEvents
from gpu_agent.probe.nvml.report import parse_answer
from gpu_agent.registry.claim_history import ClaimHistory
from gpu_agent.registry.settings import Thresholds
from gpu_agent.server import views
from gpu_agent.server.views import GpuFacts
from gpu_agent.wire.declaration import (
    DeclarationChanges,
    HeartbeatFigures,
    Owner,
    declare,
    heartbeat,
    registration,
)
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Inventory
from tests.nvml_fake.child import ChildUnderTest, child_of
from tests.nvml_fake.control import HEALTHY_FABRIC, FakeNvml, built_library
from tests.nvml_fake.verdict import HOST
from tests.registry.harness import Registry

POLL_SECONDS = 5
REOPEN_EVERY = 60 // POLL_SECONDS
"""The daemon opens the library again so often while a GPU is lost."""
LONGEST_READINGS = 200
HEALTHY_READINGS = 12
"""Before a fault begins."""
_EPOCH = 1_800_000_000.0

Statement = tuple[object, ...]

DRIVERS = ("datacenter", "mig", "old")
OLD_LACKS = (
    *("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetFieldValues"),
    *("nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetCurrentClocksEventReasons"),
    *("nvmlDeviceGetMigMode", "nvmlEventSetWait_v2", "nvmlDeviceGetTotalEnergyConsumption"),
    *("nvmlDeviceGetRemappedRows", "nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetGpuFabricInfo"),
    "nvmlDeviceGetSramEccErrorStatus",
)
"""What a driver of the 450 series does not have yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: the reason that it must lead to, how it is laid on GPU 0, and how it is taken back."""

    code: str
    sets: tuple[Statement, ...] = ()
    events: tuple[Statement, ...] = ()
    heals: tuple[Statement, ...] = ()
    """A `("unset", ...)` takes statements back, any other replaces one; the GPU is reset besides."""
    unseen_by: frozenset[str] = frozenset()
    """Drivers that have no word for it."""
    restart: bool = False
    """Whether the agent must be started again: it no longer asks this GPU."""

    @property
    def injected(self) -> str:
        """The statements of the control file."""
        return "; ".join(" ".join(map(str, one)) for one in (*self.sets, *self.events))


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one fault under one driver; None where it was never seen, or never healed."""

    fault: Fault
    driver: str
    after_seconds: int | None
    health: Health
    said_by_probe: str
    said_by_registry: str
    healed_after_seconds: int | None


def _xid(number: int, **more: object) -> Fault:
    return Fault(
        code=f"xid_{number}",
        events=(("xid", 0, number),),
        unseen_by=frozenset({"old"}),
        **more,  # type: ignore[arg-type]  # each caller names fields of their type
    )


def _figure(code: str, key: str, bad: object, good: object, *unseen_by: str) -> Fault:
    return Fault(
        code=code,
        sets=((key, 0, bad),),
        heals=((key, 0, good),),
        unseen_by=frozenset(unseen_by),
    )


def _fabric(code: str, state: int, status: int, mask: int) -> Fault:
    healthy = f"3 0 {HEALTHY_FABRIC}"
    return _figure(code, "fabric", f"{state} {status} {mask}", healthy, "old")


_LOST = ("unset", "error", "*", 0)
FAULTS: tuple[Fault, ...] = (
    Fault(code="gpu_lost", sets=(("error", "*", 0, "GPU_IS_LOST"),), heals=(_LOST,)),
    Fault(
        code="gpu_reset_required",
        sets=(("error", "nvmlDeviceGetTemperature", 0, "RESET_REQUIRED"),),
        heals=(("unset", "error"),),
    ),
    Fault(
        code="xid_79",
        sets=(("error", "*", 0, "GPU_IS_LOST"), ("error", "nvmlEventSetWait_v2", 0, "0")),
        events=(("xid", 0, 79),),
        heals=(("unset", "error"),),
        unseen_by=frozenset({"old"}),
    ),
    *map(_xid, (95, 140, 143, 158)),
    _xid(119, restart=True),
    _xid(120, restart=True),
    *map(_xid, (46, 48, 62, 64, 109, 110, 136, 155, 156, 74, *range(144, 151))),
    *map(_xid, (94, 92, 54, 151, 167, 169)),
    Fault(
        code="recovery_drain_and_reset",
        sets=(("recovery_action", 0, 4),),
        events=(("xid", 0, 154),),
        heals=(("recovery_action", 0, 0),),
        unseen_by=frozenset({"old"}),
    ),
    Fault(
        code="row_remap_pending",
        sets=(("remapped_rows", 0, "0 1 1 0"),),
        events=(("xid", 0, 63),),
        heals=(("remapped_rows", 0, "0 1 0 0"),),
        unseen_by=frozenset({"old"}),
    ),
    _figure("row_remap_failed", "remapped_rows", "0 1 0 1", "0 0 0 0", "old"),
    _figure("retired_pages_pending", "retired_pages_pending", 1, 0),
    _figure("ecc_uncorrected", "ecc_uncorrected", 2, 2),
    _figure("sram_ecc_threshold", "sram_threshold_exceeded", 1, 0, "old"),
    _figure("hw_thermal_slowdown", "clocks_event_reasons", 0x48, 0),
    _figure("sw_thermal_slowdown", "clocks_event_reasons", 0x20, 0),
    _figure("power_brake_slowdown", "clocks_event_reasons", 0x88, 0),
    _figure("hw_slowdown", "clocks_event_reasons", 0x8, 0),
    *(
        _figure(code, "recovery_action", number, 0, "old")
        for number, code in ((1, "recovery_reset"), (2, "recovery_reboot"), (3, "recovery_drain_p2p"))
    ),
    _figure("recovery_imex", "recovery_action", 5, 0, "old"),
    _figure("recovery_bus_reset", "recovery_action", 6, 0, "old"),
    _figure("compute_mode_prohibited", "compute_mode", 2, 0),
    _fabric("fabric_incomplete", 2, 0, 0),
    _fabric("fabric_failed", 3, 999, HEALTHY_FABRIC),
    _fabric("fabric_route_unhealthy", 3, 0, HEALTHY_FABRIC ^ 0x30),
    _fabric("fabric_route_recovery", 3, 0, HEALTHY_FABRIC ^ 0x0C),
    _fabric("fabric_access_timeout", 3, 0, HEALTHY_FABRIC ^ 0xC0),
    _fabric("fabric_degraded_bandwidth", 3, 0, HEALTHY_FABRIC ^ 0x03),
    _fabric("fabric_no_partition", 3, 0, HEALTHY_FABRIC ^ 0x500),
    _fabric("fabric_misconfigured", 3, 0, HEALTHY_FABRIC ^ 0x400),
    _figure("nvlink_down", "nvlinks_down", 2, 0, "old", "mig"),
    _figure("nvlink_errors", "nvlink_errors_total", 3, 3, "old"),
    _figure("pcie_link_slow", "pcie_width", 4, 16, "mig"),
)


def machine(driver: str, root: Path) -> FakeNvml:
    """A machine of that kind: two GPUs under load, links and all as its driver tells them."""
    if driver == "old":
        fake = FakeNvml(root, gpus=2, library=built_library(*OLD_LACKS))
        fake.set("driver_version", "450.80.02")
    else:
        fake = FakeNvml(root, gpus=2)
    if driver == "mig":
        fake.enable_mig(0, 1, 3)
        fake.set("error", "nvmlDeviceGetUtilizationRates", 0, "NOT_SUPPORTED")
    fake.set("utilization", 0, 90)
    fake.unset("log")
    return fake


class Watch:
    """The daemon's view of one machine, on a clock of its own."""

    def __init__(self, fake: FakeNvml, child: ChildUnderTest) -> None:
        self._fake, self._child = fake, child
        self._tracker, self._pending = HealthTracker(), PendingEvents()
        self._readings = 0
        self._energy = 7_000_000
        self.report = self.read()

    @property
    def gpu(self) -> Gpu:
        """GPU 0."""
        return self.report.gpus[0]

    def read(self) -> GpuReport:
        """Take the next reading."""
        self._readings += 1
        self._energy += 1_000
        self._fake.set("energy_mj", 0, self._energy)
        lost = self._readings > 1 and self.gpu.health is Health.LOST
        quarantined = lost and any(one.code == "gpu_silent" for one in self.gpu.reasons)
        reopen = lost and not quarantined and self._readings % REOPEN_EVERY == 0
        self._child.send({"id": self._readings, "request": "read", "events": True, "reopen": reopen})
        assert self._child.process.stdout is not None
        while (answer := parse_answer(line := self._child.process.stdout.readline())) is None:
            assert line, "the child ended"
            self._pending.add(line)
        now = float(self._readings * POLL_SECONDS)
        read = self._pending.merge_into(answer.report)
        self.report = self._tracker.observe(read, now_wall=_EPOCH + now, now_mono=now)
        return self.report

    def read_until(self, code: str, *, shown: bool) -> int | None:
        """Read until GPU 0 has the reason, or is `ok` again; the seconds that it took."""
        for number in range(1, LONGEST_READINGS + 1):
            self.read()
            codes = {reason.code for reason in self.gpu.reasons}
            if code in codes if shown else self.gpu.health is Health.OK:
                return number * POLL_SECONDS
        return None

    def reset_gpu(self) -> None:
        """Let the count of energy restart, as a reset of the GPU does."""
        self._energy = 0


def play(fault: Fault, driver: str, root: Path) -> Seen:
    """Lay the fault on the machine, and take it back."""
    fake = machine(driver, root)
    with ExitStack() as stack:
        watch = Watch(fake, stack.enter_context(child_of(fake.environment())))
        for _ in range(HEALTHY_READINGS):
            assert {gpu.health for gpu in watch.read().gpus} == {Health.OK}, watch.report
        for statement in fault.sets:
            fake.set(*statement)
        fake.happen(*fault.events)
        after = watch.read_until(fault.code, shown=True) if driver not in fault.unseen_by else None
        if after is None:
            for _ in range(2 * REOPEN_EVERY):
                watch.read()
                assert fault.code not in {reason.code for reason in watch.gpu.reasons}
        health, report = watch.gpu.health, watch.report
        for statement in fault.heals:
            if statement[0] == "unset":
                fake.unset(*statement[1:])
            else:
                fake.set(*statement)
        watch.reset_gpu()
        if fault.restart and after is not None:
            watch = Watch(fake, stack.enter_context(child_of(fake.environment())))
        healed = watch.read_until("", shown=False)
    return Seen(fault, driver, after, health, _said_by_probe(report), _said_by_registry(report), healed)


def _said_by_probe(report: GpuReport) -> str:
    """The lines of the page about GPU 0, which `probe` and `status` share."""
    inventory = Inventory(host=HOST, gpu=report)
    lines = [plain_text(one) for one in trouble_lines(inventory, None, now=_EPOCH)]
    about = [at for at, text in enumerate(lines) if text.startswith("GPU 0 ")]
    return " ".join(text.strip() for at in about for text in lines[at : at + 2])


def _said_by_registry(report: GpuReport) -> str:
    """The row of GPU 0, or of its first MIG device, on the node's page."""
    inventory = Inventory(host=HOST, gpu=report)
    registry = Registry()
    declared = registration(declare(inventory, Owner()), node_id=None, schema_version="1.1")
    registry.register(hardware=declared.hardware)
    moment = HeartbeatFigures(
        timestamp_ms=1,
        cpu_percent=1.0,
        mem_percent=1.0,
        running_jobs=0,
        running_job_ids=None,
        probe_age_seconds=0.0,
    )
    sent = heartbeat("node-1", inventory, moment=moment, changed=DeclarationChanges(), sequence=1)
    registry.heartbeat(gpus=sent.gpus)
    detail = views.node_detail(
        registry.node(),
        views.Clock(lambda: registry.now, lambda: _EPOCH),
        thresholds=Thresholds(),
        gpus=GpuFacts((), ClaimHistory()),
        events=(),
        stored=True,
    )
    parents = {gpu.parent_uuid for gpu in report.gpus if gpu.parent_uuid}
    shown = next(gpu for gpu in report.gpus if gpu.index == 0 and gpu.uuid not in parents)
    page = [plain_text(one) for one in node_page(detail, None, now=_EPOCH)]
    head = next(text for text in page if text.startswith("GPU "))
    row = next(text for text in page if shown.uuid in text)
    words = row[head.index("HEALTH") : head.index("MEMORY")]
    return " ".join(words.split())


def table(drivers: Sequence[str] = DRIVERS) -> Iterator[Seen]:
    """Play every fault under each of these drivers."""
    for driver in drivers:
        for fault in FAULTS:
            with tempfile.TemporaryDirectory() as folder:
                yield play(fault, driver, Path(folder))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--driver", choices=DRIVERS, action="append")
    options = parser.parse_args()
    print("| driver | fault | injected | seen after | probe and status say | node says | healed after |")
    print("|---|---|---|---|---|---|---|")
    for one in table(options.driver or DRIVERS):
        print(f"| {' | '.join(_cells(one))} |", flush=True)
    return 0


def _cells(seen: Seen) -> Iterator[str]:
    yield from (seen.driver, f"`{seen.fault.code}`", f"`{seen.fault.injected}`")
    if seen.after_seconds is None:
        yield from ("not reported by this driver", "", "", "")
        return
    healed = "never" if seen.healed_after_seconds is None else f"{seen.healed_after_seconds} s"
    restarted = ", the agent started again" if seen.fault.restart else ""
    yield from (f"{seen.after_seconds} s", seen.said_by_probe, seen.said_by_registry, f"{healed}{restarted}")


if __name__ == "__main__":
    sys.exit(main())
