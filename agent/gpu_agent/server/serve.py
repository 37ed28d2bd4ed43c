"""The registry as a program: service, operator API, signals and systemd on one event loop.

Prints nothing and parses no arguments: everything it has to say is a log event.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_agent.runtime import logs, signals
from gpu_agent.runtime.address import LOOPBACK, Address, bound_address
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
from gpu_agent.runtime.tls.contexts import (
    RenewableContext,
    TlsFileError,
    client_context,
    server_context,
    show_renewed,
)
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.collector import collector_paused, tune_the_collector
from gpu_agent.server.event_loop import loop_factory
from gpu_agent.server.gateway.instance_links import Instance
from gpu_agent.server.health import report_to_systemd, status_line
from gpu_agent.server.leadership.forward import Forwarder
from gpu_agent.server.leadership.instance import InstanceSettings, RegistryInstance
from gpu_agent.server.limits import Limits
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.server.settings import RegistrySettings
from gpu_agent.server.storage import (
    EtcdLocation,
    etcd_access,
    etcd_tls,
    open_store,
    parse_location,
    refuse_foreign_state_dir,
)
from gpu_agent.server.tls import Encryption, RenewedCertificate
from gpu_agent.server.tokens import write_admin_token
from gpu_agent.store.base import StoreError, UnusableError

if sys.platform != "win32":
    import resource

EXIT_OK, EXIT_FAILED, EXIT_UNUSABLE_STATE = 0, 1, 4
"""A failure may end by itself, as when a port or disk space becomes free; an unusable state does not."""


STOP_SECONDS = 4.0
WRITE_SECONDS = 5.0

RESERVED_FILES = 1024
"""Open files for the store, operators, and peers that are refused because the registry is full."""

SWITCH_SECONDS = 0.0005
"""How long a thread that wants Python's lock waits for it. The store's thread needs it some twenty times for
a transaction, and a loop that is busy with thousands of registrations gives it only when it is asked: with
Python's default, ten times as long, a transaction of etcd took 75 ms instead of 13."""

_ANY_ADDRESS = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - what is listened on, not what we choose
_LOG = Logger("registry")


def run(settings: RegistrySettings, read: Callable[[], RegistrySettings]) -> int:
    """Serve on an event loop of its own, uvloop's where that is installed; returns the exit code."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(serve(settings, read))


async def serve(settings: RegistrySettings, read: Callable[[], RegistrySettings]) -> int:
    """Run until a signal; returns the exit code. `read` reads the settings again.

    Logs `registry_listening(node_listen, operator_listen)` once both ports answer.
    """
    logs.configure(settings.log_level)
    systemd, live, stopping = SystemdNotifier(os.environ), LiveSettings(settings), asyncio.Event()
    reloads = SettingsReloader(settings, read=read, take_over=live.take_over, systemd=systemd)

    def stop(number: signal.Signals) -> None:
        _LOG.info("registry_stopping", signal=number.name)
        systemd.stopping()
        stopping.set()

    attached = signals.terminal_attached()  # a hang-up ends a program in a terminal
    ending = (*signals.STOPPING, *signals.RELOADING) if attached else signals.STOPPING
    reloading = () if attached else signals.RELOADING
    with (
        signals.signals_to_loop(ending, stop),
        signals.signals_to_loop(reloading, lambda _: reloads.request()),
    ):
        started = await _start(settings, systemd)
        if isinstance(started, int):
            return started
        live.encryption, live.service = started.encryption, started.service()
        live.reload_receivers = started.reload_receivers
        background = {
            **started.tasks,
            "performance": _log_performance_at_intervals(started.service, live),
            "reloads": reloads.run(),
            "endpoint-file": started.endpoint.remove_at_end(),
            "systemd": report_to_systemd(
                systemd,
                status_line=lambda: _status_line(started, reloads),
                find_problem=started.find_problem,
            ),
        }
        if started.encryption is not None:
            background["certificate"] = started.encryption.watch()
        systemd.ready()
        await _run(started, stopping, background=background)
    _LOG.info("registry_stopped")
    return EXIT_OK


def _status_line(started: "_Started", reloads: SettingsReloader[RegistrySettings]) -> str:
    """Say in a line how the registry is: first what an operator has to fix."""
    certificate = None if started.encryption is None else started.encryption.problem
    return "; ".join(filter(None, (reloads.attention, certificate, started.status_line())))


class LiveSettings:
    """What can change while a registry runs: the reloadable settings, and the certificate's files."""

    def __init__(self, settings: RegistrySettings) -> None:
        self.performance_interval_seconds = settings.performance_interval_seconds
        self.service: RegistryService | None = None
        """Set once it runs."""
        self.encryption: Encryption | None = None
        """Set once it is opened, where both ports are encrypted."""
        self.reload_receivers: Callable[[tuple[ReceiverSettings, ...]], None] = lambda _: None
        """Set once it runs."""

    async def take_over(self, reloaded: Reloaded[RegistrySettings]) -> None:
        """Use settings that were read again."""
        self.performance_interval_seconds = reloaded.settings.performance_interval_seconds
        if "log_level" in reloaded.changed:
            set_level(reloaded.settings.log_level)
        if self.encryption is not None:
            await self.encryption.reload()
        if self.service is not None:
            self.service.reload_gateways(reloaded.settings.log_level)
        self.reload_receivers(reloaded.settings.notify)


