"""The registry as a program: facade, operator API, signals and systemd composed on one event loop.

Prints nothing; everything it has to say is a log event. Parses no arguments.
"""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from gpu_agent.runtime import logs, signals
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.reloading import Reloads
from gpu_agent.runtime.sdnotify import Systemd
from gpu_agent.runtime.state_dir import StateDirectoryError, prepare
from gpu_agent.runtime.strays import tell
from gpu_agent.runtime.tasks import Tasks, in_thread
from gpu_agent.runtime.tls_contexts import TlsFileError
from gpu_agent.server.address import Address, bound_address
from gpu_agent.server.first_token import leave_admin_token
from gpu_agent.server.limits import Limits
from gpu_agent.server.open_files import connections_for
from gpu_agent.server.operator.operator import OperatorServer
from gpu_agent.server.own_address import OwnAddress
from gpu_agent.server.reloading import AT_ONCE, Renewed
from gpu_agent.server.report import report
from gpu_agent.server.service import RegistryService
from gpu_agent.server.service_settings import ServiceSettings
from gpu_agent.server.settings import RegistrySettings
from gpu_agent.server.stores import open_store, refuse_anothers
from gpu_agent.server.supervised import attend
from gpu_agent.server.tls import Encryption
from gpu_agent.store.base import Store, StoreError, UnusableError

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

_LOG = EventLog("registry")


@dataclass(frozen=True, slots=True)
class _Started:
    """A registry whose ports answer."""

    service: RegistryService
    operator: OperatorServer
    encryption: Encryption | None
    own_address: OwnAddress
    where: str
    """Its ports, for people."""


async def serve(settings: RegistrySettings, read: Callable[[], RegistrySettings]) -> int:
    """Run until a signal asks to stop; returns the exit code. `read` gives the settings anew.

    Logs `registry_listening(node_listen, operator_listen)` once both ports answer.
    """
    logs.configure(settings.log_level)
    systemd, renewed, stopping = Systemd(os.environ), Renewed(settings), asyncio.Event()
    reloads = Reloads(settings, read=read, at_once=AT_ONCE, take_over=renewed.take_over, systemd=systemd)

    def stop(number: signal.Signals) -> None:
        _LOG.info("registry_stopping", signal=number.name)
        systemd.stopping()
        stopping.set()

    ends_by_hang_up = signals.hang_up_ends()
    leaving = (*signals.STOPPING, *signals.RELOADING) if ends_by_hang_up else signals.STOPPING
    reloading = () if ends_by_hang_up else signals.RELOADING
    with signals.delivered(leaving, stop), signals.delivered(reloading, lambda _: reloads.ask()):
        started = await _start(settings)
        if isinstance(started, int):
            return started
        renewed.encryption = started.encryption
        background = {
            "performance": _tell_performance(started.service, renewed),
            "reloads": reloads.run(),
            "own-address": started.own_address.stay(),
            "supervised": attend(systemd, started.service.vitals, where=started.where),
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
            await leave_admin_token(service.tokens, settings.state_folder)
        listener = settings.operator_listen.bind()
    except (OSError, StoreError, StateDirectoryError) as error:
        _LOG.error("registry_start_failed", problem=_start_problem(settings, error))
        await service.stop()
        return _exit_code(error)
    operator = OperatorServer(service, listener, address=settings.operator_listen, tls=encryption)
    _spare_the_collector()
    folder = settings.state_folder if settings.auth_on else None
    own_address = OwnAddress(folder, bound_address(listener), encryption)
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
    tell(RegistrySettings, os.environ)
    if not settings.auth_on:
        _LOG.warning(
            "registry_checks_no_credentials",
            node_listen=str(settings.node_listen),
            operator_listen=str(settings.operator_listen),
        )
    for name, address in settings.plaintext_listeners.items():
        _LOG.warning("registry_without_tls", listener=name, address=str(address))


async def _run(
    service: RegistryService,
    operator: OperatorServer,
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


async def _tell_performance(service: RegistryService, renewed: Renewed) -> None:
    while True:
        await asyncio.sleep(renewed.performance_interval_seconds)
        report(service)


def _service_settings(settings: RegistrySettings, encryption: Encryption | None) -> ServiceSettings:
    wanted = settings.max_connections
    room = connections_for(wanted)
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
        prepare(settings.state_folder)
        refuse_anothers(settings.state_folder, settings.store)
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
