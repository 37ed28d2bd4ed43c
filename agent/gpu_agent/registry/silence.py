"""The guard against blaming the fleet for the registry's own deafness (§4, mass silence).

Asked before a timeout verdict. Moves deadlines; gives no verdict itself.
"""

from collections.abc import Iterable

from gpu_agent.registry.actions import Level
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.step import Step
from gpu_agent.wire.codes import NodeStatus

FEWEST_NODES = 10
"""With fewer live nodes, most of them silent is no sign of anything."""

SILENT_INTERVALS = 2


def suspected(records: Iterable[NodeRecord], step: Step) -> list[NodeRecord]:
    """Return the nodes to wait for once more: those silent, when over half of the live ones are.

    Each is marked, which moves its deadline to its last beat + 2 timeouts and excludes it from
    dispatch as disconnected until it beats. A node is waited for once.
    """
    live, silent = 0, list[NodeRecord]()
    for record in records:  # of all nodes, while nobody else has a turn: no calls in it
        if record.status is not NodeStatus.OFFLINE:
            live += 1
            if step.now - record.heard_at > SILENT_INTERVALS * record.interval_seconds:
                silent.append(record)
    if live < FEWEST_NODES or len(silent) * 2 <= live:
        return []
    waited_for = [record for record in silent if not record.suspected]
    if not waited_for:
        return []
    for record in waited_for:
        record.suspected = True
    step.note(
        "mass_disconnect_suspected",
        {"live": live, "silent": len(silent), "waited_for": len(waited_for)},
        Level.WARNING,
    )
    return waited_for
