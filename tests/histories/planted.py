"""A `gpu-agent` with one bug planted, to show that the checker finds it.

python tests/histories/planted.py BUG registry serve …
"""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from gpu_agent.cli.__main__ import main
from gpu_agent.server.service import RegistryService
from gpu_agent.store.base import Batch, StoreError
from gpu_agent.store.etcd.lease import Lease
from gpu_agent.store.etcd.store import EtcdStore
from gpu_agent.store.sqlite import SqliteStore
from gpu_agent.wire.api import ClaimDetail

LATE_SECONDS = 0.5


def acknowledge_before_storing() -> None:
    """Report each commit as stored, and store it half a second later."""
    save = SqliteStore.save
    late: list[tuple[float, Batch]] = []

    def save_late(self: SqliteStore, batches: Sequence[Batch]) -> None:
        now = time.monotonic()
        late.extend((now, batch) for batch in batches)
        due = [batch for at, batch in late if at <= now - LATE_SECONDS]
        del late[: len(due)]
        save(self, due)

    SqliteStore.save = save_late  # type: ignore[method-assign]


def answer_from_old_state() -> None:
    """Show each job's claim as it was up to half a second ago, as a leader does that lost its lease."""
    claim_of = RegistryService.claim_of
    shown: dict[str, tuple[float, ClaimDetail | None]] = {}

    def old_claim_of(self: RegistryService, job_id: str) -> ClaimDetail | None:
        now = time.monotonic()
        if job_id not in shown or shown[job_id][0] < now - LATE_SECONDS:
            shown[job_id] = (now, claim_of(self, job_id))
        return shown[job_id][1]

    RegistryService.claim_of = old_claim_of  # type: ignore[method-assign]


def go_on_after_the_lease() -> None:
    """Trust the lease in etcd for ever, and take what etcd refuses to store as stored."""
    save = EtcdStore.save

    def save_or_not(self: EtcdStore, batches: Sequence[Batch]) -> None:
        with suppress(StoreError):
            save(self, batches)

    EtcdStore.save = save_or_not  # type: ignore[method-assign]
    Lease.valid = property(lambda lease: lease.created_at > 0)  # type: ignore[assignment, method-assign]


PLANTS = (acknowledge_before_storing, answer_from_old_state, go_on_after_the_lease)
BUGS = {plant.__name__: plant for plant in PLANTS}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    sys.exit(main())
