"""The composed program, as a process of its own."""

import asyncio
import gc
import json
import logging
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest
from websockets.sync.client import connect

from gpu_agent.registry.job import Job
from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.config.fields import reloadable_names
from gpu_agent.runtime.reload import Reloaded, merge_reloaded
from gpu_agent.runtime.state_dir import ENDPOINT_FILE, OPERATOR_TOKEN_FILE, Endpoint, read_endpoint_file
from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.server import serve as own_address
from gpu_agent.server.serve import (
    EXIT_FAILED,
    EXIT_UNUSABLE_STATE,
    LiveSettings,
    PublishedEndpoint,
    log_performance,
    serve,
)
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.server.settings import RegistrySettings, load
from gpu_agent.server.tls import Encryption, TlsFiles
from gpu_agent.server.views import Clock
from gpu_agent.store.memory import MemoryStore
from tests.authority import Authority
from tests.programs import Program, Registry, eventually
from tests.server.harness import LOOPBACK, QUICK, node
from tests.service_manager import ServiceManager, service_manager
from tests.waiting import patience

PORTS = ("--node-listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")


def test_it_logs_its_addresses_and_serves_both_ports() -> None:
    with Registry() as registry:
        listening = registry.await_event("registry_listening")
        assert {"node_listen", "operator_listen"} <= set(listening)
        assert registry.node_port != registry.operator_port
        with connect(registry.node_url, proxy=None) as node:
            node.send("nonsense")
            assert json.loads(node.recv(timeout=patience(5)))["code"] == "INVALID_MESSAGE"
        with urllib.request.urlopen(registry.api + "/healthz", timeout=patience(5)) as answer:  # noqa: S310 - ours
            assert json.load(answer)["status"] == "ok"


