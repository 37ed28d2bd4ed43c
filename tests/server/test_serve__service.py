"""The registry's program under a service manager: told when it is ready, lives, reloads and leaves."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.programs import Program, eventually
from tests.service_manager import ServiceManager, service_manager

PORTS = ("--node-listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")


@contextmanager
def managed(folder: Path, written: str) -> Iterator[tuple[Program, ServiceManager]]:
    """A registry that is ready, whose settings stand in `registry.toml` of the folder."""
    config = folder / "registry.toml"
    config.write_text(written)
    words = ("registry", "serve", "--auth", "off", "--store", "memory", *PORTS, "--config", str(config))
    with service_manager(folder) as manager:
        environment = {**manager.environment, "WATCHDOG_USEC": "2000000"}
        with Program(*words, environment=environment) as program:
            manager.hear_until("READY=1", within_seconds=20)
            yield program, manager


def test_it_is_ready_when_both_ports_answer_and_lives_and_says_so_when_it_leaves(tmp_path: Path) -> None:
    with managed(tmp_path, "") as (program, manager):
        listening = program.await_event("registry_listening")
        assert manager.heard == ["READY=1"]
        where = f"nodes at {listening['node_listen']}, operators at {listening['operator_listen']}"
        assert manager.hear_until("STATUS=", within_seconds=20) == f"STATUS=0 nodes, 0 connections; {where}"
        manager.hear_until("WATCHDOG=1", within_seconds=20)
        program.send(signal.SIGTERM)
        manager.hear_until("STOPPING=1", within_seconds=20)
        assert program.wait(10) == 0


def test_a_reload_takes_over_what_can_hold_at_once_and_names_what_waits(tmp_path: Path) -> None:
    with managed(tmp_path, "") as (program, manager):
        (tmp_path / "registry.toml").write_text(
            'log_level = "debug"\nperformance_interval_seconds = 0.2\nclaim_ttl_seconds = 5\n'
        )
        program.send(signal.SIGHUP)
        manager.hear_until("RELOADING=1", within_seconds=20)
        manager.hear_until("READY=1", within_seconds=20)
        told = program.await_event("settings_reloaded")
        assert told["changed"] == ["log_level", "performance_interval_seconds"]
        assert told["waiting_for_restart"] == ["claim_ttl_seconds"]
        program.send(signal.SIGTERM)
        assert program.wait(10) == 0


def test_a_faulty_file_changes_nothing(tmp_path: Path) -> None:
    with managed(tmp_path, "") as (program, manager):
        (tmp_path / "registry.toml").write_text("claim_ttl_second = 5\n")
        program.send(signal.SIGHUP)
        manager.hear_until("READY=1", within_seconds=20)
        assert "claim_ttl_seconds" in program.await_event("settings_not_reloaded")["problem"]
        assert not program.ended


def test_a_registry_that_is_stopped_by_a_signal_feeds_nothing(tmp_path: Path) -> None:
    with managed(tmp_path, "") as (program, manager):
        manager.hear_until("WATCHDOG=1", within_seconds=20)
        program.send(signal.SIGSTOP)
        try:
            eventually(lambda: _quiet(manager), within_seconds=10, what="silence")
        finally:
            program.send(signal.SIGCONT)
        manager.hear_until("WATCHDOG=1", within_seconds=20)


def _quiet(manager: ServiceManager) -> bool:
    """Whether nothing more comes within longer than two signs of life are apart."""
    try:
        manager.hear(within_seconds=1.2)
    except TimeoutError:
        return True
    return False
