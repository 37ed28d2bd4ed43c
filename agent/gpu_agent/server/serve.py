"""The registry as a program: service, operator API, signals and systemd on one event loop.

Prints nothing and parses no arguments: everything it has to say is a log event.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_agent.runtime import logs, signals
from gpu_agent.runtime.config.sources import log_unknown_variables
from gpu_agent.runtime.logs import Logger, set_level
from gpu_agent.runtime.reload import Reloaded, SettingsReloader
from gpu_agent.runtime.sdnotify import SystemdNotifier
from gpu_agent.runtime.state_dir import (
    Endpoint,
    StateDirectoryError,
    prepare_state_dir,
    remove_endpoint_file,
    write_endpoint_file,
)
from gpu_agent.runtime.tasks import Tasks, in_thread
from gpu_agent.runtime.tls.contexts import TlsFileError
from gpu_agent.server.address import LOOPBACK, Address, bound_address
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.health import report_to_systemd
from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.server.settings import RegistrySettings
from gpu_agent.server.storage import open_store, refuse_foreign_state_dir
from gpu_agent.server.tls import Encryption
from gpu_agent.server.tokens import write_admin_token
from gpu_agent.store.base import Store, StoreError, UnusableError
from gpu_agent.wire.api import ExclusionsView

# What a running registry takes over when its settings are read again.
#
# How much it logs and how often it tells its own figures hold at once, and its certificate's files are
# read
# again. All else waits for a restart, which no node and no claim is lost by. Reads no settings itself.


RELOADABLE = frozenset({"log_level", "performance_interval_seconds"})
"""The settings that a running registry can take over."""


class LiveSettings:
    """What can change while a registry runs."""

    def __init__(self, settings: RegistrySettings) -> None:
        self.performance_interval_seconds = settings.performance_interval_seconds
        self.encryption: Encryption | None = None
        """Once it is opened, where both ports are encrypted."""

    async def take_over(self, told: Reloaded[RegistrySettings]) -> None:
        """Go on with settings that were read again."""
        self.performance_interval_seconds = told.settings.performance_interval_seconds
        if "log_level" in told.changed:
            set_level(told.settings.log_level)
        if self.encryption is not None:
            await self.encryption.reload()


# Tells commands on this machine where the operators' API is and, encrypted, by which key it is known.
#
# It lies beside the operator token, from the start until the end, and follows a certificate that is
# renewed
# with another key. Without it commands take their usual address: a disk that refuses it is told of, no
# more.


WRITE_SECONDS = 5.0
_ANYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - what is listened on, not what we choose


class PublishedEndpoint:
    """What one registry leaves in its state directory; without one it leaves nothing."""

    def __init__(self, folder: Path | None, address: Address, encryption: Encryption | None) -> None:
        self._folder = folder
        self._address = replace(address, host=_ANYWHERE.get(address.host, address.host))
        self._encryption = encryption
        if encryption is not None:
            encryption.renewed = self.leave

    async def leave(self) -> None:
        """Write it, as it is now."""
        folder = self._folder
        if folder is None:
            return
        scheme, pin = ("http", None) if self._encryption is None else ("https", self._encryption.pin)
        left = Endpoint(f"{scheme}://{self._address}", pin)
        try:
            await in_thread(
                "own-address", lambda: write_endpoint_file(folder, left), deadline_seconds=WRITE_SECONDS
            )
        except TimeoutError:
            _LOG.warning("endpoint_file_not_written", problem="the disk does not answer")
        except OSError as error:
            _LOG.warning("endpoint_file_not_written", problem=error.strerror or str(error))

    async def stay(self) -> None:
        """Wait until cancelled, then remove it: nobody answers there any more."""
        try:
            await asyncio.Event().wait()
        finally:
            if self._folder is not None:
                remove_endpoint_file(self._folder)


# The registry as a program: facade, operator API, signals and systemd composed on one event loop.
#
# Prints nothing; everything it has to say is a log event. Parses no arguments.


EXIT_OK, EXIT_FAILED, EXIT_UNUSABLE_STATE = 0, 1, 4
"""Failures may end by themselves, as when a port or some room becomes free; a person has to mend the rest."""

STOP_SECONDS = 4.0

COLLECTOR_THRESHOLDS = (5_000, 10, 5_000)
"""A beat makes some sixty objects, none of them in a cycle, and frees as many of the beat before
it. At Python's defaults that is answered by more than a hundred collections a second, and each
second or so by a full one, which looks at every object of every node: measured at 5 000 nodes,
a fifth of the core, in pauses of up to 350 ms. What this program lets go of it leaves in no
cycle (the gateway's tests hold it to that), so little is lost by looking seldom. What a whole fleet
that registers leaves behind is looked at twice while it is young, in parts of 5 000 and of 50 000
objects: in parts of a million it took 150 ms at a time."""

_LOG = Logger("registry")


@dataclass(frozen=True, slots=True)
class _Started:
    """A registry whose ports answer."""

    service: RegistryService
    operator: ApiServer
    encryption: Encryption | None
    own_address: PublishedEndpoint
    where: str
    """Its ports, for people."""


async def serve(settings: RegistrySettings, read: Callable[[], RegistrySettings]) -> int:
    """Run until a signal asks to stop; returns the exit code. `read` gives the settings anew.

    Logs `registry_listening(node_listen, operator_listen)` once both ports answer.
    """
    logs.configure(settings.log_level)
    systemd, renewed, stopping = SystemdNotifier(os.environ), LiveSettings(settings), asyncio.Event()
    reloads = SettingsReloader(
        settings, read=read, at_once=RELOADABLE, take_over=renewed.take_over, systemd=systemd
    )

    def stop(number: signal.Signals) -> None:
        _LOG.info("registry_stopping", signal=number.name)
        systemd.stopping()
        stopping.set()

    ends_by_hang_up = signals.terminal_attached()
    leaving = (*signals.STOPPING, *signals.RELOADING) if ends_by_hang_up else signals.STOPPING
    reloading = () if ends_by_hang_up else signals.RELOADING
    with signals.signals_to_loop(leaving, stop), signals.signals_to_loop(reloading, lambda _: reloads.ask()):
        started = await _start(settings)
        if isinstance(started, int):
            return started
        renewed.encryption = started.encryption
        background = {
            "performance": _tell_performance(started.service, renewed),
            "reloads": reloads.run(),
            "own-address": started.own_address.stay(),
            "supervised": report_to_systemd(systemd, started.service.health, where=started.where),
        }
        if started.encryption is not None:
            background["certificate"] = started.encryption.watch()
        systemd.ready()
        await _run(started.service, started.operator, stopping, background=background)
    _LOG.info("registry_stopped")
    return EXIT_OK


async def _start(settings: RegistrySettings) -> _Started | int:
    """Open what the registry needs; an exit code where it cannot be had, which is logged."""
    try:
        encryption, store = await in_thread("store", lambda: _opened(settings), deadline_seconds=None)
    except (StoreError, StateDirectoryError, TlsFileError) as error:
        _LOG.error("registry_start_failed", problem=str(error))
        return _exit_code(error)
    service = RegistryService(_service_settings(settings, encryption), store)
    try:
        with _collector_at_rest():
            await service.start()
        if settings.auth_on:
            await write_admin_token(service.tokens, settings.state_folder)
        listener = settings.operator_listen.bind()
    except (OSError, StoreError, StateDirectoryError) as error:
        _LOG.error("registry_start_failed", problem=_start_problem(settings, error))
        await service.stop()
        return _exit_code(error)
    operator = ApiServer(service, listener, address=settings.operator_listen, tls=encryption)
    _spare_the_collector()
    folder = settings.state_folder if settings.auth_on else None
    own_address = PublishedEndpoint(folder, bound_address(listener), encryption)
    await own_address.leave()
    nodes, operators = str(service.node_address), str(bound_address(listener))
    _LOG.info(
        "registry_listening",
        node_listen=nodes,
        operator_listen=operators,
        encrypted=encryption is not None,
        pin=None if encryption is None else encryption.pin,
    )
    _warn(settings)
    return _Started(service, operator, encryption, own_address, f"nodes at {nodes}, operators at {operators}")


def _warn(settings: RegistrySettings) -> None:
    """Say plainly what lets others in, or lets them listen, and which variables are passed over."""
    log_unknown_variables(RegistrySettings, os.environ)
    if not settings.auth_on:
        _LOG.warning(
            "registry_auth_disabled",
            node_listen=str(settings.node_listen),
            operator_listen=str(settings.operator_listen),
        )
    for name, address in settings.plaintext_listeners.items():
        _LOG.warning("registry_listens_plaintext", listener=name, address=str(address))


async def _run(
    service: RegistryService,
    operator: ApiServer,
    stopping: asyncio.Event,
    *,
    background: Mapping[str, Coroutine[None, None, None]],
) -> None:
    async with Tasks() as tasks:
        serving = tasks.start("operator-api", operator.serve())
        for name, work in background.items():
            tasks.start(name, work)
        await stopping.wait()
        operator.stop()
        async with asyncio.timeout(STOP_SECONDS):
            await service.stop()
            await asyncio.wait([serving])
        tasks.end()


async def _tell_performance(service: RegistryService, renewed: LiveSettings) -> None:
    while True:
        await asyncio.sleep(renewed.performance_interval_seconds)
        log_performance(service)


def _service_settings(settings: RegistrySettings, encryption: Encryption | None) -> ServiceSettings:
    wanted = settings.max_connections
    room = connections_allowed(wanted)
    if room < wanted:
        _LOG.warning("connections_limited", max_connections=room, wanted=wanted)
    return ServiceSettings(
        node_listen=settings.node_listen,
        thresholds=settings.thresholds,
        limits=Limits(
            max_connections=room,
            registration_timeout_seconds=settings.registration_timeout_seconds,
        ),
        allow_simulated=settings.allow_simulated,
        auth_on=settings.auth_on,
        tls=encryption,
        plaintext=bool(settings.plaintext_listeners),
    )


def _opened(settings: RegistrySettings) -> tuple[Encryption | None, Store]:
    """Read the certificate; open what keeps the state, in a directory that is safe where one is needed."""
    encryption = None if settings.tls_files is None else Encryption(settings.tls_files)
    if settings.auth_on:
        prepare_state_dir(settings.state_folder)
        refuse_foreign_state_dir(settings.state_folder, settings.store)
    return encryption, open_store(settings.store, settings.state_folder)


def _exit_code(error: OSError | StoreError | StateDirectoryError | TlsFileError) -> int:
    to_mend = UnusableError | StateDirectoryError | TlsFileError
    return EXIT_UNUSABLE_STATE if isinstance(error, to_mend) else EXIT_FAILED


def _start_problem(settings: RegistrySettings, error: OSError | StoreError | StateDirectoryError) -> str:
    if isinstance(error, StoreError | StateDirectoryError):
        return str(error)
    wanted: tuple[Address, ...] = (settings.node_listen, settings.operator_listen)
    return (
        f"cannot listen on {' and '.join(map(str, wanted))}: {error.strerror or error}; "
        "is another registry running? Choose other ports with --node-listen and --operator-listen"
    )


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Collect nothing while the fleet is taken back: it only grows, and would be looked through all the time.

    Measured with 6 000 nodes, that takes two thirds of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _spare_the_collector() -> None:
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


# What the registry logs of itself in regular intervals: how it does, and what dispatches failed on (§8).


def log_performance(service: RegistryService) -> None:
    """Log the figures since the last report, and each minute that ended since with failed dispatches."""
    figures, size = service.performance(), service.size
    _LOG.info(
        "performance",
        beats_per_second=figures.beats_per_second,
        loop_lag_ms=figures.loop_lag_ms,
        loop_lag_p50_ms=figures.loop_lag_p50_ms,
        loop_lag_p99_ms=figures.loop_lag_p99_ms,
        select_p99_us=figures.select_p99_us,
        nodes=size.nodes,
        connections=size.connections,
    )
    for minute in service.finished_exclusions():
        _report_exclusions(minute)


def _report_exclusions(minute: ExclusionsView) -> None:
    _LOG.info(
        "dispatch_exclusions",
        window_start=minute.window_start,
        failed=minute.failed,
        counts=minute.counts,
        examples={reason: [one.node_id for one in nodes] for reason, nodes in minute.examples.items()},
        last_jobs=minute.last_jobs,
    )


# How many files this process may have open, and how many of them are left for nodes.
#
# Every node is a socket, and a registry that has run out of files can open neither its store nor its
# log. Decides no limit itself: the system has the last word.


if sys.platform != "win32":
    import resource

RESERVED_FILES = 512
"""For the store, operators, and peers that are told that there is no room."""


def connections_allowed(wanted: int) -> int:
    """Raise the limit of open files as far as we may, and return how many connections it leaves room for.

    Often it is 1 024 at first, and more may be had for the asking.
    """
    if sys.platform == "win32":
        return wanted
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return wanted if hard == resource.RLIM_INFINITY else max(1, min(wanted, hard - RESERVED_FILES))
