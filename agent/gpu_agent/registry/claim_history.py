"""What happened to claims: where, since when, what their GPUs went through, how they ended (§5.5).

Ended claims are remembered for an hour, in memory. Times are monotonic seconds.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from gpu_agent.registry.job import Claim, ClaimEnd

REMEMBERED_SECONDS = 3600.0
MOST_REMEMBERED = 20_000
"""Beyond so many ended claims the one that ended longest ago is forgotten."""
MOST_BYTES = 64 * 1024 * 1024
"""The same for what the ended claims take, roughly."""
MOST_NOTES = 32
"""Of one claim; the latest ones stay."""


@dataclass(slots=True)
class GpuUse:
    """How busy a claimed GPU was, by the heartbeats since the claim began."""

    readings: int = 0
    total_percent: float = 0.0
    highest_percent: float = 0.0

    @property
    def mean_percent(self) -> float | None:
        """The mean utilization; None where no reading was known."""
        return self.total_percent / self.readings if self.readings else None


@dataclass(slots=True)
class ClaimRecord:
    """One claim and what happened while it lived."""

    claim: Claim
    notes: list[tuple[float, str]] = field(default_factory=list)
    """What happened between its grant and its end, the oldest first."""
    unusable: set[str] = field(default_factory=set)
    """UUIDs that were reported as unusable."""
    use: dict[tuple[str, str], GpuUse] = field(default_factory=dict)
    """By node and UUID."""
    idle_since: float | None = None
    """Since when all its GPUs are idle, once that was reported, until one of them is used."""
    end: ClaimEnd | None = None
    ended_at: float | None = None
    size_bytes: int = 0
    """What it took when it ended."""


class ClaimHistory:
    """The record of each current claim by job, and of each claim that ended within the hour."""

    def __init__(self) -> None:
        self._current: dict[str, ClaimRecord] = {}
        self._ended: OrderedDict[str, ClaimRecord] = OrderedDict()
        """By claim id, in the order of their ends."""
        self._ended_bytes = 0
        self._last_of_job: dict[str, str] = {}

    def begin(self, claim: Claim) -> None:
        """Begin the record of a claim, or go on with that of one that is attached again."""
        record = self._ended.pop(claim.claim_id, None)
        if record is None:
            record = ClaimRecord(claim)
        else:
            self._ended_bytes -= record.size_bytes
            self._note(record, str(record.end), record.ended_at or claim.granted_at)
        record.claim, record.end, record.ended_at = claim, None, None
        self._current[claim.job_id] = record

    def record_of(self, claim: Claim) -> ClaimRecord:
        """Return the record of a current claim."""
        record = self._current.get(claim.job_id)
        if record is None or record.claim.claim_id != claim.claim_id:
            self.begin(claim)
            record = self._current[claim.job_id]
        return record

    def renew(self, claim: Claim, now: float) -> None:
        """Record that a claim expires later, and another TTL."""
        record = self.record_of(claim)
        before, record.claim = record.claim, claim
        if before.ttl_seconds != claim.ttl_seconds:
            text = f"renewed with a TTL of {claim.ttl_seconds:g} s instead of {before.ttl_seconds:g} s"
            self.note(claim, text, now)

    def end(self, claim: Claim, end: ClaimEnd, now: float) -> None:
        """Record how a claim ended."""
        record = self.record_of(claim)
        del self._current[claim.job_id]
        record.claim, record.end, record.ended_at = claim, end, now
        record.size_bytes = claim.size_bytes
        self._ended[claim.claim_id] = record
        self._ended_bytes += record.size_bytes
        self._last_of_job[claim.job_id] = claim.claim_id
        self.forget_old(now)

    def note(self, claim: Claim, text: str, now: float) -> None:
        """Record what happened to a claim."""
        self._note(self.record_of(claim), text, now)

    @staticmethod
    def _note(record: ClaimRecord, text: str, now: float) -> None:
        record.notes.append((now, text))
        del record.notes[:-MOST_NOTES]

    def note_unusable(self, claim: Claim, uuid: str) -> bool:
        """Record that a claimed GPU is unusable; returns False where that is known."""
        unusable = self.record_of(claim).unusable
        if uuid in unusable:
            return False
        unusable.add(uuid)
        return True

    def current(self) -> list[ClaimRecord]:
        """Return the records of all current claims, in no order."""
        return list(self._current.values())

    @property
    def current_count(self) -> int:
        """How many current claims there are."""
        return len(self._current)

    def of_job(self, job_id: str) -> ClaimRecord | None:
        """Return the record of the claim that a job holds."""
        return self._current.get(job_id)

    def is_idle(self, job_id: str) -> bool:
        """Whether the claim that a job holds was reported to leave its GPUs idle, and still does."""
        record = self._current.get(job_id)
        return record is not None and record.idle_since is not None

    def last_of(self, job_id: str, now: float) -> ClaimRecord | None:
        """Return the record of the job's claim that ended last, within the hour."""
        self.forget_old(now)
        return self._ended.get(self._last_of_job.get(job_id, ""))

    def ended(self, now: float) -> list[ClaimRecord]:
        """Return the claims that ended within the hour, the oldest first."""
        self.forget_old(now)
        return list(self._ended.values())

    def forget_old(self, now: float) -> None:
        """Forget claims that ended more than an hour ago."""
        while self._ended:
            claim_id, record = next(iter(self._ended.items()))
            recent = record.ended_at is not None and now - record.ended_at <= REMEMBERED_SECONDS
            if recent and len(self._ended) <= MOST_REMEMBERED and self._ended_bytes <= MOST_BYTES:
                return
            del self._ended[claim_id]
            self._ended_bytes -= record.size_bytes
            if self._last_of_job.get(record.claim.job_id) == claim_id:
                del self._last_of_job[record.claim.job_id]