def test_it_logs_its_own_figures_at_the_configured_interval() -> None:
    with Registry(environment={"GPU_REGISTRY_PERFORMANCE_INTERVAL_SECONDS": "0.2"}) as registry:
        figures = registry.await_event("performance")
    wanted = {"beats_per_second", "loop_lag_ms", "select_p99_us", "commit_p99_ms", "nodes", "connections"}
    assert wanted <= set(figures)
    assert 0 <= figures["loop_lag_p50_ms"] <= figures["loop_lag_p99_ms"] <= figures["loop_lag_ms"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_within_five_seconds_even_with_a_node_that_never_answers(
    number: signal.Signals,
) -> None:
    with Registry() as registry, connect(registry.node_url, proxy=None):
        began = time.monotonic()
        registry.send(number)
        assert registry.wait(patience(5)) == 0
        assert time.monotonic() - began < patience(5)
        assert registry.events("registry_stopping")[0]["signal"] == number.name
        assert registry.events("registry_stopped")


def test_a_port_in_use_ends_it_with_the_next_step() -> None:
    with (
        Registry() as first,
        Program(
            "registry",
            "serve",
            "--auth",
            "off",
            "--store",
            "memory",
            "--node-listen",
            f"127.0.0.1:{first.node_port}",
            "--operator-listen",
            "127.0.0.1:0",
        ) as second,
    ):
        assert second.wait(patience(15)) == EXIT_FAILED
        assert "--node-listen" in second.events("registry_start_failed")[0]["problem"]


async def test_an_operator_port_in_use_closes_the_nodes_port_again() -> None:
    with Address("127.0.0.1", 0).bind() as taken:
        operator = f"127.0.0.1:{taken.getsockname()[1]}"
        places = {"store": "memory", "node_listen": "127.0.0.1:0", "operator_listen": operator}
        settings = load({"auth": "off", **places})
        assert await serve(settings, lambda: settings) == EXIT_FAILED
    assert gc.isenabled()


def test_importing_the_module_does_not_change_the_garbage_collector() -> None:
    assert gc.get_threshold()[0] < 50_000


def test_the_thread_of_its_store_gets_pythons_lock_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = sys.getswitchinterval(), []

    async def serve_nothing(*_: object) -> int:
        seen.append(sys.getswitchinterval())
        return 0

    monkeypatch.setattr(own_address, "serve", serve_nothing)
    settings = RegistrySettings()
    try:
        own_address.run(settings, lambda: settings)
    finally:
        sys.setswitchinterval(before)
    assert seen == [pytest.approx(0.0005)]
    assert before > 0.001  # an embedded registry leaves its program's as it is


def refused_at_start(*arguments: str) -> tuple[int, str]:
    """The exit code of a registry that cannot start, and the problem that it logs."""
    with Program("registry", "serve", "--store", "memory", *PORTS, *arguments) as program:
        code = program.wait(patience(15))
        return code, str(program.events("registry_start_failed")[0]["problem"])


def test_a_state_directory_open_to_others_ends_it_with_the_fix(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code, problem = refused_at_start("--state-dir", str(tmp_path))
    assert code == EXIT_UNUSABLE_STATE
    assert f"chmod 700 {tmp_path}" in problem


def test_by_default_it_requires_tokens_and_writes_the_first_one_to_its_state_directory(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "state"
    with Program("registry", "serve", "--store", "memory", *PORTS, "--state-dir", str(folder)) as registry:
        api = f"http://{registry.await_event('registry_listening', within_seconds=20)['operator_listen']}"
        token = (folder / OPERATOR_TOKEN_FILE).read_text().strip()
        assert asked(f"{api}/v1/nodes", token) == 200
        assert asked(f"{api}/v1/nodes", None) == 401
        assert asked(f"{api}/healthz", None) == 200
        assert registry.events("registry_auth_disabled") == []
        assert registry.events("registry_listens_plaintext") == []
        assert token not in registry.output()


def asked(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - ours
        with urllib.request.urlopen(request, timeout=patience(5)) as answer:  # noqa: S310 - ours
            status: int = answer.status
    except urllib.error.HTTPError as refused:
        refused.close()
        status = refused.code
    return status


def test_settings_that_open_the_registry_are_logged(tmp_path: Path) -> None:
    with Program(
        *("registry", "serve", "--store", "memory", "--state-dir", str(tmp_path)),
        *("--node-listen", "0.0.0.0:0", "--operator-listen", "127.0.0.1:0", "--insecure-plaintext"),
    ) as registry:
        said = registry.await_event("registry_listens_plaintext", within_seconds=20)
        assert (said["listener"], said["address"]) == ("node_listen", "0.0.0.0:0")
    with Registry() as registry:
        assert registry.await_event("registry_auth_disabled", within_seconds=20)


def test_an_unusable_certificate_ends_it_with_the_fix(tmp_path: Path) -> None:
    made = Authority(tmp_path).issue()
    assert made.key_file is not None
    made.key_file.chmod(0o644)
    named = ("--tls-cert-file", str(made.cert_file), "--tls-key-file", str(made.key_file))
    code, problem = refused_at_start(*named, "--state-dir", str(tmp_path / "state"))
    assert code == EXIT_UNUSABLE_STATE
    assert f"chmod 600 {made.key_file}" in problem


def test_with_a_certificate_both_ports_are_encrypted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    made = authority.issue()
    named = ("--tls-cert-file", str(made.cert_file), "--tls-key-file", str(made.key_file))
    with Program("registry", "serve", "--store", "memory", *PORTS, "--auth", "off", *named) as registry:
        said = registry.await_event("registry_listening", within_seconds=20)
        assert said["encrypted"]
        for port in (said["node_listen"], said["operator_listen"]):
            with (
                connect_to(port) as plain,
                authority.trusting().wrap_socket(plain, server_hostname="localhost"),
            ):
                pass


def connect_to(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=5)


def test_an_unusable_database_ends_it_with_its_own_exit_code(tmp_path: Path) -> None:
    broken = tmp_path / "registry.db"
    broken.write_text("no database" * 100)
    with Program("registry", "serve", "--auth", "off", "--store", f"sqlite://{broken}") as registry:
        assert registry.wait(patience(15)) == EXIT_UNUSABLE_STATE
        problem = registry.events("registry_start_failed")[0]["problem"]
        assert str(broken) in problem
        assert "restore FILE" in problem
    assert broken.read_text() == "no database" * 100


def test_a_second_registry_on_the_same_database_is_refused_naming_the_first(tmp_path: Path) -> None:
    place = f"sqlite://{tmp_path / 'registry.db'}"
    words = ("registry", "serve", "--auth", "off", "--store", place)
    with Registry("--store", place) as first, Program(*words) as second:
        assert second.wait(patience(15)) == EXIT_FAILED
        assert f"process {first.pid}" in second.events("registry_start_failed")[0]["problem"]


# The registry's program under a service manager: it reports ready, alive, reloading and stopping.


@contextmanager
def managed(folder: Path, written: str) -> Iterator[tuple[Program, ServiceManager]]:
    """A registry that is ready, whose settings are in `registry.toml` of the folder."""
    config = folder / "registry.toml"
    config.write_text(written)
    words = ("registry", "serve", "--auth", "off", "--store", "memory", *PORTS, "--config", str(config))
    with service_manager(folder) as manager:
        environment = {**manager.environment, "WATCHDOG_USEC": "2000000"}
        with Program(*words, environment=environment) as program:
            manager.hear_until("READY=1", within_seconds=20)
            yield program, manager


def test_systemd_receives_ready_watchdog_and_stopping(tmp_path: Path) -> None:
    with managed(tmp_path, "") as (program, manager):
        listening = program.await_event("registry_listening")
        assert manager.received == ["READY=1"]
        where = f"nodes at {listening['node_listen']}, operators at {listening['operator_listen']}"
        assert manager.hear_until("STATUS=", within_seconds=20) == f"STATUS=0 nodes, 0 connections; {where}"
        manager.hear_until("WATCHDOG=1", within_seconds=20)
        program.send(signal.SIGTERM)
        manager.hear_until("STOPPING=1", within_seconds=20)
        assert program.wait(patience(10)) == 0


def test_a_reload_takes_over_reloadable_settings_and_names_the_others(tmp_path: Path) -> None:
    with managed(tmp_path, "") as (program, manager):
        (tmp_path / "registry.toml").write_text(
            'log_level = "debug"\nclaim_ttl_seconds = 5\n[advanced]\nperformance_interval_seconds = 0.2\n'
        )
        program.send(signal.SIGHUP)
        manager.hear_until("RELOADING=1", within_seconds=20)
        manager.hear_until("READY=1", within_seconds=20)
        reloaded = program.await_event("settings_reloaded")
        assert reloaded["changed"] == ["log_level", "performance_interval_seconds"]
        assert reloaded["waiting_for_restart"] == ["claim_ttl_seconds"]
        program.send(signal.SIGTERM)
        assert program.wait(patience(10)) == 0


def test_a_faulty_file_changes_nothing(tmp_path: Path) -> None:
    with managed(tmp_path, "") as (program, manager):
        (tmp_path / "registry.toml").write_text("claim_ttl_second = 5\n")
        program.send(signal.SIGHUP)
        manager.hear_until("READY=1", within_seconds=20)
        assert "claim_ttl_seconds" in program.await_event("settings_not_reloaded")["problem"]
        assert not program.ended


def test_a_registry_suspended_by_a_signal_feeds_no_watchdog(tmp_path: Path) -> None:
    with managed(tmp_path, "") as (program, manager):
        manager.hear_until("WATCHDOG=1", within_seconds=20)
        program.send(signal.SIGSTOP)
        try:
            eventually(lambda: _quiet(manager), within_seconds=10, what="silence")
        finally:
            program.send(signal.SIGCONT)
        manager.hear_until("WATCHDOG=1", within_seconds=20)


def _quiet(manager: ServiceManager) -> bool:
    """Whether no watchdog ping arrives for longer than two intervals."""
    try:
        manager.hear(within_seconds=1.2)
    except TimeoutError:
        return True
    return False


async def test_each_minute_with_failed_dispatches_is_logged_once_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gpu_agent")
    later = 0.0
    clock = Clock(monotonic=lambda: time.monotonic() + later, wall=lambda: time.time() + later)
    settings = ServiceSettings(node_listen=LOOPBACK, thresholds=QUICK, auth_on=False)
    service = RegistryService(settings, MemoryStore(), clock=clock)
    await service.start()
    try:
        async with node(service) as ready:
            await ready.become_ready()
            for number in range(2):
                await service.claim(Job(job_id=f"job-{number}", gpu_count=9))
            log_performance(service)
            assert "dispatch_exclusions" not in caplog.messages
            later = 61.0
            log_performance(service)
            log_performance(service)
    finally:
        await service.stop()
    (line,) = [record for record in caplog.records if record.message == "dispatch_exclusions"]
    fields = line.fields  # type: ignore[attr-defined] # our own log sets it
    assert (fields["failed"], fields["counts"]) == (2, {"gpu_unavailable": 2})
    assert fields["examples"] == {"gpu_unavailable": [ready.node_id]}
    assert fields["last_jobs"] == ("job-0", "job-1")
    assert abs(fields["window_start"] - time.time()) < 90


async def test_the_time_to_choose_a_slot_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gpu_agent")
    service = RegistryService(ServiceSettings(node_listen=LOOPBACK, auth_on=False), MemoryStore())
    service.select(Job(job_id="job-1"))
    log_performance(service)
    (line,) = [record for record in caplog.records if record.message == "performance"]
    assert 0 < line.fields["select_p99_us"] < 1e5  # type: ignore[attr-defined] # as above


def test_thresholds_wait_for_a_restart() -> None:
    assert not reloadable_names(RegistrySettings) & {one.name for one in fields(Thresholds)}
    merged = merge_reloaded(RegistrySettings(), load({"claim_ttl_seconds": 5}))
    assert merged.waiting == ("claim_ttl_seconds",)


async def test_reloadable_settings_are_taken_over() -> None:
    renewed = LiveSettings(RegistrySettings())
    settings = load({"log_level": "debug", "performance_interval_seconds": 7})
    await renewed.take_over(Reloaded(settings, ("log_level", "performance_interval_seconds")))
    assert renewed.performance_interval_seconds == 7
    assert logging.getLogger("gpu_agent").level == logging.DEBUG


async def test_the_certificate_is_read_again_although_no_setting_changed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    renewed = LiveSettings(RegistrySettings())
    renewed.encryption = encryption = Encryption(TlsFiles(own=authority.issue()))
    before = encryption.context
    await renewed.take_over(Reloaded(RegistrySettings()))
    assert encryption.context is not before


LIMIT_PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
from gpu_agent.server.serve import connections_allowed
print(connections_allowed({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def open_files_asked(*, hard: int, wanted: int) -> tuple[int, int]:
    said = subprocess.run(
        [sys.executable, "-c", LIMIT_PROGRAM.format(hard=hard, wanted=wanted)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    room, files = said.split()
    return int(room), int(files)


def test_the_limit_of_open_files_is_raised_and_some_files_are_reserved() -> None:
    assert open_files_asked(hard=4096, wanted=16384) == (4096 - 1024, 4096)
    assert open_files_asked(hard=4096, wanted=1000) == (1000, 4096)


def test_at_least_one_connection_is_allowed() -> None:
    assert open_files_asked(hard=128, wanted=1000) == (1, 128)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_registry_with_too_few_open_files_logs_it() -> None:
    with Registry(environment={"GPU_REGISTRY_MAX_CONNECTIONS": "1000000"}) as registry:
        limited = registry.await_event("connections_limited")
    assert limited["wanted"] == 1_000_000
    assert limited["max_connections"] < 1_000_000


@pytest.mark.parametrize(
    ("listens", "reached"),
    [
        (Address("127.0.0.1", 8081), "http://127.0.0.1:8081"),
        (Address("0.0.0.0", 8081), "http://127.0.0.1:8081"),
        (Address("::", 8081), "http://[::1]:8081"),
        (Address("10.0.0.1", 80), "http://10.0.0.1:80"),
    ],
)
async def test_the_endpoint_file_holds_the_address_that_this_machine_reaches(
    tmp_path: Path, listens: Address, reached: str
) -> None:
    await PublishedEndpoint(tmp_path, listens, None).write()
    assert read_endpoint_file(tmp_path) == Endpoint(reached)


async def test_the_endpoint_file_follows_the_key_and_is_removed_at_the_end(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    own, next_one = authority.issue(), authority.issue()
    assert own.key_file is not None
    assert next_one.key_file is not None
    encryption = Encryption(TlsFiles(own=own))
    left = PublishedEndpoint(tmp_path, Address("127.0.0.1", 8081), encryption)
    await left.write()
    assert read_endpoint_file(tmp_path) == Endpoint(
        "https://127.0.0.1:8081", pin_of(read_certificate_file(own.cert_file))
    )
    next_one.key_file.replace(own.key_file)
    next_one.cert_file.replace(own.cert_file)
    assert await encryption.reload()
    assert read_endpoint_file(tmp_path) == Endpoint(
        "https://127.0.0.1:8081", pin_of(read_certificate_file(own.cert_file))
    )
    staying = asyncio.ensure_future(left.remove_at_end())
    await asyncio.sleep(0)
    staying.cancel()
    await asyncio.wait([staying])
    assert not (tmp_path / ENDPOINT_FILE).exists()


async def test_without_a_directory_no_endpoint_file_is_written() -> None:
    left = PublishedEndpoint(None, Address("127.0.0.1", 8081), None)
    await left.write()
    staying = asyncio.ensure_future(left.remove_at_end())
    await asyncio.sleep(0)
    staying.cancel()
    await asyncio.wait([staying])


async def test_a_disk_that_refuses_the_endpoint_file_or_does_not_answer_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await PublishedEndpoint(tmp_path / "absent", Address("127.0.0.1", 8081), None).write()
    monkeypatch.setattr(own_address, "WRITE_SECONDS", 0.0)
    await PublishedEndpoint(tmp_path, Address("127.0.0.1", 8081), None).write()
    problems = [vars(one)["fields"]["problem"] for one in caplog.records]
    assert problems == ["No such file or directory", "the disk does not answer"]
