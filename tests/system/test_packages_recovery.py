"""The packages' services when something goes wrong, or when their owner changes the settings."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.system.machine import Machine
from tests.system.packaged import AGENT_TOML, certify, machine_with_packages, settle
from tests.system.roots import SUITES
from tests.system.site import AGENT, REGISTRY, Site

pytestmark = pytest.mark.timeout(900)

WATCHDOG_SECONDS = 6
HURRY = f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}\nRestartSec=1\n"
"""The packages' own are 60 s and 5 s, as another test checks; shorter here, to save time."""

STOP_SECONDS = 3
"""What the unit gives a stop that asks for no more."""
JOB = ("sh", "-c", "until [ -e /run/job-is-done ]; do sleep 0.1; done")

NEWEST = pytest.mark.parametrize("suite", SUITES[-1:], indirect=True, scope="module")
"""For what an older systemd does alike. They stand last, so that no machine is booted twice."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def site(root: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    scratch = tmp_path_factory.mktemp("recovery")
    with machine_with_packages(root, scratch) as machine:
        for unit in (AGENT, REGISTRY):
            machine.write(f"/etc/systemd/system/{unit}.d/hurry.conf", HURRY)
        yield settle(machine, authority)


@contextmanager
def notifications_logged(machine: Machine) -> Iterator[None]:
    """Have systemd log the services' notifications in the journal."""
    machine.run("systemctl", "log-level", "debug")
    try:
        yield
    finally:
        machine.run("systemctl", "log-level", "info")


def restarts(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "NRestarts"))


def stand_still(site: Site, unit: str) -> None:
    """Have a service stand still, and see the watchdog start it again."""
    node, before = site.await_ready(), site.machine.main_pid(unit)
    site.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", unit)
    site.await_another_process(unit, before, within_seconds=60)
    assert site.machine.messages(unit, "Watchdog timeout")
    assert site.await_ready()["node_id"] == node["node_id"]


def test_an_agent_that_stands_still_is_started_again_by_the_watchdog(site: Site) -> None:
    stand_still(site, AGENT)


def test_a_reload_takes_up_the_settings_and_keeps_the_session(site: Site) -> None:
    machine, node_id = site.machine, site.await_ready()["node_id"]
    before, process = site.node(node_id), machine.main_pid(AGENT)
    machine.write("/etc/gpu-agent/agent.toml", AGENT_TOML + '[labels]\nrack = "r7"\n')
    with notifications_logged(machine):
        machine.run("systemctl", "reload", AGENT)
        machine.until(
            lambda: site.node(node_id)["labels"] == {"rack": "r7"}, within_seconds=30, what="the file's label"
        )
    after = site.node(node_id)
    for same in ("session_epoch", "address", "status", "since"):
        assert after[same] == before[same]
    assert machine.main_pid(AGENT) == process
    messages = machine.messages(AGENT, "Got notification message")
    reloading = next(place for place, line in enumerate(messages) if "RELOADING=1" in line)
    assert any("READY=1" in line for line in messages[reloading:])


def test_a_stop_waits_for_the_jobs_that_run_where_its_owner_asked_for_it(site: Site) -> None:
    machine, node_id = site.machine, site.await_ready()["node_id"]
    machine.write(f"/etc/systemd/system/{AGENT}.d/stop.conf", f"[Service]\nTimeoutStopSec={STOP_SECONDS}\n")
    machine.run("systemctl", "daemon-reload")
    machine.write("/etc/gpu-agent/agent.toml", AGENT_TOML + "drain_on_stop_seconds = 600\n")
    machine.run("systemctl", "reload", AGENT)
    machine.run("useradd", "--groups", "gpu-agent", "worker")
    machine.run("systemd-run", "--quiet", "--uid=worker", "gpu-agent", "job", "run", "job-7", "--", *JOB)
    machine.until(
        lambda: site.node(node_id)["running_jobs"] == ["job-7"], within_seconds=30, what="a job that runs"
    )
    machine.run("systemctl", "stop", "--no-block", AGENT)
    site.await_status(node_id, "draining")
    machine.wait_out(2 * STOP_SECONDS)
    assert machine.show(AGENT, "ActiveState") == "deactivating"
    assert site.node(node_id)["status"] == "draining"
    machine.write("/run/job-is-done", "")
    machine.until(
        lambda: machine.show(AGENT, "ActiveState") == "inactive", within_seconds=30, what="the stop's end"
    )
    assert machine.show(AGENT, "Result") == "success"
    assert site.await_status(node_id, "offline")["reason_code"] == "drain_complete"
    machine.run("systemctl", "start", AGENT)
    assert site.await_ready()["node_id"] == node_id


