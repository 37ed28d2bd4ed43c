"""Which devices the agent's unit opens, on a machine whose systemd may filter them.

No driver is loaded here: a device that is let through has nothing behind it, one that is not is forbidden.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.system.machine import Machine
from tests.system.site import AGENT

pytestmark = pytest.mark.timeout(300)

SYSTEMD = Path(__file__).parent.parent.parent / "systemd"
MAY_FILTER = ("--capability=CAP_BPF", "--system-call-filter=bpf")
DEVICES = {
    "/dev/nvidia0": (195, 0),
    "/dev/nvidia7": (195, 7),
    "/dev/nvidiactl": (195, 255),
    "/dev/a-screen": (7, 1),
    "/dev/a-terminal": (4, 1),
}
LET_THROUGH, FORBIDDEN = "No such device or address", "Operation not permitted"
LOOK = """\
while true; do
  for device in $DEVICES; do echo "$device $(head -c0 $device 2>&1 || true)"; done >/run/gpu-agent/new
  mv /run/gpu-agent/new /run/gpu-agent/seen
  sleep 0.2
done
"""
CLOSED = """\
[Service]
Type=oneshot
DevicePolicy=closed
ExecStart=/usr/bin/head -c0 /dev/a-screen
"""
IN_ITS_PLACE = f"""\
[Service]
Type=exec
WatchdogSec=0
Environment="DEVICES={" ".join(DEVICES)}"
ExecStart=
ExecStart=/bin/sh /etc/look
"""


@pytest.fixture(scope="module")
def machine(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One on which the agent's unit runs a program that opens devices instead of the agent."""
    with Machine(root, tmp_path_factory.mktemp("filtered"), granted=MAY_FILTER) as machine:
        for device, (major, minor) in DEVICES.items():
            machine.run("mknod", "--mode=666", device, "c", str(major), str(minor))
        machine.write("/run/systemd/system/closed.service", CLOSED)
        machine.run("systemctl", "daemon-reload")
        if machine.run("systemctl", "start", "closed", check=False).returncode == 0:
            pytest.skip("systemd may filter no devices on this machine")
        users = "gpu-agent.sysusers.conf"
        machine.write("/etc/sysusers.d/gpu-agent.conf", (SYSTEMD / users).read_text(encoding="utf-8"))
        machine.write(f"/etc/systemd/system/{AGENT}", (SYSTEMD / AGENT).read_text(encoding="utf-8"))
        machine.write(f"/etc/systemd/system/{AGENT}.d/look.conf", IN_ITS_PLACE)
        machine.write("/etc/look", LOOK)
        machine.run("systemd-sysusers")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", AGENT)
        yield machine


def seen(machine: Machine) -> Mapping[str, str]:
    """What came of opening each device, in a look that has just begun."""
    machine.run("rm", "-f", "/run/gpu-agent/seen")
    text = machine.until(
        lambda: machine.run("cat", "/run/gpu-agent/seen", check=False).stdout,
        within_seconds=20,
        what="a look at the devices",
    )
    return dict(line.split(" ", 1) for line in text.splitlines())


def test_it_may_open_nvidias_devices_without_their_driver_and_no_others(machine: Machine) -> None:
    found = seen(machine)
    for device in DEVICES:
        expected = LET_THROUGH if device.startswith("/dev/nvidia") else FORBIDDEN
        assert expected in found[device], found


def test_a_reload_of_systemd_takes_no_gpu_away(machine: Machine) -> None:
    before = seen(machine)
    machine.run("systemctl", "daemon-reload")
    assert seen(machine) == before
    assert LET_THROUGH in before["/dev/nvidia0"]
