"""Random events for a fleet: three nodes on four connections, and bursts of heartbeats."""

from dataclasses import dataclass
from itertools import count

from hypothesis import strategies
from hypothesis.strategies import SearchStrategy

from gpu_agent.registry.events import (
    ClaimRequested,
    Command,
    ConnectionLost,
    ControlRequested,
    CordonRequested,
    DrainRequested,
    Event,
    FaultReported,
    HeartbeatReceived,
    RegistrationReceived,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    SessionReported,
    UnregistrationReceived,
)
from gpu_agent.registry.job import Job
from gpu_agent.wire.messages import GpuFigures, NodeError, NodeUnregister
from tests.registry.harness import JOIN, declaration, figures, fresh_token, hardware, heartbeat, proof


@dataclass(frozen=True)
class Burst:
    """Some heartbeats of the node that a connection stands for."""

    connection: int
    count: int
    figures: tuple[GpuFigures, ...] | None
    running: tuple[str, ...] | None


_REFS = count(2)
"""A request that waits needs a number of its own."""

CONNECTIONS = strategies.integers(1, 4)


NODES = strategies.sampled_from(["node-1", "node-2", "node-3"])


JOBS = strategies.sampled_from(["job-1", "job-2", "job-3"])


FIGURES = strategies.sampled_from([figures(), figures(health="lost"), None, ()])


RUNNING = strategies.sampled_from([None, (), ("job-1",), ("job-1", "job-2")])


def arrivals() -> SearchStrategy[Event]:
    return strategies.builds(
        lambda connection, wanted, fresh, proven, count, running, inherited: RegistrationReceived(
            connection,
            declaration(wanted, hardware=hardware(count), running_jobs=running),
            fresh,
            JOIN if proven is None else proof(proven),
            fresh_token=fresh_token(wanted or fresh),
            is_inherited=inherited,
        ),
        CONNECTIONS,
        NODES | strategies.none(),
        NODES,
        NODES | strategies.none(),
        strategies.sampled_from([1, 1, 1, 0]),
        RUNNING,
        strategies.sampled_from([False, False, True]),
    )


def heartbeats() -> SearchStrategy[Event]:
    return strategies.builds(
        lambda connection, node_id, figures, age, running: HeartbeatReceived(
            connection, heartbeat(node_id, gpus=figures, probe_age_seconds=age, running_jobs=running)
        ),
        CONNECTIONS,
        NODES,
        FIGURES,
        strategies.sampled_from([1.0, 1.0, 99.0]),
        RUNNING,
    )


def bursts() -> SearchStrategy[Burst]:
    return strategies.builds(
        Burst, CONNECTIONS, strategies.sampled_from([1, 3, 3]), strategies.just(figures()) | FIGURES, RUNNING
    )


def goodbyes() -> SearchStrategy[Event]:
    return strategies.builds(
        lambda connection, node_id, drain: UnregistrationReceived(
            connection, NodeUnregister(node_id=node_id, drain=drain)
        ),
        CONNECTIONS,
        NODES,
        strategies.booleans(),
    )


def node_requests() -> SearchStrategy[Event]:
    deadlines = strategies.sampled_from([None, 0.0, 30.0])
    reasons = strategies.sampled_from([None, "fans"])
    return (
        strategies.builds(DrainRequested, strategies.just(1), NODES, deadlines)
        | strategies.builds(ResumeRequested, strategies.just(1), NODES)
        | strategies.builds(CordonRequested, strategies.just(1), NODES, reasons)
        | strategies.builds(RemovalRequested, strategies.just(1), NODES)
        | strategies.builds(ControlRequested, strategies.just(1), NODES, strategies.sampled_from(Command))
    )


def requests() -> SearchStrategy[Event]:
    jobs = strategies.builds(
        Job,
        job_id=JOBS,
        gpu_count=strategies.sampled_from([None, 1, 1]),
        nodes=strategies.sampled_from([1, 1, 1, 2]),
        wait_seconds=strategies.sampled_from([0.0, 0.0, 30.0]),
    )
    return (
        strategies.builds(lambda job: ClaimRequested(next(_REFS), job, f"claim-{next(_REFS)}"), jobs)
        | strategies.builds(RenewalRequested, strategies.just(1), JOBS)
        | strategies.builds(ReleaseRequested, strategies.just(1), JOBS)
    )


LOST = strategies.builds(ConnectionLost, CONNECTIONS, link_ended=strategies.booleans())


REPORTS = strategies.builds(
    SessionReported,
    connection=CONNECTIONS,
    node_id=NODES,
    session_epoch=strategies.integers(1, 3),
    credential=strategies.sampled_from([JOIN, None]) | strategies.builds(proof, NODES),
    address=strategies.none(),
    heartbeat_age_seconds=strategies.sampled_from([None, 1.0, 50.0]),
    is_complete=strategies.booleans(),
)


FAULTS = strategies.builds(FaultReported, CONNECTIONS, strategies.just(NodeError(code="GPU_LOST")))


SECONDS = strategies.sampled_from([0.0, 0.0, 0.5, 2.0, 2.0, 16.0, 46.0, 700.0])


FAILS = strategies.sampled_from([False, False, False, True])


EVENTS = (
    bursts()
    | arrivals()
    | bursts()
    | requests()
    | bursts()
    | node_requests()
    | bursts()
    | goodbyes()
    | heartbeats()
    | LOST
    | REPORTS
    | FAULTS
)


TURNS = strategies.lists(strategies.tuples(EVENTS, SECONDS, FAILS), min_size=20, max_size=60)