@NEWEST
def test_a_registry_that_stands_still_is_started_again_by_the_watchdog(site: Site) -> None:
    stand_still(site, REGISTRY)


@NEWEST
@pytest.mark.parametrize("unit", [AGENT, REGISTRY])
def test_killed_it_comes_back_by_itself_and_the_node_with_its_id(site: Site, unit: str) -> None:
    node, before = site.await_ready(), site.machine.main_pid(unit)
    site.machine.run("systemctl", "kill", "--signal=KILL", unit)
    site.await_another_process(unit, before, within_seconds=30)
    assert site.await_ready()["node_id"] == node["node_id"]


@NEWEST
def test_a_registry_that_is_away_is_no_reason_to_start_the_agent_again(site: Site) -> None:
    node, before, restarted = site.await_ready(), site.machine.main_pid(AGENT), restarts(site.machine, AGENT)
    site.machine.run("systemctl", "stop", REGISTRY)
    site.machine.wait_out(2 * WATCHDOG_SECONDS)
    site.machine.until(
        lambda: "not connected, will try again" in site.machine.show(AGENT, "StatusText"),
        within_seconds=20,
        what="the lost connection in `systemctl status`",
    )
    status = json.loads(site.machine.run("gpu-agent", "status", "--json").stdout)
    assert (status["node_id"], status["connected"]) == (node["node_id"], False)
    site.machine.run("systemctl", "start", REGISTRY)
    assert site.await_ready(within_seconds=90)["node_id"] == node["node_id"]
    assert (site.machine.main_pid(AGENT), restarts(site.machine, AGENT)) == (before, restarted)


@NEWEST
def test_a_faulty_file_at_a_reload_changes_nothing_and_says_where(site: Site) -> None:
    machine, process = site.machine, site.machine.main_pid(AGENT)
    site.await_ready()
    machine.write("/etc/gpu-agent/agent.toml", AGENT_TOML + "probe_intervall_seconds = 1\n")
    machine.run("systemctl", "reload", AGENT)
    refused = machine.until(
        lambda: machine.events(AGENT, "settings_not_reloaded"),
        within_seconds=20,
        what="the fault of the file",
    )
    assert "probe_interval_seconds" in json.dumps(refused[-1])
    machine.write("/etc/gpu-agent/agent.toml", AGENT_TOML)
    machine.run("systemctl", "reload", AGENT)
    assert (machine.main_pid(AGENT), machine.show(AGENT, "ActiveState")) == (process, "active")
    assert site.ready() is not None


@NEWEST
def test_a_renewed_certificate_is_taken_at_a_reload_and_the_nodes_stay(
    site: Site, authority: Authority
) -> None:
    machine, node_id = site.machine, site.await_ready()["node_id"]
    before, pin = site.node(node_id), machine.events(REGISTRY, "registry_listening")[-1]["pin"]
    certify(machine, authority)
    machine.run("systemctl", "reload", REGISTRY)
    loaded = machine.until(
        lambda: machine.events(REGISTRY, "certificate_loaded"), within_seconds=30, what="another certificate"
    )
    assert loaded[-1]["pin"] != pin
    assert site.node(node_id)["session_epoch"] == before["session_epoch"]
    process = machine.main_pid(AGENT)
    machine.run("systemctl", "restart", AGENT)
    site.await_another_process(AGENT, process, within_seconds=30)
    assert site.await_ready()["node_id"] == node_id
