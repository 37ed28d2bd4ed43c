"""The hard filters of §5: why a node cannot take a job.

Each is one row of `FILTERS`, in the order of the protocol.

A row states a filter once:

- its reason;
- its key: how the index finds the nodes that pass, without looking at each node;
- its shortfall: the predicate of one node and one job; it answers what the job needs and what the node has;
- its exclusions: the jobs that it excludes from one node, and what would change that, for a person who asks.

The index, the explanation of a job and the explanation of a node all go through this table. The agent's own
`node.control.explain` states in its own words what a node knows without the registry.

A filter depends on one node and one job only, never on other nodes, on the clock or on chance: the index
remembers its answers.

To add a filter, write its functions and its row in the file of its kind:

- `node_filters` where a node's state excludes it, nearly always from every job whatever it asks for;
- `declared_filters` where a node declares what a job asks for: equal keys;
- `gpu_filters` where free or usable GPUs decide.

Give the row `permanent=True` where waiting does not help, as the node must declare something else first: a
job that no node could ever take is refused at once. Several rows may share a reason. A new reason is
a member of `wire.codes.ExclusionReason` at its place in the order, a line in `docs/reference/statuses.md`,
and an exclusion in `node.control.explain`, unless `tests/node/control/test_explain.py` lists the reason as
known to the registry only; `make schema` writes it into `docs/reference/schema`. A filter by something that
no kind of key can express needs a kind of its own in `filter_row`, and a `case` in `Index._query`.
`advanced_features` never decides whether a node has a feature (A-6).
"""

from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.dispatch.declared_filters import DECLARED_FILTERS
from gpu_agent.registry.dispatch.exclusions import Excluded
from gpu_agent.registry.dispatch.filter_row import Filter, NodeState
from gpu_agent.registry.dispatch.gpu_allocation import gpu_set
from gpu_agent.registry.dispatch.gpu_filters import GPU_FILTERS
from gpu_agent.registry.dispatch.node_filters import NODE_FILTERS
from gpu_agent.registry.dispatch.reservation import obtainable
from gpu_agent.registry.job import Demand, meets
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import clip_sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason


def first_exclusion(candidate: Candidate, demand: Demand) -> Excluded | None:
    """Return the first filter that a node fails, or None when the node can take the job."""
    for one in FILTERS:
        shortfall = one.shortfall(candidate, demand)
        if shortfall is not None:
            need, have = clip_sentence(shortfall.need), clip_sentence(shortfall.have)
            record = candidate.record
            return Excluded(record.node_id, one.reason, need, have, record.hostname)
    return None


def unschedulable_reason(record: NodeRecord, limits: Thresholds) -> ExclusionReason | None:
    """Return the first reason that excludes a node whatever the job; None when it is open to jobs."""
    for reason, excludes in _NODE_STATES:
        if excludes(record, limits):
            return reason
    return None


def lacks_only_capacity(candidate: Candidate, demand: Demand) -> bool:
    """Whether a node passes every filter but those of its capacity, and may have the GPUs at some time."""
    may_have = gpu_set(obtainable(candidate, candidate.record.gpus.usable_states()))
    return meets(may_have, demand.gpus) and all(
        one.reason is ExclusionReason.CAPACITY_EXCEEDED or one.shortfall(candidate, demand) is None
        for one in FILTERS
    )


_ORDER = tuple(ExclusionReason)
FILTERS: tuple[Filter, ...] = tuple(
    sorted((*NODE_FILTERS, *DECLARED_FILTERS, *GPU_FILTERS), key=lambda one: _ORDER.index(one.reason))
)
"""In the order of the reasons; rows of one reason in the order of the files."""

_NODE_STATES = tuple((one.reason, one.key.excludes) for one in FILTERS if isinstance(one.key, NodeState))
