"""A registry that is checked after every event: what must hold at all times."""

from collections.abc import Sequence

from gpu_agent.registry.actions import DocumentKind, Effect, Output
from gpu_agent.registry.events import Event, HeartbeatReceived
from gpu_agent.registry.lifecycle import TRANSITIONS
from gpu_agent.registry.node import FleetCounters, NodeRecord
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from tests.registry.harness import Registry, heartbeat, logged
from tests.registry.random_events import Burst


class CheckedRegistry:
    """Plays events and checks all that must hold after each."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def happens(self, event: Event) -> None:
        self._carry_out(self.registry.fleet.handle(event, self.registry.now))

    def heartbeats(self, burst: Burst) -> None:
        for record in self.registry.fleet.nodes():
            if record.connection == burst.connection:
                message = heartbeat(record.node_id, gpus=burst.figures, running_jobs=burst.running)
                for _ in range(burst.count):
                    self.happens(HeartbeatReceived(burst.connection, message))

    def wakes(self) -> None:
        self._carry_out(self.registry.fleet.wake(self.registry.now))

    def everything_ended(self) -> None:
        """Without heartbeats all nodes go offline, no claim is left, and the store holds just that."""
        nodes = {record.node_id for record in self.registry.fleet.nodes()}
        stored = {
            key: document["status"]
            for (kind, key), (document, _) in self.registry.documents.items()
            if kind is DocumentKind.NODE
        }
        assert stored == dict.fromkeys(nodes, "offline")
        assert all(record.status == "offline" for record in self.registry.fleet.nodes())
        assert all(record.connection is None for record in self.registry.fleet.nodes())
        assert all(self.registry.fleet.claim_of(f"job-{n}") is None for n in (1, 2, 3))

    def _carry_out(self, output: Output) -> None:
        """Do what the shell does, and check every output."""
        effects = self.registry.carry_out(output)
        self._only_arrows_of_the_table(output.effects)
        if not self.registry.failing:
            self._claims_stand_on_ready_nodes(effects)
        self._one_connection_per_node()
        self._everybody_is_counted()

    def _only_arrows_of_the_table(self, actions: Sequence[Effect]) -> None:
        for entry in logged(actions, "node_status_changed"):
            source = entry.fields["from"]
            arrow = (None if source is None else NodeStatus(str(source)), NodeStatus(str(entry.fields["to"])))
            assert ReasonCode(str(entry.fields["reason_code"])) in TRANSITIONS[arrow]
            record = self.registry.fleet.node(str(entry.fields["node_id"]))
            if record is not None and entry.fields["reason_code"] == "recovered":
                self._has_calmed_down(record)

    def _has_calmed_down(self, record: NodeRecord) -> None:
        limits = self.registry.thresholds
        recent = [at for at in record.exits if self.registry.now - at < limits.flap_window_seconds]
        flapped = [step for step in record.history if step.target is NodeStatus.DEGRADED][-1]
        assert flapped.reason_code is not ReasonCode.FLAPPING or len(recent) < limits.flap_limit
        assert len(record.exits) <= limits.flap_limit

    def _claims_stand_on_ready_nodes(self, actions: Sequence[Effect]) -> None:
        for entry in logged(actions, "job_assigned"):
            record = self.registry.node(str(entry.fields["node_id"]))
            assert (record.status, record.connected, record.desired.cordoned) == ("ready", True, None)

    def _everybody_is_counted(self) -> None:
        recount = FleetCounters()
        for record in self.registry.fleet.nodes():
            recount.count(record)
        stored = self.registry.fleet._counters
        assert (stored.live, stored.warming) == (recount.live, recount.warming)

    def _one_connection_per_node(self) -> None:
        records = self.registry.fleet.nodes()
        live = [record.connection for record in records if record.connection is not None]
        assert len(live) == len(set(live))
        for record in records:
            drained = record.desired.drain is not None and record.desired.drain.by_operator
            if record.status == "offline" and not drained:
                assert record.connection is None
