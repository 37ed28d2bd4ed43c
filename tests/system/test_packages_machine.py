"""Both halves from packages, installed offline and started by `systemctl`: over TLS, with tokens."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.system.packaged import AGENT_TOML, machine_with_packages, settle
from tests.system.packages import CURRENT
from tests.system.site import AGENT, REGISTRY, Site

pytestmark = pytest.mark.timeout(900)

MOST_EXPOSED = 3.0
STATE = "/var/lib"
STATUS = ("gpu-agent", "status", "--json")
NOT_REACHED = 5
SOCKET = "/run/gpu-agent/agent.sock"
PAGER = f"""
[[notify]]
name = "pager"
command = ["sh", "-c", "cat > {STATE}/gpu-registry/alarm.json"]
"""
BROWSE = """
import http.client, re, ssl, sys, urllib.parse
trusted = ssl.create_default_context(cafile="/etc/gpu-agent/ca.pem")
registry = http.client.HTTPSConnection("registry.example", 8081, context=trusted, timeout=30)
def ask(method, path, body=None, **headers):
    registry.request(method, path, body, headers)
    answer = registry.getresponse()
    return answer, answer.read().decode()
page, text = ask("GET", sys.argv[1])
code = re.search('name="code" value="([^"]+)"', text)[1]
form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "https://registry.example:8081"}
signed_in, _ = ask("POST", "/signin", urllib.parse.urlencode({"code": code}), **form)
cookie = signed_in.headers["Set-Cookie"].partition(";")[0]
for path in ("/", "/nodes"):
    answer, text = ask("GET", path, Cookie=cookie)
    assert answer.status == 200, (path, answer.status)
    print(text)
"""
"""What a browser does, without drawing."""


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    scratch = tmp_path_factory.mktemp("machine")
    with machine_with_packages(root, scratch) as machine:
        yield settle(machine, Authority(scratch / "authority"))


def test_a_node_becomes_ready_with_the_gpus_of_its_driver(site: Site) -> None:
    node = site.await_ready()
    assert [gpu["name"] for gpu in node["gpus"]] == ["NVIDIA H100 80GB HBM3"] * 2
    assert node["agent_version"] == CURRENT
    started = site.machine.events(AGENT, "agent_started")[-1]
    assert started["registry"] == "wss://registry.example:8080/ws/node"


def test_both_units_are_hardened(site: Site) -> None:
    for unit in (AGENT, REGISTRY):
        output = site.machine.run("systemd-analyze", "security", "--no-pager", unit).stdout
        exposed = re.search(r"Overall exposure level for \S+: ([0-9.]+)", output)
        assert exposed is not None, output
        assert float(exposed[1]) <= MOST_EXPOSED, output


def test_the_services_are_as_their_units_say(site: Site) -> None:
    for unit in (AGENT, REGISTRY):
        assert site.machine.show(unit, "Type") == "notify"
        assert site.machine.show(unit, "WatchdogUSec") == "1min"
        assert site.machine.show(unit, "Restart") == "on-failure"
        assert site.machine.show(unit, "NRestarts") == "0"
        user = site.machine.run("stat", "-c", "%U", f"/proc/{site.machine.main_pid(unit)}")
        assert user.stdout.strip() == unit.removesuffix(".service")


def test_the_journal_has_each_line_of_both_as_json_with_its_event(site: Site) -> None:
    node_id = site.await_ready()["node_id"]
    for unit in (AGENT, REGISTRY):
        said = [
            json.loads(str(entry["MESSAGE"]))
            for entry in site.machine.journal(unit)
            if entry["_TRANSPORT"] == "stdout"
        ]
        assert all({"event", "level"} <= line.keys() for line in said)
        assert any(line["event"] == "node_registered" and line["node_id"] == node_id for line in said)


def test_members_of_the_agents_group_may_ask_it_and_others_may_not(site: Site) -> None:
    machine = site.machine
    machine.run("useradd", "--groups", "gpu-agent", "worker")
    machine.run("useradd", "stranger")
    allowed = machine.run("runuser", "-u", "worker", "--", *STATUS)
    assert json.loads(allowed.stdout)["node_id"] == site.await_ready()["node_id"]
    refused = machine.run("runuser", "-u", "stranger", "--", *STATUS, check=False)
    assert (refused.returncode, refused.stdout) == (NOT_REACHED, "")
    assert "its group, its own user and root may" in refused.stderr
    assert machine.run("stat", "-c", "%a %U %G", SOCKET).stdout.split() == ["660", "gpu-agent", "gpu-agent"]


def test_the_socket_goes_to_another_group_that_the_agent_is_a_member_of(site: Site) -> None:
    machine = site.machine
    machine.run("groupadd", "gpu-users")
    machine.write(f"/etc/systemd/system/{AGENT}.d/group.conf", "[Service]\nSupplementaryGroups=gpu-users\n")
    machine.write("/etc/gpu-agent/agent.toml", f'{AGENT_TOML}socket_group = "gpu-users"\n')
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", AGENT)
    assert machine.run("stat", "-c", "%a %U %G", SOCKET).stdout.split() == ["660", "gpu-agent", "gpu-users"]
    site.await_ready()


def test_no_token_is_in_an_argument_a_variable_or_the_journal(site: Site) -> None:
    files = f"/etc/gpu-agent/join-token {STATE}/gpu-agent/identity.json {STATE}/gpu-registry/operator.token"
    secrets = re.findall(r"gpu[jno]_[\w-]+", site.machine.run("sh", "-c", f"cat {files}").stdout)
    assert len(secrets) == 3
    look = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; journalctl --all --no-pager --output=json"
    shown = site.machine.run("sh", "-c", look, check=False).stdout
    assert [secret for secret in secrets if secret in shown] == []


def test_the_page_opens_by_its_link_and_an_alarm_reaches_a_command(site: Site) -> None:
    machine = site.machine
    link = site.registry("page")
    assert link is not None
    machine.write("/root/browse.py", BROWSE)
    shown = machine.run("python3", "/root/browse.py", link["path"]).stdout
    assert site.await_ready()["node_id"] in shown
    registry_toml = machine.path("/etc/gpu-agent/registry.toml").read_text()
    machine.write("/etc/gpu-agent/registry.toml", registry_toml + PAGER)
    machine.run("systemctl", "reload", REGISTRY)
    machine.until(lambda: site.registry("notify", "test", "pager"), within_seconds=20, what="an alarm")
    taken = json.loads(machine.run("cat", f"{STATE}/gpu-registry/alarm.json").stdout)
    assert (taken["receiver"], taken["test"]) == ("pager", True)
