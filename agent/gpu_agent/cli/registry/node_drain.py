"""The wait for the end of a drain: of one node, and of several that drain so many at the same time."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.http import Refused
from gpu_agent.cli.client.resources import Node
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.streams import StatusLine, print_stderr
from gpu_agent.cli.output.text import printable
from gpu_agent.cli.output.units import duration_in_words
from gpu_agent.cli.registry.node_targets import raise_for
from gpu_agent.wire.api import NodeDetail
from gpu_agent.wire.codes import NodeStatus

POLL_SECONDS = 1.0
"""The interval at which the nodes are read: the remaining time is shown in seconds."""


def wait_until_offline(node: Node, now: Answer[NodeDetail], *, quiet: bool = False) -> Answer[NodeDetail]:
    """Read the node until it is offline; raises `Failure` when it is resumed or removed.

    A registry that is away for a while ends no waiting: the drain outlives its restart.
    """
    with StatusLine(quiet=quiet) as shown:
        while now.model.status != NodeStatus.OFFLINE:
            _raise_if_resumed(now.model)
            counted, named = _jobs_in_flight(now.model)
            shown.show(counted, left=_time_left(now.model), more=named)
            time.sleep(POLL_SECONDS)
            now = _read_again(node, shown) or now
    return now


def drain_in_turn(
    nodes: Sequence[Node],
    begin: Callable[[Node], Answer[NodeDetail]],
    show: Callable[[Answer[NodeDetail]], None],
    *,
    at_once: int,
    ends_all: str,
    quiet: bool = False,
) -> int:
    """Drain all nodes, at most so many at the same time, and show each once it is offline.

    Raises `Failure` at the end where a node refused or was resumed. `ends_all`: what ends the drains.
    """
    turns = _Turns(nodes, begin, show)
    with StatusLine(quiet=quiet) as shown:
        try:
            while turns.left:
                turns.begin_up_to(at_once, shown)
                turns.read_all(shown)
                if turns.left:
                    shown.show(turns.words())
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            shown.erase()
            print_stderr(f"{turns.words()}. Drains that have begun go on; {ends_all}")
            return ExitCode.INTERRUPTED
    raise_for(turns.failed, len(nodes), "drained")
    return ExitCode.OK


_FOR_NOW = (429, 503)


class _Turns:
    """Nodes by progress: not begun, draining, and failed."""

    def __init__(
        self,
        nodes: Sequence[Node],
        begin: Callable[[Node], Answer[NodeDetail]],
        show: Callable[[Answer[NodeDetail]], None],
    ) -> None:
        self.failed: list[str] = []
        self._count = len(nodes)
        self._begin, self._show = begin, show
        self._waiting = deque(nodes)
        self._draining: dict[str, tuple[Node, Answer[NodeDetail]]] = {}

    @property
    def left(self) -> bool:
        """Whether a node still has to drain."""
        return bool(self._waiting or self._draining)

    def words(self) -> str:
        """Count the nodes by progress."""
        over = self._count - len(self._waiting) - len(self._draining) - len(self.failed)
        jobs = sum(now.model.in_flight_jobs for _, now in self._draining.values())
        running = f"{jobs} {'job' if jobs == 1 else 'jobs'} in flight"
        wait = f", {len(self._waiting)} to come" if self._waiting else ""
        return f"{over} of {self._count} offline, {len(self._draining)} draining ({running}){wait}"

    def begin_up_to(self, at_once: int, shown: StatusLine) -> None:
        """Begin drains until so many nodes drain, or none is left."""
        while self._waiting and len(self._draining) < at_once:
            node = self._waiting.popleft()
            try:
                self._draining[node.node_id] = (node, self._begin(node))
            except Failure as failure:
                if _is_busy(failure):
                    self._waiting.appendleft(node)
                    shown.show(f"the registry is busy; waiting for it: {failure}")
                    return
                if failure.code is not ExitCode.REFUSED:
                    self._waiting.appendleft(node)
                    raise Failure(
                        f"{failure}\n{self.words()}; drains that have begun go on", failure.code
                    ) from None
                self._fail(node, failure, shown)

    def read_all(self, shown: StatusLine) -> None:
        """Read the nodes that drain; show those that are offline by now."""
        for node, before in list(self._draining.values()):
            try:
                now = before
                if now.model.status != NodeStatus.OFFLINE:
                    now = _read_again(node, shown) or before
                    _raise_if_resumed(now.model)
            except Failure as failure:
                del self._draining[node.node_id]
                self._fail(node, failure, shown)
                continue
            self._draining[node.node_id] = (node, now)
            if now.model.status == NodeStatus.OFFLINE:
                del self._draining[node.node_id]
                shown.erase()
                self._show(now)

    def _fail(self, node: Node, failure: Failure, shown: StatusLine) -> None:
        self.failed.append(node.node_id)
        shown.erase()
        print_stderr(f"{node.node_id}: {failure}")


def _raise_if_resumed(node: NodeDetail) -> None:
    if node.status not in (NodeStatus.DRAINING, NodeStatus.OFFLINE) and node.drain is None:
        raise Failure(f"the drain of {node.node_id} was ended: it is {node.status}")


def _read_again(node: Node, shown: StatusLine) -> Answer[NodeDetail] | None:
    try:
        return node.detail()
    except Failure as failure:
        if failure.code is not ExitCode.UNREACHABLE and not _is_busy(failure):
            raise
        shown.show("the registry does not answer; waiting for it")
        return None


def _is_busy(failure: Failure) -> bool:
    """Whether the registry refused for now: no instance leads, its store fails, or too many ask."""
    return isinstance(failure, Refused) and failure.status in _FOR_NOW


def _jobs_in_flight(node: NodeDetail) -> tuple[str, str]:
    """Say how many jobs there are, and which."""
    jobs = sorted({*node.claimed_jobs, *(node.running_jobs or ())})
    count = max(len(jobs), node.in_flight_jobs)
    named = f": {', '.join(map(printable, jobs))}" if jobs else ""
    return f"{node.node_id} is {node.status}, {count} {'job' if count == 1 else 'jobs'} in flight", named


def _time_left(node: NodeDetail) -> str:
    return "" if node.drain is None else f", {duration_in_words(node.drain.deadline - time.time())} left"
