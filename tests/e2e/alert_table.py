"""Every kind of fault, injected into fleets that a real Prometheus scrapes: which alert fired, and when.

    python -m tests.e2e.alert_table

The rules' times are divided by 60, so that all of it takes some minutes: `fired after` is by these, and
measured. `computed for the delivered rules` adds by how much `for` and ages are longer there, and nothing
else; `--delivered` measures the last two fleets by the delivered rules instead, in half an hour. Prometheus
asks each second here. In the fleet of this module a node counts as lost after 4 s of silence, a claim as idle
after 2 s; by default that is 45 s and 15 minutes. The same rules watch NVIDIA's GPUs and AMD's.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from websockets.sync.client import connect

from tests.e2e import guarded_registry, watched_instances
from tests.e2e.alert_ends import AMD_FALLEN, AMD_SICK, NONSENSE, end_faults, end_first_faults, release
from tests.e2e.guarded_registry import guarded
from tests.e2e.monitored_fleet import (
    CHECKED,
    GPUS,
    Monitored,
    in_background,
    monitored,
    start_registry,
)
from tests.e2e.watched_alerts import HEAD, SHORTER, Alert, WatchedAlerts
from tests.e2e.watched_instances import instances
from tests.programs import eventually
from tests.server.harness import registration
from tests.small_disk import Ballast, mounted

SOON, SLOW = 30.0, 100.0
"""How long an alert may take, in seconds; a slowdown counts as a fault after a minute."""
_AMD_UUIDS = {AMD_SICK: "GPU-3cbe002bd3b6313d", AMD_FALLEN: "GPU-8a1b2c3d4e5f6071"}
DISK_KIB = 8192


def play(fleet: Monitored, *, disk: Path | None) -> None:
    """Inject each fault that leaves a fleet behind, and wait for its alert.

    `disk`: the registry's small disk, which is filled; None where it has none of its own.
    """
    _slow_faults(fleet)
    _kill(fleet)
    _faults_of_claims(fleet)
    _watch_quick(fleet)
    end_first_faults(fleet)
    for lay in (_faults_of_gpus, _faults_of_machines):
        lay(fleet)
        _watch_quick(fleet)
    if disk is not None:
        _fill(fleet, disk)
    fleet.watch(within_seconds=SLOW)


def disturb(fleet: Monitored) -> None:
    """Let the whole fleet stand still, and end that again."""
    _stall(fleet)
    _lose_power(fleet)


def _stall(fleet: Monitored) -> None:
    """Stop the registry again and again, as a machine without time to spare does."""
    stalls, done = "the registry gets no processor time for 0.8 s, again and again", threading.Event()

    def stall() -> None:
        while not done.wait(0.4):
            fleet.registry.send(signal.SIGSTOP)
            done.wait(0.8)
            fleet.registry.send(signal.SIGCONT)

    stalling = threading.Thread(target=stall)
    fleet.inject(stalls, Alert("RegistryLoopStalls", {"job": "gpu-registry"}), stalling.start)

    def let_go() -> None:
        done.set()
        stalling.join()

    try:
        fleet.watch(stalls, within_seconds=SOON)
        fleet.fix(stalls, end=let_go, within_seconds=SOON)
    finally:
        let_go()


def _lose_power(fleet: Monitored) -> None:
    """Freeze every agent that runs, so that none is heard any more, until the alerts have fired."""
    dark = [one for one in fleet.machines.values() if not one.agent.ended]
    lost, of_registry = "all agents fall silent at once", {"job": "gpu-registry"}
    for machine in dark:
        machine.agent.send(signal.SIGSTOP)

    def wake() -> None:
        for machine in dark:
            machine.agent.send(signal.SIGCONT)

    try:
        fleet.inject(lost, Alert("ManyNodesLost", of_registry), lasts=False)
        fleet.inject(f"{lost}: no node is left", Alert("NoNodeTakesJobs", of_registry))
        silent = [
            f"{lost}: Prometheus hears nothing of {machine.name}, which reads {machine.vendor}"
            for machine in dark
        ]
        for fault, machine in zip(silent, dark, strict=True):
            fleet.inject(fault, Alert("AgentGone", {"instance": machine.instance}))
        fleet.watch(within_seconds=SOON)
        fleet.fix(f"{lost}: no node is left", *silent, end=wake, within_seconds=SOON)
    finally:
        wake()
    eventually(
        lambda: len(fleet.prometheus.series("gpu_agent_connected == 1")) == len(dark) or None,
        within_seconds=SOON,
        what="agents that are heard again",
    )


def end(fleet: Monitored) -> None:
    """Kill the registry."""
    killed, amd = "the registry is killed (-9)", fleet.machines["amd"]
    fleet.inject(
        killed,
        Alert("RegistryGone", {"job": "gpu-registry"}),
        lambda: fleet.registry.send(signal.SIGKILL),
    )
    connected = Alert("AgentNotConnected", {"instance": amd.instance})
    fleet.inject(f"{killed}: an agent", connected)
    fleet.watch(within_seconds=SOON)


def start_again(fleet: Monitored, running: ExitStack) -> None:
    """Start the registry again that was killed, and wait for the end of its alerts."""
    killed = [one.fault for one in fleet.injected if one.alert.name in {"RegistryGone", "AgentNotConnected"}]

    def start() -> None:
        folder, before = fleet.folder, fleet.registry
        ports = {"node_port": before.node_port, "operator_port": before.operator_port}
        running.enter_context(start_registry(folder, fleet.store, **ports))

    fleet.fix(*killed, end=start, within_seconds=SOON)


def _watch_quick(fleet: Monitored) -> None:
    quick = [one.fault for one in fleet.injected if one.fault not in _SLOW_FAULTS]
    fleet.watch(*quick, within_seconds=SOON)


def _fill(fleet: Monitored, disk: Path) -> None:
    registry, stored, full = fleet.registry, Ballast(disk), "the registry's disk is full"
    fleet.inject(full, Alert("RegistryDoesNotStore", {"job": "gpu-registry"}), stored.fill)
    fleet.inject(f"{full}: it says so", Alert("RegistryNotReady", {"job": "gpu-registry"}))
    for number in range(8):
        claim = {"job_id": f"full-{number}", "allowed_nodes": [fleet.machines["xid"].node_id]}
        in_background(partial(registry.post, "/v1/claims", claim))
    _watch_quick(fleet)
    fleet.fix(full, f"{full}: it says so", end=stored.throw_off, within_seconds=SOON)


_HOT, _WAITS = "NVIDIA: a GPU is too hot for a minute", "a job waits"
_HELD = "an agent with a claim is killed (-9): its GPU stays held"
_SLOW_FAULTS = (_HOT, _WAITS, _HELD)


def _slow_faults(fleet: Monitored) -> None:
    sick, registry = fleet.machines["xid"], fleet.registry
    assert sick.fake is not None
    fake, of_node = sick.fake, {"allowed_nodes": [sick.node_id]}
    hot = {"UUID": fake.fact("uuid", 2), "reason": "hw_thermal_slowdown"}
    fleet.inject(_HOT, Alert("GpuDegraded", hot), lambda: fake.set("clocks_event_reasons", 2, 0x48))
    registry.post("/v1/claims", {"job_id": "runs", "gpu_count": 1, **of_node})
    fleet.inject("a receiver of alarms takes nothing", Alert("AlarmsNotDelivered", {"receiver": "pager"}))
    wanted = {"job_id": "waits", "gpu_count": 4, "wait_seconds": 300, **of_node}
    fleet.inject(
        _WAITS,
        Alert("JobsWaitLong", {"job": "gpu-registry"}),
        lambda: in_background(lambda: registry.post("/v1/claims", wanted, within_seconds=310)),
    )


def _kill(fleet: Monitored) -> None:
    registry, gone = fleet.registry, fleet.machines["killed"]
    registry.post("/v1/claims", {"job_id": "doomed", "gpu_count": 1, "allowed_nodes": [gone.node_id]})
    killed = "an agent with a claim is killed (-9)"
    fleet.inject(
        killed,
        Alert("AgentGone", {"instance": gone.instance}),
        lambda: gone.agent.send(signal.SIGKILL),
    )
    fleet.inject(f"{killed}: its node", Alert("NodeLost", {"job": "gpu-registry"}), lasts=False)
    fleet.inject(f"{killed}: its claim", Alert("ClaimsLost", {"job": "gpu-registry"}), lasts=False)
    fleet.inject(_HELD, Alert("GpusHeld", {"job": "gpu-registry"}))


def _faults_of_claims(fleet: Monitored) -> None:
    registry, of_registry, machine = fleet.registry, {"job": "gpu-registry"}, fleet.machines["hang"]
    assert machine.fake is not None
    driver, idle = machine.fake, {"job_id": "idle", "gpu_count": 1, "allowed_nodes": [machine.node_id]}
    claimed = registry.post("/v1/claims", idle)["gpu_uuids"]
    fleet.inject("a claim leaves its GPU idle", Alert("ClaimsIdle", of_registry))
    free = next(index for index in range(GPUS) if driver.fact("uuid", index) not in claimed)
    fleet.inject(
        "a program runs on a GPU without a claim",
        Alert("GpusUsedWithoutClaim", of_registry),
        lambda: driver.set("process", free, os.getpid(), 1 << 30),
    )

    def register_without_gpu() -> None:
        with connect(registry.node_url, proxy=None) as socket:
            socket.send(_without_gpu())
            socket.recv(timeout=10)

    refused = {**of_registry, "code": "GPU_REQUIRED"}
    refusal = Alert("NodesRefused", refused)
    fleet.inject("a node without a GPU registers", refusal, register_without_gpu, lasts=False)


def _faults_of_gpus(fleet: Monitored) -> None:
    sick, amd = fleet.machines["xid"], fleet.machines["amd"]
    assert sick.fake is not None
    assert amd.tree is not None
    fake, cards = sick.fake, amd.tree / "devices" / "pci0000:00"
    lost, ecc, link = (fake.fact("uuid", index) for index in (0, 1, 3))

    fleet.inject(
        "NVIDIA: Xid 79, a GPU falls off the bus",
        Alert("GpuLost", {"UUID": lost}),
        lambda: fake.happen(("xid", 0, 79)),
    )
    fleet.inject(
        "NVIDIA: two uncorrected ECC errors",
        Alert("GpuDegraded", {"UUID": ecc, "reason": "ecc_uncorrected"}),
        lambda: fake.set("ecc_uncorrected", 1, 2),
    )
    fleet.inject(
        "NVIDIA: the PCIe link repeats packets",
        Alert("GpuPcieReplays", {"UUID": link}),
        lambda: fake.set("pcie_replays", 3, 1000),
        lasts=False,
    )
    fleet.inject(
        "NVIDIA: a GPU's compute mode prohibits programs",
        Alert("GpuNotUsable", {"UUID": link, "reason": "compute_mode_prohibited"}),
        lambda: fake.set("compute_mode", 3, 2),
    )
    fleet.inject(
        "AMD: three uncorrected ECC errors",
        Alert("GpuDegraded", {"UUID": _AMD_UUIDS[AMD_SICK], "reason": "ecc_uncorrected"}),
        lambda: (cards / AMD_SICK / "ras" / "umc_err_count").write_text("ue: 3\nce: 4\nde: 0\n"),
    )
    fleet.inject(
        "AMD: a GPU falls off the bus",
        Alert("GpuLost", {"UUID": _AMD_UUIDS[AMD_FALLEN]}),
        lambda: (cards / AMD_FALLEN / "config").write_bytes(b"\xff" * 64),
    )
    fleet.inject(
        "the same, by the registry alone",
        Alert("GpusNotUsable", {"name": "AMD Instinct MI300X OAM"}),
    )


def _faults_of_machines(fleet: Monitored) -> None:
    registry, sick, amd = fleet.registry, fleet.machines["xid"], fleet.machines["amd"]
    hanging = fleet.machines["hang"]
    assert hanging.fake is not None
    assert sick.config is not None
    assert amd.tree is not None
    driver, config = hanging.fake, sick.config
    nvidia = {"instance": hanging.instance, "vendor": "nvidia"}
    fleet.inject(
        "NVIDIA: the driver hangs",
        Alert("GpuDriverHangs", nvidia),
        lambda: driver.set("hang", "nvmlDeviceGetUtilizationRates", "0"),
    )
    fleet.inject(
        "the same, by the registry alone",
        Alert("NodesDegraded", {"status": "degraded"}),
    )
    card = amd.tree / "devices" / "pci0000:00" / AMD_SICK / "gpu_busy_percent"

    def hang_amd() -> None:
        card.unlink()
        os.mkfifo(card)  # who opens it to read waits until somebody writes

    fleet.inject(
        "AMD: the driver hangs",
        Alert("GpuDriverHangs", {"instance": amd.instance, "vendor": "amd"}),
        hang_amd,
    )

    def reload_nonsense() -> None:
        config.write_text(f"{NONSENSE}{config.read_text()}")
        sick.agent.send(signal.SIGHUP)

    fleet.inject(
        "a reload of a faulty settings file",
        Alert("AgentSettingsNotInForce", {"instance": sick.instance}),
        reload_nonsense,
    )

    def fail_check() -> None:
        (config.parent / CHECKED).unlink()
        registry.post(f"/v1/nodes/{sick.node_id}/check", {})

    failed = Alert("MachineCheckFails", {"instance": sick.instance, "check": "hook"})
    fleet.inject("the machine's own check fails", failed, fail_check)


def _without_gpu() -> str:
    return json.dumps(registration(hardware={"cpu_cores": 1, "memory_gb": 1}))


def registry_disk(folder: Path, running: ExitStack) -> Path | None:
    """A small disk for the registry until the stack closes; None for an ordinary user, who mounts none."""
    return running.enter_context(mounted(folder / "disk", kib=DISK_KIB)) if os.geteuid() == 0 else None


def main() -> int:
    """Play all and print a table of each fleet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--delivered", action="store_true", help="the last two fleets, by the delivered rules"
    )
    delivered = parser.parse_args().delivered
    shorter = 1 if delivered else SHORTER
    if not delivered:
        with _folder() as folder, ExitStack() as running:
            disk = registry_disk(folder, running)
            fleet = running.enter_context(monitored(folder, store=disk or folder))
            running.callback(release, fleet)

            def play_and_end() -> None:
                play(fleet, disk=disk)
                end_faults(fleet, running)
                disturb(fleet)
                end(fleet)
                start_again(fleet, running)

            _print(fleet, play_and_end)
    with _folder() as folder, guarded(folder, shorter=shorter) as registry:
        _print(registry, partial(guarded_registry.play, registry))
    with _folder() as folder, instances(folder, shorter=shorter) as several:

        def play_all() -> None:
            watched_instances.play(several)
            if not delivered:
                watched_instances.let_be(several)

        _print(several, play_all)
    return 0


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _print(fleet: WatchedAlerts, act: Callable[[], object]) -> None:
    """Let it happen, and write what was seen, in the order of the faults."""
    try:
        act()
    finally:
        lines = (*HEAD, *(str(row) for row in fleet.rows()))
        others = ", ".join(sorted(fleet.others)) or "none"
        sys.stdout.writelines(f"{line}\n" for line in (*lines, f"fired besides: {others}", ""))


if __name__ == "__main__":
    sys.exit(main())
