"""What a fleet's scheduler and operators do all day, done at once by several threads until no answer comes.

Each thread owns its things, so that at most one request about a thing is under way.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence

from tests.e2e.crashes.door import Answer, Door, NoAnswerError
from tests.e2e.crashes.ledger import ANYWHERE, Ledger
from tests.waiting import patience

MOST_CLAIMS = 12
MOST_TOKENS = 12


class Workload:
    """Threads that claim, release, drain, resume, cordon, and make and revoke tokens."""

    def __init__(
        self, ledger: Ledger, *, port: int, admin: str, claimable: Sequence[str], operated: Sequence[str]
    ) -> None:
        self._ledger = ledger
        self._port, self._admin = port, admin
        self._claimable, self._operated = list(claimable), list(operated)
        self._stopping = threading.Event()
        self._numbers = iter(range(10**9))
        self.secrets: dict[str, str] = {}
        """Of operator tokens, by token id."""
        self.errors: list[str] = []

    def run_until(self, ended: Callable[[], bool], *, seed: int, within_seconds: float) -> None:
        """Work until the registry has ended, or the time is over."""
        self._stopping.clear()
        jobs = (self._claims, self._claims, self._operate, self._tokens)
        threads = [
            threading.Thread(target=self._work, args=(job, _dice(seed, place), place))
            for place, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + within_seconds
        while not ended() and time.monotonic() < deadline:
            self._stopping.wait(0.005)
        self._stopping.set()
        for thread in threads:
            thread.join(patience(30))

    def _work(self, job: Callable[[Door, random.Random, int], None], dice: random.Random, place: int) -> None:
        door = Door(self._port, self._admin)
        while not self._stopping.is_set():
            try:
                job(door, dice, place)
            except NoAnswerError:
                self._stopping.wait(0.02)

    def _expect(self, answer: Answer, *codes: int) -> bool:
        """Record an unexpected answer; True when the request was granted."""
        if not answer.granted and answer.status not in codes:
            self.errors.append(f"{answer.status}: {answer.document}")
        return answer.granted

    def _claims(self, door: Door, dice: random.Random, place: int) -> None:
        held = [
            thing for thing in self._ledger.things(f"claim/{place}-") if self._ledger.only(thing) is not None
        ]
        if held and (len(held) >= MOST_CLAIMS or dice.random() < 0.45):
            self._release(door, dice.choice(held))
            return
        job_id = f"{place}-{time.monotonic_ns()}"
        body = {"job_id": job_id, "allowed_nodes": self._claimable}
        with self._ledger.asking(f"claim/{job_id}", ANYWHERE, absent=None) as answered:
            answer = door.ask("POST", "/v1/claims", body)
            if self._expect(answer, 409, 503):
                answered(answer.document["node_id"])
            else:
                self._ledger.forget(f"claim/{job_id}")
                self._stopping.wait(0.05)

    def _release(self, door: Door, thing: str) -> None:
        with self._ledger.asking(thing, None, absent=None) as answered:
            if self._expect(door.ask("DELETE", f"/v1/claims/{thing.removeprefix('claim/')}")):
                answered(None)

    def _operate(self, door: Door, dice: random.Random, _place: int) -> None:
        node_id = dice.choice(self._operated)
        action = dice.choice(("drain", "resume", "cordon", "uncordon"))
        thing = f"drained/{node_id}" if action in ("drain", "resume") else f"cordoned/{node_id}"
        reason = f"action {time.monotonic_ns()}"
        wanted = reason if action in ("drain", "cordon") else None
        body = {"reason": reason} if wanted else {}
        with self._ledger.asking(thing, wanted, absent=None) as answered:
            if self._expect(door.ask("POST", f"/v1/nodes/{node_id}/{action}", body)):
                answered(wanted)

    def _tokens(self, door: Door, dice: random.Random, _place: int) -> None:
        live = [one for one in self._ledger.things("token/") if self._ledger.only(one) == "live"]
        if live and (len(live) >= MOST_TOKENS or dice.random() < 0.4):
            thing = dice.choice(live)
            with self._ledger.asking(thing, "gone", absent="gone") as answered:
                if self._expect(door.ask("DELETE", f"/v1/tokens/{thing.removeprefix('token/')}")):
                    answered("gone")
            return
        body = {"kind": "operator", "role": "read", "name": "crash"}
        answer = door.ask("POST", "/v1/tokens", body)
        if self._expect(answer):
            token_id = answer.document["token_id"]
            self.secrets[token_id] = answer.document["token"]
            with self._ledger.asking(f"token/{token_id}", "live", absent="gone") as answered:
                answered("live")


def _dice(seed: int, place: int) -> random.Random:
    """Each thread draws for itself, so that its draws do not depend on the others' pace."""
    return random.Random(f"{seed}/{place}")  # noqa: S311
