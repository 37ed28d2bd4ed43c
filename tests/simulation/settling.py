"""What must be true once nothing goes wrong any more: every agent that runs is back, and no two fight."""

from gpu_agent.registry.node import NodeRecord
from gpu_agent.session.types import State
from gpu_agent.wire.codes import NodeStatus
from tests.simulation.actors import Owners, TokenAdministrator
from tests.simulation.agents import Agent
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, hold
from tests.simulation.invariants.sessions import CredentialInvariants, SessionInvariants

_LOOKS_EVERY_SECONDS = 25.0
"""More than an agent's time between two probes, so that it reports between two looks here."""

_CALM_LOOKS = 2


class Settling:
    """Waits for a world to settle."""

    def __init__(
        self,
        cluster: Cluster,
        sessions: SessionInvariants,
        *,
        credentials: CredentialInvariants,
        administrator: TokenAdministrator,
    ) -> None:
        self._cluster = cluster
        self._sessions = sessions
        self._credentials, self._administrator = credentials, administrator
        self._owners = Owners(cluster)
        self._helped: set[str] = set()

    def settle(self) -> None:
        """Let time pass until all is well; raises where it does not come to that."""
        world = self._cluster.world
        self._sessions.supersessions.clear()
        deadline = world.now + self._cluster.profile.settle_seconds
        calm = 0
        while calm < _CALM_LOOKS and world.now < deadline:
            self._help()
            self._owners.take_back()
            world.run_until(world.now + _LOOKS_EVERY_SECONDS)
            for agent in self._cluster.agents:
                agent.start()  # some were still about to leave when the faults ended
            calm = calm + 1 if self._trouble() is None else 0
        trouble = self._trouble()
        hold(Invariant.COMES_BACK, trouble is None, f"{world.now:.0f} s: {trouble}")
        for agent in self._cluster.agents:
            record = self._cluster.fleet.node(agent.registered_as or "")
            if record is not None:
                _compare(agent, record)
        for node_id, times in self._sessions.supersessions.items():
            twins = sum(agent.disk.node_id == node_id for agent in self._cluster.agents)
            hold(Invariant.NO_PING_PONG, times <= twins, f"{node_id} superseded {times} times by {twins}")

    def _help(self) -> None:
        """Bring a join token to each whose own token has ended: only a hand can."""
        for agent in self._cluster.agents:
            if agent.name in self._helped or self._cluster.profile.auth_off:
                continue
            if not self._credentials.opens(agent.disk.node_token):
                self._helped.add(agent.name)
                self._administrator.help(agent)

    def restart(self) -> None:
        """Let the registry crash once more: what was promised must outlive that."""
        self._cluster.registry.crash(agents_learn_within=0.1)
        self._cluster.registry.start()

    def _trouble(self) -> str | None:
        if self._cluster.registry.busy_until > self._cluster.world.now:
            return "the registry stands still"
        faults = (self._trouble_of(agent) for agent in self._cluster.agents)
        return next((trouble for trouble in faults if trouble is not None), None)

    def _trouble_of(self, agent: Agent) -> str | None:
        machine = agent.machine
        if machine is None or max(agent.busy_until, agent.unreachable_until) > self._cluster.world.now:
            return f"{agent.name} does not run, or stands still"
        if machine.state is State.YIELDED:
            twins = [one for one in self._cluster.agents if one.family == agent.family and one is not agent]
            return None if twins else f"{agent.name} yielded to no other agent:\n{machine.transition_log()}"
        node_id = agent.registered_as
        if node_id is None:
            return f"{agent.name} is {machine.state}:\n{machine.transition_log()}"
        return self._trouble_of_node(agent, node_id)

    def _trouble_of_node(self, agent: Agent, node_id: str) -> str | None:
        record = self._cluster.fleet.node(node_id)
        link = agent.link
        if record is None or link is None or record.connection != link.number:
            return f"{agent.name} believes to be {node_id}, whose connection it does not have"
        if not agent.host.may_work(self._cluster.profile.thresholds):
            return None
        drained_by_operator = record.desired.drain is not None and record.desired.drain.by_operator
        wanted = NodeStatus.OFFLINE if drained_by_operator else NodeStatus.READY
        if record.status is not wanted:
            return f"{node_id} of {agent.name} is {record.status}: {record.reason}"
        verdict = None if agent.machine is None else agent.machine.snapshot.registry_status
        if verdict is None or verdict.status != record.status:
            return f"{agent.name} received {verdict}, but {node_id} is {record.status}"
        return None


def _compare(agent: Agent, record: NodeRecord) -> None:
    """Hold what the registry knows of a node to the machine that it is."""
    host, owner = agent.host, agent.host.owner
    places = owner.max_concurrent_jobs
    leaves = agent.state is State.LEAVING  # and so registers no more, which alone says where workers are
    known = (
        record.declared.registration.accept_public_jobs,
        record.declared.registration.endpoint,
        record.declared.labels,
        record.declared.max_concurrent_jobs,
        record.declared.ready_models,
        list(record.gpus),
        record.gpus.usable,
    )
    true = (
        owner.accept_public_jobs,
        record.declared.registration.endpoint if leaves else owner.endpoint,
        owner.labels,
        places,
        frozenset(host.models),
        host.uuids,
        host.usable_count(),
    )
    hold(Invariant.REPORTED_IS_KNOWN, known == true, f"{record.node_id} is known as {known}, and is {true}")