class PublishedEndpoint:
    """The endpoint file in the state directory: commands on this machine find the operators' API by it.

    It holds the API's URL and, with TLS, the pin of its key, and follows a certificate that is renewed with
    another key. Without it commands use the default address, so a disk that refuses it is logged and no more.
    """

    def __init__(self, folder: Path | None, address: Address, encryption: Encryption | None) -> None:
        """Write nothing where there is no `folder`."""
        self._folder = folder
        self._address = replace(address, host=_ANY_ADDRESS.get(address.host, address.host))
        self._encryption = encryption
        if encryption is not None:
            encryption.renewed = self.write

    async def write(self) -> None:
        """Write the file as it must be now."""
        folder = self._folder
        if folder is None:
            return
        scheme, pin = ("http", None) if self._encryption is None else ("https", self._encryption.pin)
        endpoint = Endpoint(f"{scheme}://{self._address}", pin)
        try:
            await in_thread(
                "endpoint-file", lambda: write_endpoint_file(folder, endpoint), deadline_seconds=WRITE_SECONDS
            )
        except TimeoutError:
            _LOG.warning("endpoint_file_not_written", problem="the disk does not answer")
        except OSError as error:
            _LOG.warning("endpoint_file_not_written", problem=error.strerror or str(error))

    async def remove_at_end(self) -> None:
        """Wait until cancelled, then remove the file."""
        try:
            await asyncio.Event().wait()
        finally:
            if self._folder is not None:
                remove_endpoint_file(self._folder)


def log_performance(service: RegistryService) -> None:
    """Log the period's figures (§8), and each minute with failed dispatches that ended in it."""
    figures, size = service.performance(), service.size
    _LOG.info(
        "performance",
        beats_per_second=figures.heartbeats_per_second,
        loop_lag_ms=figures.loop_lag_ms,
        loop_lag_p50_ms=figures.loop_lag_p50_ms,
        loop_lag_p99_ms=figures.loop_lag_p99_ms,
        select_p99_us=figures.select_p99_us,
        commit_p99_ms=figures.commit_p99_ms,
        nodes=size.nodes,
        connections=size.connections,
    )
    for minute in service.finished_exclusions():
        _LOG.info(
            "dispatch_exclusions",
            window_start=minute.window_start,
            failed=minute.failed,
            counts=minute.counts,
            examples={reason: [one.node_id for one in nodes] for reason, nodes in minute.examples.items()},
            last_jobs=minute.last_jobs,
        )


def connections_allowed(wanted: int, *, processes: int = 1) -> int:
    """Raise the limit of open files as far as possible; returns how many connections so many processes hold.

    Every node is a socket, and a registry without free files can open neither its store nor its log. The
    usual soft limit is 1 024; the hard limit is higher.
    """
    if sys.platform == "win32":
        return wanted
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = max(1, hard - RESERVED_FILES) * processes
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, room)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """A registry whose ports answer, or one instance of several."""

    service: Callable[[], RegistryService | None]
    """Returns the registry that this process is; None while it is a standby."""
    api: ApiServer
    encryption: Encryption | None
    endpoint: PublishedEndpoint
    status_line: Callable[[], str]
    stop: Callable[[], Awaitable[None]]
    reload_receivers: Callable[[tuple[ReceiverSettings, ...]], None]
    tasks: Mapping[str, Coroutine[None, None, None]] = field(default_factory=dict)

    def find_problem(self, now: float) -> str | None:
        """Return what has stalled, as a sentence; None while there is progress."""
        service = self.service()
        return None if service is None else service.health.liveness_problem(now)


