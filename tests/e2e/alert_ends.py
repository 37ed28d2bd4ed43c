"""The ends of the faults that `alert_table.play` leaves behind: what a person would do about each."""

import os
import signal
import urllib.request
from contextlib import ExitStack
from dataclasses import replace

from tests.e2e.monitored_fleet import CHECKED, TAKES, Machine, Monitored, start_agent

SOON, LATER = 30.0, 90.0
"""How long an alert may stay; and where an agent is started again before it."""
AMD_SICK, AMD_FALLEN = "0000:47:00.0", "0000:27:00.0"
NONSENSE = "no_such_setting = 1\n"


def end_faults(fleet: Monitored, running: ExitStack) -> None:
    """End all faults at once, then the claims, and wait until their alerts are gone."""
    sick, gone = fleet.machines["xid"], fleet.machines["killed"]
    idle = [one.fault for one in fleet.injected if one.alert.name == "ClaimsIdle"]
    firing = fleet.prometheus.alerts()  # a driver that hangs hides the other faults of its GPUs
    others = [
        one.fault
        for one in fleet.injected
        if one.lasts and one.fault not in idle and any(one.alert.matches(labels) for labels in firing)
    ]

    def repair_all() -> None:
        _repair(fleet, sick)
        sick.agent.send(signal.SIGKILL)  # the machine is booted again
        sick.agent.wait(SOON)
        for machine in (sick, gone):
            assert machine.config is not None
            assert machine.fake is not None
            again = start_agent(machine.config, fleet.registry, machine.fake.environment())
            fleet.machines[machine.name] = replace(machine, agent=running.enter_context(again))

    fleet.fix(*others, end=repair_all, within_seconds=LATER)
    fleet.fix(*idle, end=lambda: _release_claims(fleet), within_seconds=SOON)


def end_first_faults(fleet: Monitored) -> None:
    """End what does not last: attempts to deliver grow rare, and a driver that hangs names no program."""
    driver = fleet.machines["hang"].fake
    assert driver is not None

    def end() -> None:
        driver.unset("process")
        (fleet.folder / TAKES).touch()
        fleet.registry.post("/v1/receivers/pager/test", {})

    first = ("AlarmsNotDelivered", "GpusUsedWithoutClaim")
    fleet.fix(*(one.fault for one in fleet.injected if one.alert.name in first), end=end, within_seconds=SOON)


def release(fleet: Monitored) -> None:
    """Let what hangs go on, so that it can end."""
    amd, hanging = fleet.machines["amd"], fleet.machines["hang"]
    assert amd.tree is not None
    assert hanging.fake is not None
    hanging.fake.unset("hang", "nvmlDeviceGetUtilizationRates", "0")
    card = amd.tree / "devices" / "pci0000:00" / AMD_SICK / "gpu_busy_percent"
    if card.is_fifo():
        card.rename(card.with_name("held"))
        card.write_text("0\n")
        os.close(os.open(card.with_name("held"), os.O_RDWR))


def _repair(fleet: Monitored, sick: Machine) -> None:
    assert sick.fake is not None
    assert sick.config is not None
    for index in (1, 2, 3):
        for fact in ("clocks_event_reasons", "ecc_uncorrected", "compute_mode"):
            sick.fake.set(fact, index, 0)
    _repair_amd(fleet)
    release(fleet)
    text = sick.config.read_text(encoding="utf-8")
    sick.config.write_text(text.replace(NONSENSE, ""), encoding="utf-8")
    (sick.config.parent / CHECKED).touch()


def _repair_amd(fleet: Monitored) -> None:
    """Let AMD's GPUs be as they were before their faults."""
    tree = fleet.machines["amd"].tree
    assert tree is not None
    cards = tree / "devices" / "pci0000:00"
    (cards / AMD_SICK / "ras" / "umc_err_count").write_text("ue: 0\nce: 4\nde: 0\n")
    (cards / AMD_FALLEN / "config").unlink()


def _release_claims(fleet: Monitored) -> None:
    for claim in fleet.registry.get("/v1/claims")["claims"]:
        url = f"{fleet.registry.api}/v1/claims/{claim['job_id']}?claim_id={claim['claim_id']}"
        request = urllib.request.Request(url, method="DELETE")  # noqa: S310 - loopback, ours
        urllib.request.urlopen(request).close()  # noqa: S310 - as above
