"""Faults of daily life on a booted machine: what `status`, `doctor`, the status line and the CLI say."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.system.enclosure import Done
from tests.system.machine import Machine
from tests.system.packaged import AGENT_TOML, HERE, certify, machine_with_packages, settle
from tests.system.roots import SUITES
from tests.system.site import AGENT, REGISTRY, Site

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.parametrize("suite", SUITES[-1:], indirect=True, scope="module"),
]

NOT_REACHED, REFUSED = 5, 6
SETTINGS = "/etc/gpu-agent/agent.toml"
TOKEN = "/etc/gpu-agent/join-token"
STATE = "/var/lib/gpu-agent"
SOCKET = "/run/gpu-agent/agent.sock"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def site(root: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with machine_with_packages(root, tmp_path_factory.mktemp("faults")) as machine:
        yield settle(machine, authority)


@pytest.fixture
def machine(site: Site) -> Machine:
    site.await_ready(within_seconds=120)
    return site.machine


def sh(machine: Machine, script: str) -> Done:
    return machine.run("sh", "-c", script, check=False)


def doctor(machine: Machine) -> dict[str, tuple[str, str]]:
    """The verdict and the detail of each check; of several with one name the first that is not ok."""
    checks = json.loads(machine.run("gpu-agent", "doctor", "--json", check=False).stdout)["checks"]
    found: dict[str, tuple[str, str]] = {}
    for one in checks:
        if one["check"] not in found or found[one["check"]][0] == "ok":
            found[one["check"]] = (one["verdict"], one["detail"])
    return found


def line_of(machine: Machine, containing: str, unit: str = AGENT) -> str:
    """The unit's status line, once it contains that."""
    return machine.until(
        lambda: line if containing in (line := machine.show(unit, "StatusText")) else None,
        within_seconds=30,
        what=f"a status line with {containing!r}",
    )


def restart(machine: Machine, settings: str = AGENT_TOML) -> None:
    machine.write(SETTINGS, settings)
    machine.run("systemctl", "restart", AGENT)


def test_root_checks_a_service_that_is_well_as_its_user_and_nothing_fails(machine: Machine) -> None:
    found = doctor(machine)
    assert [name for name, (verdict, _) in found.items() if verdict in ("fail", "warn")] == []
    assert "checked as the service's user gpu-agent" in found["configuration"][1]
    assert found["state directory"][1].startswith(f"{STATE}, mode 0700; an agent runs on it")
    assert found["NVML"][1].startswith("answers in ")


def test_a_model_cache_is_judged_for_the_services_user(machine: Machine) -> None:
    sh(machine, "mkdir -m 0700 /srv/models")
    restart(machine, f'{AGENT_TOML}model_directories = ["/srv/models"]\n')
    checks = json.loads(machine.run("gpu-agent", "doctor", "--json", check=False).stdout)["checks"]
    caches = {one["detail"].split()[0]: one["verdict"] for one in checks if one["check"] == "model cache"}
    assert caches["/srv/models"] == "fail"
    assert not any(place.startswith("/root") for place in caches)
    restart(machine)


def test_a_stopped_agent_is_named_with_its_socket_and_the_next_step(machine: Machine) -> None:
    machine.run("systemctl", "stop", AGENT)
    said = machine.run("gpu-agent", "status", check=False)
    assert said.returncode == NOT_REACHED
    assert said.stderr.startswith(f"gpu-agent: no agent answers at {SOCKET}: {AGENT} was stopped at ")
    assert "`systemctl start gpu-agent`" in said.stderr
    assert doctor(machine)["service"][0] == "warn"
    machine.run("systemctl", "start", AGENT)


def test_a_killed_agent_is_said_before_and_after_systemd_starts_it_again(
    site: Site, machine: Machine
) -> None:
    before = machine.main_pid(AGENT)
    machine.run("systemctl", "kill", "--signal=KILL", AGENT)
    machine.until(
        lambda: machine.show(AGENT, "SubState") == "auto-restart", within_seconds=5, what="a killed agent"
    )
    assert "it ended by signal 9 (SIGKILL)" in machine.run("gpu-agent", "status", check=False).stderr
    site.await_another_process(AGENT, before, within_seconds=30)
    assert "started it again once, last because a signal killed it" in doctor(machine)["service"][1]
    machine.run("systemctl", "reset-failed", AGENT)


def test_a_refused_agent_says_the_registrys_reason_everywhere(machine: Machine) -> None:
    restart(machine, f'{AGENT_TOML}simulate = "1xT4-16GB"\n')
    reason = "this registry takes no simulated nodes"
    assert line_of(machine, reason).startswith("ended: the registry refuses this node: ")
    said = machine.run("gpu-agent", "status", check=False)
    assert said.returncode == NOT_REACHED
    for words in (said.stderr, doctor(machine)["service"][1]):
        assert f"it ended with exit code 6: the registry refuses this node: {reason}" in words
    restart(machine)


def test_a_reload_of_a_faulty_file_and_a_setting_that_waits_are_said(site: Site, machine: Machine) -> None:
    for settings, words in (
        (f"{AGENT_TOML}probe_intervall_seconds = 1\n", "did you mean 'probe_interval_seconds'?"),
        (AGENT_TOML.replace(":8080", ":8090"), "settings wait for a restart: registry_url"),
    ):
        machine.write(SETTINGS, settings)
        machine.run("systemctl", "reload", AGENT)
        line_of(machine, words)
        assert words in line_of(machine, "; ready as ")
        assert words in machine.run("gpu-agent", "status").stdout
        assert words in doctor(machine)["agent"][1]
    machine.write(SETTINGS, AGENT_TOML)
    machine.run("systemctl", "reload", AGENT)
    machine.until(
        lambda: "settings" not in machine.show(AGENT, "StatusText"), within_seconds=30, what="all taken over"
    )
    assert site.ready() is not None