async def _log_performance_at_intervals(
    service: Callable[[], RegistryService | None], live: LiveSettings
) -> None:
    while True:
        await asyncio.sleep(live.performance_interval_seconds)
        if (leading := service()) is not None:
            log_performance(leading)


async def _start(settings: RegistrySettings, systemd: SystemdNotifier) -> _Started | int:
    """Open what the registry needs; returns an exit code where that failed, which is logged."""
    location = parse_location(settings.store, settings.state_folder)
    try:
        if isinstance(location, EtcdLocation):
            return await _start_instance(settings, location)
        return await _start_alone(settings)
    except (OSError, StoreError, StateDirectoryError, TlsFileError) as error:
        problem = _start_problem(settings, error)
        _LOG.error("registry_start_failed", problem=problem)
        systemd.ended(problem)
        return _exit_code(error)


async def _start_alone(settings: RegistrySettings) -> _Started:
    """Start a registry that is this process, with its gateways; raises what `_start` logs."""
    encryption = await in_thread("store", lambda: _secured(settings), deadline_seconds=None)
    folder = settings.state_folder
    store = await in_thread("store", lambda: open_store(settings.store, folder), deadline_seconds=None)
    service = RegistryService(_service_settings(settings, encryption), store)
    try:
        with collector_paused():
            await service.start()
        if settings.auth_on:
            await write_admin_token(service.tokens, settings.state_folder)
        listener = settings.operator_listen.bind()
    except (OSError, StoreError, StateDirectoryError):
        await service.stop()
        raise
    api = ApiServer(service, listener, address=settings.operator_listen, tls=encryption)
    endpoint, addresses = await _listening(
        settings, service.node_address, bound_address(listener), encryption=encryption
    )
    return _Started(
        service=lambda: service,
        api=api,
        encryption=encryption,
        endpoint=endpoint,
        status_line=lambda: status_line(service.health, addresses),
        stop=service.stop,
        reload_receivers=service.notifier.start,
    )


async def _start_instance(settings: RegistrySettings, location: EtcdLocation) -> _Started:
    """Start one instance of a registry on etcd; raises what `_start` logs."""
    encryption = await in_thread("store", lambda: _secured(settings), deadline_seconds=None)
    listener = settings.operator_listen.bind()
    operators = bound_address(listener)
    tls = await in_thread("store", lambda: etcd_tls(settings.etcd_security), deadline_seconds=None)
    instance_settings = await in_thread(
        "store",
        lambda: _instance_settings(settings, location, encryption, api_port=operators.port, etcd=tls),
        deadline_seconds=None,
    )

    async def began(service: RegistryService, may_answer: Callable[[], bool]) -> None:
        if settings.auth_on:
            await write_admin_token(service.tokens, settings.state_folder)
        forwarder.cut_off()
        api.attach(service, may_answer=may_answer)

    instance = RegistryInstance(
        instance_settings,
        _service_settings(settings, encryption),
        began=began,
        ended=lambda: api.detach(),  # noqa: PLW0108 - it is made below
    )
    forwarder = Forwarder(instance.leader_api, own=settings.instance_certificate)
    api = ApiServer(
        None,
        listener,
        address=settings.operator_listen,
        tls=encryption,
        instance=instance.answers(forwarder, auth_on=settings.auth_on),
    )
    try:
        node_address = await instance.start()
    except (OSError, StoreError):
        listener.close()
        raise
    endpoint, addresses = await _listening(settings, node_address, operators, encryption=encryption)

    async def renewed() -> None:
        await endpoint.write()
        instance.announce(None if encryption is None else encryption.pin)

    if encryption is not None:
        encryption.renewed = renewed

    async def stop() -> None:
        await instance.stop()
        await forwarder.close()

    return _Started(
        service=lambda: instance.service,
        api=api,
        encryption=encryption,
        endpoint=endpoint,
        status_line=lambda: f"{instance.state_words()}; {addresses}",
        stop=stop,
        reload_receivers=instance.reload_receivers,
        tasks={**instance.tasks(), **_renewals(settings, instance_settings, forwarder, etcd=tls)},
    )


