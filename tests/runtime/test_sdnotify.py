import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_agent.runtime.sdnotify import LONGEST_STATUS, SEND_SECONDS, Systemd
from tests.service_manager import ServiceManager, service_manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with service_manager(tmp_path) as listening:
        yield listening


def test_each_state_is_one_datagram_in_the_words_of_sd_notify(manager: ServiceManager) -> None:
    systemd = Systemd(manager.environment)
    systemd.ready()
    systemd.stopping()
    systemd.alive()
    systemd.extend(1.5)
    assert manager.heard_so_far() == ["READY=1", "STOPPING=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000"]


def test_a_reload_says_when_it_began_by_the_monotonic_clock(manager: ServiceManager) -> None:
    before = time.monotonic_ns() // 1000
    Systemd(manager.environment).reloading()
    word, moment = manager.hear().split("\n")
    assert word == "RELOADING=1"
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_status_is_told_when_it_has_changed(manager: ServiceManager) -> None:
    systemd = Systemd(manager.environment)
    systemd.status("connecting")
    systemd.status("connecting")
    systemd.status("ready")
    assert manager.heard_so_far() == ["STATUS=connecting", "STATUS=ready"]


def test_a_status_is_one_line_whatever_a_registry_put_into_it(manager: ServiceManager) -> None:
    Systemd(manager.environment).status("fine\nWATCHDOG=trigger" + "x" * 1000)
    line = manager.hear()
    assert line.startswith("STATUS=fine WATCHDOG=trigger")
    assert len(line) == len("STATUS=") + LONGEST_STATUS


def test_a_socket_in_the_abstract_name_space_is_found() -> None:
    manager = ServiceManager(f"\0gpu-agent-test-{os.getpid()}")
    try:
        Systemd(manager.environment).ready()
        assert manager.hear() == "READY=1"
    finally:
        manager.close()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_socket_nobody_is_told_anything(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    systemd = Systemd({**environ, "WATCHDOG_USEC": "1000000"})
    systemd.ready()
    assert (systemd.listens, systemd.watchdog_seconds, caplog.messages) == (False, None, [])


def test_a_socket_that_is_gone_is_logged_once_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    systemd.ready()
    systemd.alive()
    assert caplog.messages == ["systemd_not_told"]


def test_a_systemd_that_does_not_read_holds_nobody_up_for_long(
    manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    systemd = Systemd(manager.environment)
    began = time.monotonic()
    while not caplog.messages:
        systemd.alive()
        assert time.monotonic() - began < 10
    assert caplog.messages == ["systemd_not_told"]
    began = time.monotonic()
    systemd.alive()
    assert time.monotonic() - began < SEND_SECONDS + 1


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_the_one_that_is_meant_for_this_process(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Systemd({"NOTIFY_SOCKET": "/run/none", **environ}).watchdog_seconds == seconds
