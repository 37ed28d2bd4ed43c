"""The fleet: all nodes, all claims, one door. Events and the time in, actions out; nothing else moves it.

Composes the parts and routes events to them; holds no rule of the protocol itself. The
shell carries the actions out in order, and nothing that follows a `Save` before it is kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import assert_never

from gpu_agent.registry.actions import Action
from gpu_agent.registry.beats import Beats
from gpu_agent.registry.census import Census
from gpu_agent.registry.claiming import Claiming
from gpu_agent.registry.credentials import Credential
from gpu_agent.registry.deadlines import Deadlines
from gpu_agent.registry.dispatch.dispatch import Choice, Dispatch
from gpu_agent.registry.dispatch.exclusions import ExclusionWindow
from gpu_agent.registry.dispatch.verdict import Able, Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.documents import Restored
from gpu_agent.registry.events import (
    BeatArrived,
    ClaimAsked,
    ConnectionLost,
    ControlAsked,
    CordonAsked,
    DrainAsked,
    Event,
    FaultReported,
    GoodbyeArrived,
    JoinTokenMade,
    NodeDid,
    OperatorTokenMade,
    Rare,
    RegistrationArrived,
    ReleaseAsked,
    RemovalAsked,
    RenewalAsked,
    ResumeAsked,
    RotationAsked,
    Saved,
    SaveFailed,
    TokenRevoked,
    Traced,
)
from gpu_agent.registry.filing import Filing
from gpu_agent.registry.house import House
from gpu_agent.registry.issuing import Issuing
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.keeping import Keeping
from gpu_agent.registry.letting_go import Crowd
from gpu_agent.registry.pacing import Pacer
from gpu_agent.registry.policy import Policy
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.rounds import Rounds
from gpu_agent.registry.saves import Saves
from gpu_agent.registry.sessions import Sessions
from gpu_agent.registry.step import Step
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.registry.tokens import Token, Tokens
from gpu_agent.registry.undo import Undo
from gpu_agent.registry.verdicts import Verdicts
from gpu_agent.registry.why import NodeWhy, why
from gpu_agent.registry.wishes import Wishes

NOTHING: tuple[Action, ...] = ()

_SCAN_SHARE = 0.5
"""The scan interval is how late a timeout may be noticed: half of it is left to a busy loop."""


class Fleet:
    """The registry's machine. Times are monotonic seconds.

    `draw` returns numbers from [0, 1). With `auth_off` an id that is offline or disconnected may be
    taken over by whoever names it. `debug` tells at each moment whether a note of every beat and every
    exclusion is wanted.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        draw: Callable[[], float],
        *,
        allow_simulated: bool = False,
        auth_off: bool = False,
        debug: Callable[[], bool] = lambda: False,
    ) -> None:
        self.thresholds = thresholds
        self._roster = Roster()
        self._tokens = Tokens(thresholds.offline_retention_seconds)
        self._deadlines = Deadlines()
        self._census = Census()
        self._pacer = Pacer(thresholds, self._census, draw)
        self._dispatch = Dispatch(thresholds, draw)
        claiming = Claiming(thresholds, self._dispatch, debug=debug)
        verdicts = Verdicts(thresholds, self._roster, dispatch=self._dispatch, claiming=claiming)
        house = House(
            thresholds=thresholds,
            policy=Policy(allow_simulated=allow_simulated, auth_off=auth_off),
            pacer=self._pacer,
            roster=self._roster,
            tokens=self._tokens,
            dispatch=self._dispatch,
            claiming=claiming,
            verdicts=verdicts,
        )
        self._claiming, self._verdicts = claiming, verdicts
        self._beats = Beats(house, debug=debug)
        self._sessions = Sessions(house)
        self._wishes = Wishes(house)
        self._issuing = Issuing(house)
        self._rounds = Rounds(house, self._deadlines)
        self._keeping = Keeping(house)
        self._filing = Filing(house, self._deadlines, self._census)
        self._crowd = Crowd(house) if auth_off else None
        self._saves = Saves(
            write=self._keeping.written,
            undo=Undo(house),
            retry_seconds=thresholds.scan_interval_seconds,
        )
        self._scan_every_seconds = thresholds.scan_interval_seconds * _SCAN_SHARE
        self._scan_from = 0.0

    @property
    def deadline(self) -> float | None:
        """When `wake` has something to do (monotonic seconds); at most twice per scan interval."""
        looks = (self._deadlines.earliest, self._dispatch.next_expiry)
        waiting = (*looks, self._saves.deadline, self._tokens.deadline)
        due = [time for time in waiting if time is not None]
        return max(min(due), self._scan_from) if due else None

    @property
    def size(self) -> int:
        """How many nodes are known, whatever their status."""
        return len(self._roster.records)

    def handle(self, event: Event, now: float) -> Sequence[Action]:
        """Take one event in, and say what to do about it, in order."""
        if isinstance(event, BeatArrived):
            consequences = self._beats.arrived(event, now)
            return NOTHING if consequences is None else self._finish(consequences)
        step = Step(now, trace_id=event.trace_id if isinstance(event, Traced) else None)
        self._take(event.asked if isinstance(event, Traced) else event, step)
        return self._finish(step)

    def wake(self, now: float) -> Sequence[Action]:
        """Draw the consequences of time alone; harmless when early.

        Of many that are due at once some are left for a next call, for which `deadline` asks at once.
        """
        deadline = self.deadline
        if deadline is None or now < deadline:
            return NOTHING
        step = Step(now)
        self._rounds.go(step)
        self._issuing.purge(step)
        self._saves.retry(step)
        goes_on = self._rounds.unfinished or self._saves.goes_on
        self._scan_from = now + (0.0 if goes_on else self._scan_every_seconds)
        return self._finish(step)

    def restore(self, kept: Iterable[Restored], now: float) -> Sequence[Action]:
        """Take back what the store kept (§4, restart): call it once, before the first event."""
        return [action for actions in self.restoring(kept, now) for action in actions]

    def restoring(self, kept: Iterable[Restored], now: float) -> Iterator[Sequence[Action]]:
        """Restore thing by thing, for those who must not stop for a whole fleet; to be run to its end."""
        for step in self._keeping.taking_back(kept, now):
            self._filing.file(step)
            yield self._saves.sealed(step)
        step = Step(now)
        step.note("registry_restored", {"nodes": self.size})
        if self._crowd is not None:  # whom it may let go is known only now that the claims are
            step.touched.update(dict.fromkeys(self._roster.records))
        yield self._finish(step)

    def nodes(self, *, after: str | None = None) -> list[NodeRecord]:
        """Return every node's record, by id: the fleet's own, to be read at once and not kept.

        With `after` only those whose ids come behind it.
        """
        records = self._roster.records
        ids = records if after is None else [node_id for node_id in records if node_id > after]
        return [records[node_id] for node_id in sorted(ids)]

    def node(self, node_id: str) -> NodeRecord | None:
        """Return one node's record, to be read at once and not kept; None when the id is not known."""
        return self._roster.records.get(node_id)

    def explain(self, job: Job, now: float) -> Explanation:
        """Say of every node whether it could take a job, and why not (A-3)."""
        return Explanation.of(job.job_id, self.explaining(job, now))

    def explaining(self, job: Job, now: float) -> Iterator[Able | Excluded]:
        """Explain a job node by node, for those who must not stop for a whole fleet."""
        return self._dispatch.explaining(job, now)

    def select(self, job: Job, now: float) -> Choice | Claim | NoAvailableNode:
        """Say what `ClaimAsked` would be answered: the claim that is held, the best place, or why nobody.

        Reserves nothing, and a refusal counts nowhere.
        """
        held = self._dispatch.claim_of(job.job_id)
        return held if held is not None and held.expires_at > now else self._dispatch.select(job, now)

    def why(self, node_id: str, now: float, model: str | None = None) -> NodeWhy | None:
        """Say which jobs a node would be refused now, and why; None when the id is not known."""
        view = self._dispatch.view(node_id)
        return None if view is None else why(view, now, model)

    def exclusions(self, now: float) -> Sequence[ExclusionWindow]:
        """Count what dispatches failed on in the last hour, by the minute."""
        return self._claiming.exclusions.windows(now)

    def finished_exclusions(self, now: float) -> Sequence[ExclusionWindow]:
        """Return the minutes that ended since this was last asked and in which dispatches failed."""
        return self._claiming.exclusions.finished(now)

    def claims(self) -> list[Claim]:
        """Return every claim that is held, by its job."""
        return self._dispatch.claims()

    def claim_of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._dispatch.claim_of(job_id)

    def credential(self, digest: str, now: float) -> Credential | None:
        """Say what the token of this digest stands for now; None when it opens nothing."""
        return self._tokens.credential(digest, now)

    def token(self, token_id: str) -> Token | None:
        """Return a join or operator token by its id."""
        return self._tokens.by_id.get(token_id)

    def reserved(self, token_id: str) -> int:
        """Count the nodes that came by a join token and have not beaten yet."""
        return len(self._tokens.reserved(token_id))

    def tokens(self) -> list[Token]:
        """Return every join and operator token, the oldest first."""
        return sorted(self._tokens.by_id.values(), key=lambda token: (token.created_at, token.token_id))

    def _take(self, event: Rare, step: Step) -> None:
        match event:
            case RegistrationArrived() | GoodbyeArrived() | FaultReported() | ConnectionLost():
                self._node_did(event, step)
            case DrainAsked() | ResumeAsked() | CordonAsked() | RemovalAsked() | ControlAsked():
                self._wishes.asked(event, step)
            case ClaimAsked() | RenewalAsked() | ReleaseAsked():
                self._scheduler_asked(event, step)
            case JoinTokenMade() | OperatorTokenMade() | TokenRevoked() | RotationAsked():
                self._issuing.asked(event, step)
            case Saved():
                self._saves.kept(event.save)
            case SaveFailed():
                self._saves.failed(event.save, event.detail, step)
            case _ as unreachable:
                assert_never(unreachable)

    def _node_did(self, event: NodeDid, step: Step) -> None:
        if isinstance(event, ConnectionLost):
            self._sessions.lost(event.connection, step)
        elif self._roster.dismissed(event.connection):
            return
        elif isinstance(event, RegistrationArrived):
            self._sessions.register(event, step)
        elif isinstance(event, GoodbyeArrived):
            self._sessions.goodbye(event, step)
        else:
            self._sessions.fault(event, step)

    def _scheduler_asked(self, event: ClaimAsked | RenewalAsked | ReleaseAsked, step: Step) -> None:
        cause, step.trace_id = step.trace_id, None  # nobody's asking ends the claims that have expired
        self._rounds.end_claims(
            step, of_job=event.job.job_id if isinstance(event, ClaimAsked) else event.job_id
        )
        step.trace_id = cause
        match event:
            case ClaimAsked():
                self._claiming.ask(event, step)
            case RenewalAsked():
                self._claiming.renew(event, step)
            case ReleaseAsked():
                record = self._roster.records.get(self._claiming.release(event, step) or "")
                if record is not None:
                    self._verdicts.settle(record, step)
            case _ as unreachable:
                assert_never(unreachable)

    def _finish(self, step: Step) -> Sequence[Action]:
        if self._crowd is not None:
            self._crowd.thin_out(step)
        step = self._saves.admitted(step)
        self._filing.file(step)
        return self._saves.sealed(step)