def _renewals(
    settings: RegistrySettings,
    instance: InstanceSettings,
    forwarder: Forwarder,
    *,
    etcd: RenewableContext | None,
) -> Mapping[str, Coroutine[None, None, None]]:
    """Follow the files of the certificates that this instance shows to the others and to etcd."""
    of_instance, of_etcd = settings.instance_certificate, settings.etcd_security.own
    tasks = {}
    if of_instance is not None:

        def show_to_instances() -> None:
            used = (instance.link_server_tls, instance.link_client_tls, *forwarder.contexts)
            show_renewed(of_instance, [one for one in used if one is not None])

        tasks["instance-certificate"] = RenewedCertificate(of_instance, show_to_instances).watch()
    if of_etcd is not None and etcd is not None:
        tasks["etcd-certificate"] = RenewedCertificate(of_etcd, etcd.renew).watch()
    return tasks


async def _listening(
    settings: RegistrySettings, node_address: Address, operators: Address, *, encryption: Encryption | None
) -> tuple[PublishedEndpoint, str]:
    """Publish where both ports answer; returns that also for people."""
    tune_the_collector()
    folder = settings.state_folder if settings.auth_on else None
    endpoint = PublishedEndpoint(folder, operators, encryption)
    await endpoint.write()
    _LOG.info(
        "registry_listening",
        node_listen=str(node_address),
        operator_listen=str(operators),
        encrypted=encryption is not None,
        pin=None if encryption is None else encryption.pin,
    )
    _warn(settings)
    return endpoint, f"nodes at {node_address}, operators at {operators}"


def _warn(settings: RegistrySettings) -> None:
    """Log what lets others in or lets them read tokens, and which variables are ignored."""
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
    started: _Started, stopping: asyncio.Event, *, background: Mapping[str, Coroutine[None, None, None]]
) -> None:
    async with Tasks() as tasks:
        serving = tasks.start("operator-api", started.api.serve())
        for name, work in background.items():
            tasks.start(name, work)
        await stopping.wait()
        started.api.stop()
        async with asyncio.timeout(STOP_SECONDS):
            await started.stop()
            await asyncio.wait([serving])
        tasks.end()


def _service_settings(settings: RegistrySettings, encryption: Encryption | None) -> ServiceSettings:
    wanted = settings.max_connections
    room = connections_allowed(wanted, processes=max(1, settings.gateways))
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
        gateways=settings.gateways,
        log_level=settings.log_level,
        receivers=settings.notify,
        insecure_plaintext=settings.insecure_plaintext,
    )


def _secured(settings: RegistrySettings) -> Encryption | None:
    """Read the certificate; the state directory must be safe where it is needed."""
    encryption = None if settings.tls_files is None else Encryption(settings.tls_files)
    if settings.auth_on:
        prepare_state_dir(settings.state_folder)
        refuse_foreign_state_dir(settings.state_folder, settings.store)
    return encryption


def _instance_settings(
    settings: RegistrySettings,
    location: EtcdLocation,
    encryption: Encryption | None,
    *,
    api_port: int,
    etcd: RenewableContext | None,
) -> InstanceSettings:
    """Say what this instance is, and read the certificate that it shows to the others."""
    api, own = replace(settings.operator_listen, port=api_port), settings.instance_certificate
    if api.is_loopback or api.is_wildcard:
        api = replace(api, host=settings.instance_listen.host)
    authority = settings.instance_ca_file
    return InstanceSettings(
        own=Instance(
            name=settings.instance_name or socket.gethostname(),
            since=time.time(),
            link=settings.instance_listen,
            api=f"{'http' if encryption is None else 'https'}://{api}",
            pin=None if encryption is None else encryption.pin,
            auth_on=settings.auth_on,
        ),
        access=etcd_access(location, settings.etcd_security, etcd),
        prefix=location.prefix,
        link_server_tls=None if own is None else server_context(own, client_ca_file=authority),
        link_client_tls=None if own is None else client_context(ca_file=authority, own=own),
    )


def _exit_code(error: OSError | StoreError | StateDirectoryError | TlsFileError) -> int:
    unusable = UnusableError | StateDirectoryError | TlsFileError
    return EXIT_UNUSABLE_STATE if isinstance(error, unusable) else EXIT_FAILED


def _start_problem(
    settings: RegistrySettings, error: OSError | StoreError | StateDirectoryError | TlsFileError
) -> str:
    if not isinstance(error, OSError):
        return str(error)
    wanted: tuple[Address, ...] = (settings.node_listen, settings.operator_listen)
    return (
        f"cannot listen on {' and '.join(map(str, wanted))}: {error.strerror or error}; "
        "is another registry running? Choose other ports with --node-listen and --operator-listen"
    )
