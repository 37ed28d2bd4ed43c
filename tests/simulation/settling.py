"""What must be true once nothing goes wrong any more: everybody who lives is back, and nobody fights."""

from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.session.types import State
from gpu_agent.wire.codes import NodeStatus
from tests.simulation.actors import Owners, TokenAdministrator
from tests.simulation.agents import Agent
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, hold
from tests.simulation.invariants.sessions import CredentialInvariants, SessionInvariants

_LOOKS_EVERY_SECONDS = 25.0
"""More than an agent's time between two looks at its machine, so that between two looks here it tells."""

_CALM_LOOKS = 2


class Settling:
    """Waits for a world to settle."""

    def __init__(
        self,
        scene: Cluster,
        sessions: SessionInvariants,
        *,
        credentials: CredentialInvariants,
        office: TokenAdministrator,
    ) -> None:
        self._scene = scene
        self._sessions = sessions
        self._credentials, self._office = credentials, office
        self._owners = Owners(scene)
        self._helped: set[str] = set()

    def settle(self) -> None:
        """Let time pass until all is well; raises where it does not come to that."""
        world = self._scene.world
        self._sessions.supersessions.clear()
        deadline = world.now + self._scene.climate.settle_seconds
        calm = 0
        while calm < _CALM_LOOKS and world.now < deadline:
            self._help()
            self._owners.take_back()
            world.run_until(world.now + _LOOKS_EVERY_SECONDS)
            for agent in self._scene.agents:
                agent.start()  # whoever was still about to leave when the troubles ended
            calm = calm + 1 if self._trouble() is None else 0
        trouble = self._trouble()
        hold(Invariant.COMES_BACK, trouble is None, f"{world.now:.0f} s: {trouble}")
        for agent in self._scene.agents:
            record = self._scene.fleet.node(agent.registered_as or "")
            if record is not None:
                _compare(agent, record, self._scene.climate.thresholds)
        for node_id, times in self._sessions.supersessions.items():
            twins = sum(agent.disk.node_id == node_id for agent in self._scene.agents)
            hold(Invariant.NO_PING_PONG, times <= twins, f"{node_id} superseded {times} times by {twins}")

    def _help(self) -> None:
        """Bring a join token to each whose own token has ended: only a hand can."""
        for agent in self._scene.agents:
            if agent.name in self._helped or self._scene.climate.auth_off:
                continue
            if not self._credentials.opens(agent.disk.node_token):
                self._helped.add(agent.name)
                self._office.help(agent)

    def restart(self) -> None:
        """Let the registry crash once more: what was promised must outlive that."""
        self._scene.registry.crash(agents_learn_within=0.1)
        self._scene.registry.start()

    def _trouble(self) -> str | None:
        if self._scene.registry.busy_until > self._scene.world.now:
            return "the registry stands still"
        troubles = (self._trouble_of(agent) for agent in self._scene.agents)
        return next((trouble for trouble in troubles if trouble is not None), None)

    def _trouble_of(self, agent: Agent) -> str | None:
        machine = agent.machine
        if machine is None or max(agent.busy_until, agent.unreachable_until) > self._scene.world.now:
            return f"{agent.name} does not run, or stands still"
        if machine.state is State.YIELDED:
            twins = [one for one in self._scene.agents if one.family == agent.family and one is not agent]
            return None if twins else f"{agent.name} yielded to nobody:\n{machine.transition_log()}"
        node_id = agent.registered_as
        if node_id is None:
            return f"{agent.name} is {machine.state}:\n{machine.transition_log()}"
        return self._trouble_of_node(agent, node_id)

    def _trouble_of_node(self, agent: Agent, node_id: str) -> str | None:
        record = self._scene.fleet.node(node_id)
        link = agent.link
        if record is None or link is None or record.connection != link.number:
            return f"{agent.name} believes to be {node_id}, whose connection it does not have"
        if not agent.box.may_work(self._scene.climate.thresholds):
            return None
        wished = record.desired.drain is not None and record.desired.drain.by_operator
        wanted = NodeStatus.OFFLINE if wished else NodeStatus.READY
        if record.status is not wanted:
            return f"{node_id} of {agent.name} is {record.status}: {record.reason}"
        verdict = None if agent.machine is None else agent.machine.snapshot.registry_status
        if verdict is None or verdict.status != record.status:
            return f"{agent.name} was told {verdict}, but {node_id} is {record.status}"
        return None


def _compare(agent: Agent, record: NodeRecord, thresholds: Thresholds) -> None:
    """Hold what the registry knows of a node to the machine that it is."""
    box, owner = agent.box, agent.box.owner
    places = owner.max_concurrent_jobs
    leaves = agent.state is State.LEAVING  # and so registers no more, which alone tells where workers are
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
        thresholds.default_max_concurrent_jobs if places is None else places,
        frozenset(box.models),
        [box.uuid(place) for place in range(box.gpu_count())],
        box.gpu_count(),
    )
    hold(Invariant.TOLD_IS_KNOWN, known == true, f"{record.node_id} is known as {known}, and is {true}")
