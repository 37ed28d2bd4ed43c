"""The documents of the operators' API about the fleet as a whole, its nodes, and what its GPUs did lately."""

from pydantic import Field

from gpu_agent.wire.codes import GpuStatus, NodeStatus, ReasonCode
from gpu_agent.wire.documents import ApiAnswer


class ReasonCount(ApiAnswer):
    """How many nodes have one status for one reason."""

    status: str = Field(description="The status.", json_schema_extra={"enum": [*NodeStatus]})
    reason_code: str = Field(description="Why they have it.", json_schema_extra={"enum": [*ReasonCode]})
    nodes: int = Field(description="How many nodes.")


class GpuModelCount(ApiAnswer):
    """The GPUs of one model in the fleet; a kind of MIG device counts as a model."""

    name: str = Field(description="The name as its driver states it.")
    gpus: int = Field(description="How many there are, whatever their status.")
    free: int = Field(description="How many of them a claim can get now.")
    claimed: int = Field(description="How many have the status `claimed`.")
    idle: int = Field(description="How many have the status `idle`: claimed, and not used.")
    most_free_on_one_node: int = Field(description="The largest number of free ones on one node.")


class FleetFigures(ApiAnswer):
    """The fleet in figures; each GPU counts once, and parents of MIG devices do not."""

    nodes: dict[str, int] = Field(description="How many nodes have each status.")
    reasons: tuple[ReasonCount, ...] = Field(description="The same by reason, the most frequent first.")
    attention: int = Field(
        description="Nodes that need attention: offline without a drain, degraded, or with a GPU that is "
        "lost, unknown or degraded."
    )
    cordoned: int = Field(description="Nodes that are cordoned as a whole.")
    gpus: dict[str, int] = Field(
        description=f"How many GPUs have each status: {', '.join(f'`{one}`' for one in GpuStatus)}."
    )
    degraded_gpus: int = Field(description="GPUs that work and have a fault, whatever their status.")
    gpu_models: tuple[GpuModelCount, ...] = Field(description="The GPUs by model, the most frequent first.")
    slots: int = Field(description="Slots of all nodes.")
    slots_taken: int = Field(description="Slots that jobs occupy.")
    models: dict[str, int] = Field(description="On how many ready nodes jobs can use each model.")
    waiting_jobs: int = Field(description="Jobs that wait in the queue.")
    longest_wait_seconds: float | None = Field(
        description="The longest wait of a job in the queue, in seconds; null where none waits."
    )


class GpuPointView(ApiAnswer):
    """One GPU at one moment; null where a figure is unknown."""

    at: float = Field(description="Unix time in seconds.")
    utilization_percent: float | None = Field(description="How busy it was, 0 to 100 %.")
    memory_used_mb: int | None = Field(description="Memory in use, in MiB; at most 256 MiB too low.")
    temperature_c: float | None = Field(description="Degrees Celsius.")
    power_w: float | None = Field(description="Watts.")


class GpuHistoryView(ApiAnswer):
    """What one GPU did lately."""

    uuid: str = Field(description="The GPU.")
    points: tuple[GpuPointView, ...] = Field(description="At most one per 15 s, the oldest first.")


class NodeGpuHistory(ApiAnswer):
    """What the GPUs of a node did in the last 15 minutes, as far as this leader of the registry saw it."""

    node_id: str = Field(description="The node's id.")
    gpus: tuple[GpuHistoryView, ...] = Field(description="Its GPUs.")


class EligibleNode(ApiAnswer):
    """A node that could take a job."""

    node_id: str = Field(description="The node's id.")
    hostname: str | None = Field(None, description="The node's hostname; null where it is unknown.")
    score: int = Field(description="The higher, the better it suits the job.")
