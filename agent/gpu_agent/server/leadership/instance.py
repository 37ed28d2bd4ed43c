"""One of several instances of a registry on etcd: a gateway and a standby, and at times the leader.

A key in etcd names the leader. An instance that finds no such key creates it, opens the store under that
lease, restores the fleet from its own copy, and accepts the links of all gateways, its own among them. It
leads only while it is certain of its lease; then it drops the fleet and is a standby again. No node
connection moves: the gateways hold them.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from urllib.parse import urlsplit

from gpu_agent.registry.tokens import Credential
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.state_dir import StateDirectoryError
from gpu_agent.runtime.tasks import Tasks, in_thread
from gpu_agent.server.api.instance import InstanceAnswers
from gpu_agent.server.collector import collector_paused
from gpu_agent.server.gateway.gateway import Gateway
from gpu_agent.server.gateway.instance_links import Instance, Lead
from gpu_agent.server.health import Size
from gpu_agent.server.leadership.follower import Follower, Leader, check_auth, instance_document
from gpu_agent.server.leadership.forward import Forwarder, LeaderApi
from gpu_agent.server.leadership.leader_link import LeaderLink, LinkIdentity, is_listening
from gpu_agent.server.metrics import InstanceFigures, instance_exposition
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.store.base import StoreError
from gpu_agent.store.etcd.client import (
    Access,
    EtcdClient,
    EtcdError,
    KeyValue,
)
from gpu_agent.store.etcd.lease import Lease, LeaseHeldError
from gpu_agent.store.etcd.store import EtcdStore, check_cluster, store_error
from gpu_agent.wire.api import CheckView, MemberRole, MemberView
from gpu_agent.wire.codes import CloseCode

LOOK_SECONDS = 0.5
"""The interval at which etcd is asked who leads, besides the watch."""
LEASE_LOOK_SECONDS = 0.1
"""The interval at which a leader checks whether it still leads; each request checks that itself."""
ALONE_SECONDS = 10.0
"""A gateway that does not reach a leader which etcd names closes its node connections after this time."""
LOADING_SECONDS = 30.0
"""A new leader is named before it has loaded its fleet and accepts links. For so long a gateway waits for it,
as long as it is reached: nodes that were sent away would have to register again, all at a time."""
UNREACHED_SECONDS = 6.0
"""A leader that no gateway reaches, not even its own, lets another instance lead after this time: before the
gateways close their node connections."""
MOST_APART_SECONDS = 30.0
"""An instance whose wall clock differs more from the leader's is no candidate."""
DOUBTFUL_COPY_SECONDS = 1.0
"""From then on a copy that is behind proves no token: the streams of a revoked one end within a second."""
UNCONFIRMED_COPY_SECONDS = 3.0
"""Where neither etcd nor the leader has said anything for so long, a copy proves no token either."""
_NAME_SECONDS = 7.0
"""How long etcd may still hold the name of an instance that was killed."""
_NAMED_SECONDS = 3.0
"""An answer of etcd about the leader is valid for this time. That is less than a leader's lease, which ends
where etcd no longer answers."""
_PAUSE_SECONDS = 0.2
_FAILED_SECONDS = 5.0
"""An instance that failed to become leader lets the others try for this time."""
_END_SECONDS = 1.5
"""How long `stop` waits for a call to etcd, or for a slow disk."""
_APART_SECONDS = 10.0
"""An instance whose clock differs lets the others lead for this time; no leader at all would be worse."""
_PREPARE_SECONDS = 0.02
"""A standby reads documents in slices of a quarter of this: it has nodes to serve, too."""
_COPY_SECONDS = 2.0
"""How long a new leader waits for its own copy; then it reads all from etcd."""

_LOG = Logger("server.leadership")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSettings:
    """The settings of one instance, besides those of a registry."""

    own: Instance
    access: Access
    prefix: str
    link_server_tls: ssl.SSLContext | None
    link_client_tls: ssl.SSLContext | None