def test_a_full_state_disk_is_said_and_makes_no_second_node(site: Site, machine: Machine) -> None:
    known = {node["node_id"] for node in site.nodes()}
    small = "mkdir /srv/small; mount -t tmpfs -o size=128k,mode=0700 none /srv/small"
    sh(machine, f"systemctl stop {AGENT}; {small}; chown gpu-agent: /srv/small")
    sh(machine, f"gpu-agent registry token create --uses any --out {TOKEN} --force")
    lock = f"install -o gpu-agent -m 0600 /dev/null {STATE}/agent.lock"  # of an agent that ran here before
    sh(machine, f"mount --bind /srv/small {STATE}; {lock}; dd if=/dev/zero of={STATE}/ballast bs=512")
    machine.run("systemctl", "start", AGENT)
    try:
        line_of(machine, "No space left on device")
        assert "its identity could not be stored" in machine.run("gpu-agent", "status").stdout
        found = doctor(machine)
        assert found["state directory"] == ("fail", f"the disk of {STATE} is full")
        assert found["agent"][0] == "fail"
        machine.run("systemctl", "restart", AGENT)
        line_of(machine, "No space left on device")
        assert {node["node_id"] for node in site.nodes()} == known
        machine.run("rm", f"{STATE}/ballast")
        new = site.await_ready(within_seconds=90)["node_id"]
        machine.run("systemctl", "restart", AGENT)
        assert site.await_ready()["node_id"] == new
        assert {node["node_id"] for node in site.nodes()} == {*known, new}
    finally:
        sh(machine, f"systemctl stop {AGENT}; umount {STATE}; systemctl start {AGENT}")


def test_a_token_ended_at_once_is_followed_by_the_advice_and_the_node_is_back_under_its_id(
    site: Site, machine: Machine
) -> None:
    sh(
        machine,
        f"gpu-agent registry token create --uses any --out {TOKEN} --force; systemctl restart {AGENT}",
    )
    node_id = site.await_ready()["node_id"]
    known = {node["node_id"] for node in site.nodes()}
    advice = machine.run("gpu-agent", "registry", "token", "rotate", node_id, "--revoke-now").stdout
    machine.run("systemctl", "restart", AGENT)  # to its old join token, which lets more nodes in
    step = advice.rpartition(": ")[2].strip()
    assert step in line_of(machine, "an operator ended the token")
    assert step in machine.run("gpu-agent", "status").stdout
    assert step in doctor(machine)["agent"][1]
    assert {node["node_id"] for node in site.nodes()} == known
    machine.run(*step.split(), "--out", TOKEN, "--force")
    machine.run("systemctl", "restart", AGENT)
    assert site.await_ready()["node_id"] == node_id


def test_a_node_that_its_own_machine_drained_is_not_resumed_from_afar(site: Site, machine: Machine) -> None:
    node_id = site.await_ready()["node_id"]
    machine.run("gpu-agent", "drain", "--reason", "new fans", "--wait")
    refused = machine.run("gpu-agent", "registry", "node", "resume", node_id, check=False)
    assert refused.returncode == REFUSED
    assert "(new fans), and is resumed only there: run `gpu-agent resume`" in refused.stderr
    machine.run("gpu-agent", "resume")
    site.await_ready()


def test_an_empty_database_is_refused_and_the_unit_says_so(site: Site, machine: Machine) -> None:
    folder = "/var/lib/gpu-registry"
    sh(machine, f"systemctl stop {REGISTRY}; cp {folder}/registry.db /root; : > {folder}/registry.db")
    sh(machine, f"rm -f {folder}/registry.db-*; systemctl start {REGISTRY}")
    assert line_of(machine, "it is empty, 0 bytes", REGISTRY).startswith("ended: ")
    assert (
        "it is empty, 0 bytes"
        in machine.run("gpu-agent", "service", "status", "registry", check=False).stdout
    )
    sh(machine, f"cat /root/registry.db > {folder}/registry.db; systemctl start {REGISTRY}")
    site.await_ready(within_seconds=120)


def test_a_certificate_that_is_not_valid_yet_is_named_by_the_registry(
    site: Site, machine: Machine, authority: Authority
) -> None:
    early = authority.issue("registry.example", from_days=1)
    assert early.key_file is not None
    machine.write("/etc/gpu-agent/registry.pem", early.cert_file.read_text())
    machine.write("/etc/gpu-agent/registry.key", early.key_file.read_text(), mode=0o640)
    machine.run("systemctl", "reload", REGISTRY)
    line_of(machine, "is not valid before ", REGISTRY)
    machine.run("systemctl", "restart", REGISTRY)
    line_of(machine, "is not valid before ", REGISTRY)
    certify(machine, authority)
    machine.run("systemctl", "restart", REGISTRY)
    site.await_ready(within_seconds=120)


def test_a_package_removed_and_installed_again_runs_without_a_reboot(site: Site, machine: Machine) -> None:
    node_id = site.await_ready()["node_id"]
    machine.run("dpkg", "--remove", "gpu-registry", "gpu-agent", within_seconds=120)
    site.install(HERE)
    assert site.await_ready(within_seconds=120)["node_id"] == node_id
    machine.run("systemctl", "stop", AGENT)
    machine.run("dpkg", "--remove", "gpu-registry", "gpu-agent", within_seconds=120)
    site.install(HERE)
    assert machine.show(AGENT, "ActiveState") == "inactive"  # its owner had stopped it
    machine.run("systemctl", "start", AGENT)