class RegistryInstance:
    """One instance, from `start` to `stop`; between them its `tasks` run."""

    def __init__(
        self,
        settings: InstanceSettings,
        service_settings: ServiceSettings,
        *,
        began: Callable[[RegistryService, Callable[[], bool]], Awaitable[None]],
        ended: Callable[[], None],
    ) -> None:
        """`began` is awaited once it leads, with a check whether it still does; `ended` is called after."""
        self._settings, self._service_settings = settings, service_settings
        self.own = settings.own
        """Its description in etcd."""
        self._began, self._led_to_end = began, ended
        self.service: RegistryService | None = None
        """Set while it leads."""
        self._client = EtcdClient(settings.access)
        prefix = settings.prefix
        name_key = f"{prefix}/members/{self.own.name}".encode()
        self._name = Lease(self._client, name_key, holder=instance_document(self.own))
        self._leader_key = f"{prefix}/leader".encode()
        self._changes, self._link_changes = asyncio.Event(), asyncio.Event()
        self._renewed = asyncio.Event()  # set while etcd may hold an older description of this instance
        self._follower = Follower(self._client, prefix, service_settings.thresholds, changed=self._changed)
        self._gateway = Gateway(
            service_settings.limits, service_settings.thresholds, encryption=service_settings.tls
        )
        self._link: LeaderLink | None = None
        self._unlinked_because = ""  # when a link was tried last
        self._named_at = self._etcd_answered_at = -inf
        """When etcd itself named a leader last, or said that there is none; monotonic seconds, as below."""
        self._doubtful_since: float | None = None
        """Since when etcd has not said whether there is a leader."""
        self._vacant_since: float | None = None
        self._apart_seconds = 0.0
        """How far the wall clock of the last leader was from this machine's."""
        self._name_taken = False
        """Whether another instance has this one's name."""
        self._alone = True
        """Whether it has had no link to any leader yet, or was without for `ALONE_SECONDS`."""
        self._leading: Lease | None = None
        self._led: Lease | None = None
        """That of its last term, or of its last try."""
        self._etcd_problem = self._lead_problem = ""  # of the last call, and of the last try
        self._leave_until = 0.0
        """Until when it lets the others lead; monotonic seconds."""
        self._stopping, self._takeovers = False, 0
        self._takeover_seconds: float | None = None
        self._at_rest = asyncio.Event()
        """Set while it neither leads nor tries to."""
        self._at_rest.set()

    def leader_api(self) -> LeaderApi | None:
        """Return where the API of the instance that leads is; None where that is not known, or this one."""
        leader, secret = self._follower.leader, self._follower.secret
        if leader is None or secret is None or leader.instance.name == self.own.name:
            return None
        return LeaderApi(leader.instance.api, leader.instance.pin, secret)

    def reload_receivers(self, receivers: tuple[ReceiverSettings, ...]) -> None:
        """Send alarms to these while it leads, now or later."""
        self._service_settings = replace(self._service_settings, receivers=receivers)
        if self.service is not None:
            self.service.notifier.start(receivers)

    def announce(self, pin: str | None) -> None:
        """Publish the pin of a renewed key to the others, as soon as etcd takes it."""
        self.own = replace(self.own, pin=pin)
        self._renewed.set()

    def answers(self, elsewhere: Forwarder, *, auth_on: bool) -> InstanceAnswers:
        """Return what answers this instance's API; `elsewhere` answers the leader's part while it follows."""
        return InstanceAnswers(
            elsewhere=elsewhere,
            size=lambda: Size(nodes=self._follower.nodes, connections=self._gateway.connections.size),
            readiness=self.readiness,
            metrics=lambda: instance_exposition(self._figures()),
            is_linked=lambda: self.is_linked,
            members=self._members_by_copy,
            authenticate=self._operator if auth_on else None,
            event_log=self._follower.event_log,
            copy_is_current=self._copy_is_current,
            secret=lambda: self._follower.secret,
        )

    def state_words(self) -> str:
        """Describe what this instance does in a few words, for its status line."""
        failing = [check.detail for check in self.readiness() if not check.ok]
        if failing:
            return failing[0]
        held = self._gateway.connections.size
        if self.service is not None:
            leads = f"leads {self.service.size.nodes} nodes, {held} connected here"
            return "; ".join(filter(None, (self.service.notifier.problem, leads)))
        leader = self._follower.leader
        follows = "nobody" if leader is None else leader.instance.name
        stands_by = f"standby of {follows}, {held} nodes connected here"
        return "; ".join(filter(None, (self._etcd_problem, self._lead_problem, stands_by)))

    @property
    def is_linked(self) -> bool:
        """Whether the leader has accepted this instance."""
        return self._link is not None and self._link.is_linked

    def readiness(self) -> tuple[CheckView, ...]:
        """Check whether nodes may connect to this instance.

        It stays so while another takes the lead, or none can: a load balancer would end the connections that
        it holds then.
        """
        linked = self.is_linked
        detail = "the leader is linked" if linked else self._link_problem()
        closed = self._gateway.listener.closed_reason
        return (
            CheckView(name="leader", ok=linked or not (self._alone or self._name_taken), detail=detail),
            CheckView(
                name="nodes",
                ok=closed is None,
                detail="nodes may register" if closed is None else f"the registry {closed}",
            ),
            *(() if self.service is None else self.service.health.alarms()),
        )

    async def start(self) -> Address:
        """Open the nodes' port and take the name; raises `OSError`, `StoreError`."""
        at = await self._gateway.listener.listen(self._service_settings.node_listen)
        try:
            await in_thread("name", self._take_name, deadline_seconds=None)
        except (EtcdError, StoreError) as error:
            await self.stop()
            raise self._start_error(error) from error
        self._follower.start()
        await self._gateway.listener.admit()
        return at

    def tasks(self) -> Mapping[str, Coroutine[None, None, None]]:
        """Return what runs until `stop`."""
        return {
            "campaign": self._campaign(),
            "name": self._hold_name(),
            "leader-link": self._stay_linked(),
            "gateway-rows": self._gateway.send_rows(),
            "prepared-nodes": self._prepare_nodes(),
        }

    async def stop(self) -> None:
        """Stop leading, close all node connections, and release the name."""
        self._stopping = True
        self._changes.set()
        await _wait(self._at_rest, _END_SECONDS)
        self._follower.stop()
        async with Tasks() as tasks:
            tasks.start("name", self._give_the_name_back())
            await self._gateway.listener.stop()
        self._client.close()

    async def _give_the_name_back(self) -> None:
        with suppress(TimeoutError):  # it ends with its lease
            await in_thread("name", self._name.release, deadline_seconds=_END_SECONDS)

    def _figures(self) -> InstanceFigures:
        link = self._link if self.is_linked else None
        return InstanceFigures(
            leads=self.service is not None,
            linked=link is not None,
            term=self._follower.term,
            node_connections=self._gateway.connections.size,
            takeovers=self._takeovers,
            takeover_seconds=self._takeover_seconds,
            link_silent_seconds=None if link is None else link.silent_seconds,
            copy_lag_seconds=None if link is None else link.lag_seconds,
        )

    def _operator(self, token: str) -> Credential | None:
        """Authenticate an operator; None, too, where the token may be revoked and the copy not know it."""
        return self._follower.operator(token) if self._copy_is_confirmed() else None

    def _copy_is_confirmed(self) -> bool:
        """Whether the copy is so fresh that a token which it holds proves something."""
        link, silent_seconds = self._link, time.monotonic() - self._etcd_answered_at
        if link is not None and link.is_linked:
            if link.lag_seconds > DOUBTFUL_COPY_SECONDS:
                return False
            silent_seconds = min(silent_seconds, link.silent_seconds)
        return silent_seconds <= UNCONFIRMED_COPY_SECONDS

    def _copy_is_current(self) -> bool:
        link = self._link
        is_level = link is not None and link.is_linked and link.lag_seconds == 0.0
        return is_level and self._copy_is_confirmed()

    def _members_by_copy(self) -> tuple[MemberView, ...]:
        """Return all instances that etcd names, and the leader where etcd named it just now."""
        own, held = self.own.name, self._gateway.connections.size
        is_named = time.monotonic() - self._named_at <= _NAMED_SECONDS
        leader = self._follower.leader if is_named else None
        views = []
        for one in self._follower.instances():
            leads = leader is not None and one.name == leader.instance.name
            views.append(
                MemberView(
                    name=one.name,
                    role=MemberRole.LEADER if leads else MemberRole.STANDBY,
                    url=one.api,
                    term=self._follower.term if leads else None,
                    since=leader.since if leads and leader is not None else one.since,
                    nodes=held if one.name == own else None,
                )
            )
        return tuple(sorted(views, key=lambda one: one.role != MemberRole.LEADER))

    def _changed(self) -> None:
        self._changes.set()
        self._link_changes.set()

    # The name.

    def _take_name(self) -> None:
        check_cluster(self._client)
        self._name.acquire(wait_seconds=_NAME_SECONDS)
        prefix = self._settings.prefix  # after its own name: of two that start together each sees the other
        check_auth(self.own, self._client.read(f"{prefix}/members/".encode(), f"{prefix}/members0".encode()))

    def _start_error(self, error: EtcdError | StoreError) -> StoreError:
        if isinstance(error, LeaseHeldError):
            return StoreError(
                f"an instance of this registry is called {self.own.name} already ({error}): name "
                "this one otherwise with --instance-name"
            )
        return self._store_error(error)

    async def _hold_name(self) -> None:
        """Take the name again where etcd was gone for longer than its lease, and publish a renewed key.

        While another instance has it this one neither leads nor links: it would end the other's link.
        """
        while True:
            await _wait(self._renewed, LOOK_SECONDS)
            if self._renewed.is_set() and not await self._publish():
                await asyncio.sleep(LOOK_SECONDS)
            if not self._name.lost or self._stopping:
                continue
            try:
                await in_thread("name", self._name.acquire, deadline_seconds=None)
            except LeaseHeldError as error:
                if not self._name_taken:
                    _LOG.error("instance_name_taken", instance=self.own.name, problem=str(error))
                self._name_taken = True
            except EtcdError:
                pass  # the campaign reports it
            else:
                self._name_taken = False
            self._changed()

    async def _publish(self) -> bool:
        """Write this instance's description to its keys in etcd; False where etcd does not take it now."""
        self._renewed.clear()
        holder = instance_document(self.own)
        try:
            for lease in (self._name, self._led):
                if lease is not None:
                    await in_thread("lease", partial(lease.announce, holder), deadline_seconds=None)
        except EtcdError:
            self._renewed.set()
            return False
        return True

    # Leading.

    async def _campaign(self) -> None:
        """Lead whenever there is no leader."""
        while not self._stopping:
            self._changes.clear()
            if await self._is_vacant():
                self._at_rest.clear()
                try:
                    await self._try_to_lead()
                finally:
                    self._at_rest.set()
            if not self._stopping:
                await _wait(self._changes, LOOK_SECONDS)

    async def _is_vacant(self) -> bool:
        """Ask etcd itself whether there is no leader to follow; False where etcd does not answer."""
        try:
            found: KeyValue | None = await in_thread("leader", self._leader_named, deadline_seconds=None)
        except EtcdError as error:
            self._etcd_failed(error)
            return False
        self._etcd_answered()
        self._follower.expect_leader(0 if found is None else found.create_revision)
        now = time.monotonic()
        if found is not None:
            self._named_at, self._vacant_since, self._lead_problem = now, None, ""
            return False
        if self._vacant_since is None:
            self._vacant_since = now
        if self._apart_seconds > MOST_APART_SECONDS and now - self._vacant_since < _APART_SECONDS:
            return False
        return now >= self._leave_until and not self._name_taken

    def _etcd_failed(self, error: EtcdError) -> None:
        self._etcd_problem = str(self._store_error(error))
        if self._doubtful_since is None:
            self._doubtful_since = time.monotonic()
            _LOG.error("etcd_failing", problem=self._etcd_problem)

    def _etcd_answered(self) -> None:
        if self._doubtful_since is not None:
            outage_seconds = round(time.monotonic() - self._doubtful_since, 3)
            _LOG.info("etcd_recovered", outage_seconds=outage_seconds)
        self._etcd_problem, self._doubtful_since, self._etcd_answered_at = "", None, time.monotonic()

    def _leader_named(self) -> KeyValue | None:
        """Return the leader's key; one that this instance could not give back it gives back now."""
        found = self._client.get(self._leader_key)
        if found is not None and self._led is not None and self._led.return_late(found):
            return None
        return found

    async def _try_to_lead(self) -> None:
        own = self.own
        self._led = lease = Lease(self._client, self._leader_key, holder=instance_document(own))
        try:
            await in_thread("lease", lease.acquire, deadline_seconds=None)
        except LeaseHeldError:  # another was first
            return
        except EtcdError as error:  # it answered a moment ago: it is full, or just now gone
            self._failed(self._store_error(error))
            return
        if self.own != own:  # its key was renewed meanwhile
            self._renewed.set()
        try:
            await self._lead(lease)
        finally:
            await in_thread("lease", lease.release, deadline_seconds=None)

    async def _lead(self, lease: Lease) -> None:
        """Lead until the lease is no longer certain, or this instance stops."""
        settings, began_at = self._settings, time.monotonic()
        try:
            store = await in_thread(
                "store",
                lambda: EtcdStore(settings.access, settings.prefix, lease=lease),
                deadline_seconds=None,
            )
        except StoreError as error:
            self._failed(error)
            return
        lead = Lead(
            name=self.own.name,
            term=store.term,
            since=time.time(),
            link_listen=self.own.link,
            tls=settings.link_server_tls,
            secret=store.secret,
            instances=self._follower.instances,
            revision=lambda: store.revision,
            lasts=lambda: lease.valid,
        )
        service = RegistryService(self._service_settings, store, lead=lead)
        try:
            opened_at = time.monotonic()
            await self._warm(store)
            warm_at = time.monotonic()
            with collector_paused():
                await service.start()
            await self._began(service, lambda: lease.valid)
            self._takeovers, self._lead_problem = self._takeovers + 1, ""
            self._takeover_seconds = time.monotonic() - began_at
        except (OSError, StoreError, StateDirectoryError) as error:
            self._failed(error)
        else:
            self._leading, self.service = lease, service
            service.notifier.start(self._service_settings.receivers)  # a reload may have come meanwhile
            _LOG.info(
                "leading_began",
                term=store.term,
                nodes=service.size.nodes,
                seconds=round(self._takeover_seconds, 3),
                copy_seconds=round(warm_at - opened_at, 3),
                restore_seconds=round(time.monotonic() - warm_at, 3),
            )
            await self._lead_on(lease, service)
            _LOG.info("leading_ended", term=store.term, lease_lost=not lease.valid)
        finally:
            self._leading = self.service = None
            self._led_to_end()
            await service.stop()

    async def _lead_on(self, lease: Lease, service: RegistryService) -> None:
        """Wait until the lease is no longer certain, this instance stops, or no gateway reaches it."""
        reached_at = time.monotonic()
        while lease.valid and not self._stopping:
            await _wait(self._changes, LEASE_LOOK_SECONDS)
            self._changes.clear()
            now = time.monotonic()
            if service.health.listener.closed_reason is None:
                reached_at = now
            elif now - reached_at > UNREACHED_SECONDS:
                problem = f"no instance reaches this one, not even itself: {self._link_problem()}"
                self._leave_to_others(problem)
                return

    def _failed(self, error: OSError | StoreError | StateDirectoryError) -> None:
        problem = error.strerror if isinstance(error, OSError) else None
        self._leave_to_others(problem or str(error))

    def _leave_to_others(self, problem: str) -> None:
        self._lead_problem = problem
        _LOG.error("leading_failed", problem=problem)
        self._leave_until = time.monotonic() + _FAILED_SECONDS

    def _store_error(self, error: EtcdError | StoreError) -> StoreError:
        return store_error(error, self._client, self._settings.prefix)

    async def _warm(self, store: EtcdStore) -> None:
        """Give the store this instance's own copy, once it holds everything that the store has written."""
        deadline = time.monotonic() + _COPY_SECONDS
        while self._follower.secret != store.secret:  # drawn for this term, and stored with all before it
            if time.monotonic() >= deadline:
                return
            await asyncio.sleep(0.01)
        prepared = self._follower.prepared.take(time.monotonic())
        store.load_from(dict(self._follower.rows), prepared)

    async def _prepare_nodes(self) -> None:
        """Read the nodes' documents ahead of a takeover while another instance leads."""
        while True:
            await self._at_rest.wait()
            follower = self._follower
            are_more = follower.prepared.prepare(follower.rows, time.monotonic())
            await asyncio.sleep(_PREPARE_SECONDS if are_more else LOOK_SECONDS)

    # The link to the leader.

    def _link_problem(self) -> str:
        if self._name_taken:
            return f"another instance is called {self.own.name} by now: name one of the two otherwise"
        if self._etcd_problem:
            return f"it is not known which instance leads: {self._etcd_problem}"
        leader = self._follower.leader
        if leader is not None:
            because = f" ({self._unlinked_because})" if self._unlinked_because else ""
            return f"the leader {leader.instance.name} is not reached at {leader.instance.link}{because}"
        return "there is no leader" + (f": {self._lead_problem}" if self._lead_problem else "")

    async def _stay_linked(self) -> None:
        """Hold a link to the leader."""
        alone_since = named_at = time.monotonic()
        named = None
        while True:
            self._link_changes.clear()
            leader, secret = self._follower.leader, self._follower.secret
            was_linked = is_loading = False
            if leader is not None and leader.created_at != named:
                named, named_at = leader.created_at, time.monotonic()
            if leader is not None and secret is not None and not self._name_taken:
                self._link = LeaderLink(
                    self._gateway,
                    leader.instance,
                    own=LinkIdentity(self.own.name, secret, self._settings.link_client_tls),
                    revision=lambda: self._follower.revision,
                    leader_clock=self._compare_clocks,
                )
                was_linked = await self._link.hold(partial(self._leads, leader))
                self._unlinked_because = self._link.problem
                is_loading = self._link.is_awaited and time.monotonic() - named_at < LOADING_SECONDS
            if was_linked:
                alone_since, self._alone = time.monotonic(), False
            elif is_loading or not await self._is_cut_off():
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > ALONE_SECONDS:
                _LOG.error("leader_not_reached", problem=self._link_problem())
                self._gateway.close_all(CloseCode.SERVICE_RESTART, "the leader is not reached from here")
                alone_since, self._alone = time.monotonic(), True
            await _wait(self._link_changes, _PAUSE_SECONDS)

    def _compare_clocks(self, unix_seconds: float) -> None:
        before, self._apart_seconds = self._apart_seconds, abs(time.time() - unix_seconds)
        if self._apart_seconds > MOST_APART_SECONDS >= before:
            _LOG.warning("clock_apart", seconds=round(self._apart_seconds))

    async def _is_cut_off(self) -> bool:
        """Whether there is a leader that this instance cannot reach: then nodes must find another instance.

        Etcd says so. Where it does not say, as without its quorum, the other instances show it: one that
        leads accepts links; and where none is reached at all, this machine is cut off.
        """
        now, since = time.monotonic(), self._doubtful_since
        if since is None:
            return self._leading is not None or now - self._named_at <= _NAMED_SECONDS
        others = [one for one in self._follower.instances() if one.name != self.own.name]
        if now - since < ALONE_SECONDS or not others:
            return False
        links = [await is_listening(one.link.bound_host, one.link.port) for one in others]
        return any(links) or not any(
            [await is_listening(at.hostname, at.port) for at in (urlsplit(one.api) for one in others)]
        )

    def _leads(self, leader: Leader) -> bool:
        """Whether it is still the leader; its pin may have changed."""
        found = self._follower.leader
        is_same = found is not None and found.created_at == leader.created_at
        return is_same and not self._name_taken


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
