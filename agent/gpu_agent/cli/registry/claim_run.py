"""`registry claim run`: claim GPUs for a command, renew the claim while the command runs, then release it.

Uses the command line's own HTTP, so that it needs no extra.
"""

import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from gpu_agent.cli.child import Child, find_command, run_child
from gpu_agent.cli.client.events import Received, follow_events
from gpu_agent.cli.client.http import TIMEOUT_SECONDS, Api, Refused, api_options, quote_id, without_none
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.text import printable
from gpu_agent.cli.output.units import parse_duration
from gpu_agent.cli.registry.claims import request_slot, slot_in_words
from gpu_agent.cli.registry.job_options import job_options, job_request, ttl_option
from gpu_agent.cli.signals import Interruption
from gpu_agent.wire.api import ClaimView, RegistryEvent
from gpu_agent.wire.lease import END_CODES, END_EVENTS, Lease, is_worth_asking_again

ONE_WAIT_SECONDS = 5.0
"""The longest wait of one request; the job keeps its position in the queue between two requests."""
GRACE_SECONDS = 30.0
RELEASE_SECONDS = 5.0
RETRY_SECONDS = 1.0

_BUSY = 503
_LONGEST_VARIABLE = 128 * 1024 - 64
"""Linux runs no command with a longer variable (`MAX_ARG_STRLEN`, its name included)."""


def declare() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Run a command with GPUs that are claimed for it: wait for them, claim them, renew the claim "
        "while "
        "the command runs, release them when it ends. The command stands behind `--`.\n\n"
        "The command finds GPU_AGENT_NODE_ID, GPU_AGENT_HOSTNAME, GPU_AGENT_ENDPOINT, GPU_AGENT_CLAIM_ID, "
        "GPU_AGENT_GPU_UUIDS and CUDA_VISIBLE_DEVICES in its environment; of a job on several nodes these "
        "are the first one's, and GPU_AGENT_NODE_IDS names all. GPU_AGENT_CLAIM is the claim as JSON, as "
        "POST /v1/claims answers it, with the hostname, GPUs and endpoint of every node; it is left out "
        "where it is longer than 128 KiB. The command runs on this machine: to run it on the claimed node, "
        "begin it with what reaches that node, such as ssh.\n\n"
        "It ends as the command ends: with its code, or 128 and the number of the signal that ended it; "
        "with 127 where there is no such command, and 126 where it cannot be run. A claim may be lost "
        "before: when its node goes offline, or when the registry cannot be reached in time.",
        example="gpu-agent registry claim run job-1 --gpus 2 --wait 10m -- python train.py",
        exits={
            ExitCode.OK: "the command ended with 0",
            ExitCode.NO_NODE: "no node could take the job in time, and the command was not run",
        },
        params=[
            argument("job_id", metavar="JOB", help="the job's id, which its scheduler chooses"),
            argument("command", metavar="COMMAND", help="what to run, behind `--`", several=True),
            option(
                "--wait",
                type=parse_duration,
                default=0.0,
                metavar="DURATION",
                help="how long to wait where no node can take the job now, such as 90s or 2h (default: not "
                "at all)",
            ),
            *ttl_option(),
            option(
                "--kill-on-loss",
                help="end the command when the claim is lost, with SIGTERM, then with SIGKILL",
                flag=True,
            ),
            option(
                "--grace",
                type=parse_duration,
                default=GRACE_SECONDS,
                metavar="DURATION",
                help=f"time between SIGTERM and SIGKILL (default {GRACE_SECONDS:.0f}s)",
            ),
            *job_options(),
            *api_options(),
        ],
    )


def run(arguments: Arguments) -> int:
    """Claim, run the command, release, and end as the command ends."""
    problem = find_command(arguments.command[0])
    if problem is not None:
        return problem
    api = Api.of(arguments)
    job: dict[str, object] = {
        "job_id": arguments.job_id,
        **job_request(arguments),
        **without_none(ttl_seconds=arguments.ttl),
    }
    grace_seconds = arguments.grace if arguments.kill_on_loss else None
    with Interruption() as interruption:
        claim, lease = _acquire(api, job, wait_seconds=arguments.wait)
        held = _HeldClaim(api, claim, lease, grace_seconds=grace_seconds)
        with held.renewed():
            try:
                print_stderr(f"{printable(claim.job_id)} has {slot_in_words(claim)}")
                return run_child(arguments.command, variables=claim_variables(claim), started=held.attach)
            finally:
                interruption.finish()


def claim_variables(claim: ClaimView) -> dict[str, str]:
    """Return what a command finds in its environment; CUDA's variable only where it has GPUs of its own."""
    node = claim.nodes[0]
    gpus = [*node.gpu_uuids] or [str(index) for index in node.gpu_indices]
    variables = {
        "GPU_AGENT_NODE_ID": node.node_id,
        "GPU_AGENT_NODE_IDS": ",".join(one.node_id for one in claim.nodes),
        "GPU_AGENT_HOSTNAME": node.hostname or "",
        "GPU_AGENT_ENDPOINT": node.endpoint or "",
        "GPU_AGENT_CLAIM_ID": claim.claim_id,
        "GPU_AGENT_GPU_UUIDS": ",".join(node.gpu_uuids),
    }
    document = claim.model_dump_json()
    if len(document.encode()) <= _LONGEST_VARIABLE:
        variables["GPU_AGENT_CLAIM"] = document
    return {**variables, "CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else variables


def _acquire(api: Api, job: Mapping[str, object], *, wait_seconds: float) -> tuple[ClaimView, Lease]:
    """Claim, waiting so long; leaves no claim behind when it is interrupted."""
    until = time.monotonic() + wait_seconds
    answered = False
    try:
        while True:
            sent_at = time.monotonic()
            wait = min(max(until - sent_at, 0.0), ONE_WAIT_SECONDS)
            try:
                slot = request_slot(
                    api,
                    "/v1/claims",
                    {**job, "wait_seconds": wait},
                    model=ClaimView,
                    as_json=False,
                )
            except Failure as failure:
                answered = answered or isinstance(failure, Refused) or failure.code is ExitCode.NO_NODE
                now = time.monotonic()
                waits = is_worth_asking_again(wait_seconds=wait, waited_seconds=now - sent_at)
                if now >= until or not _may_ask_again(failure, answered=answered, waits=waits):
                    raise
                if failure.code is not ExitCode.NO_NODE:
                    time.sleep(RETRY_SECONDS)
                continue
            if slot is None:
                raise RuntimeError("a slot was printed instead of returned; this is a bug")
            return slot.model, Lease.of(slot.model, sent_at=sent_at)
    except KeyboardInterrupt:
        _undo(api, job)
        raise


def _may_ask_again(failure: Failure, *, answered: bool, waits: bool) -> bool:
    """Whether the same request may have another outcome; a registry that never answered is not waited for."""
    if failure.code is ExitCode.NO_NODE:
        return waits
    if isinstance(failure, Refused):
        return failure.status == _BUSY
    return answered and failure.code is ExitCode.UNREACHABLE


def _undo(api: Api, job: Mapping[str, object]) -> None:
    """Release what an interrupted request may have reserved; the same request again returns it."""
    with suppress(Failure):
        slot = api.post("/v1/claims", {**job, "wait_seconds": 0}, ClaimView)
        api.delete(_path_of(slot.model))


def _path_of(claim: ClaimView) -> str:
    return f"/v1/claims/{quote_id(claim.job_id)}?claim_id={quote_id(claim.claim_id)}"


class _HeldClaim:
    """A claim that a thread renews while the command runs."""

    def __init__(self, api: Api, claim: ClaimView, lease: Lease, *, grace_seconds: float | None) -> None:
        self._api, self._claim, self._lease = api, claim, lease
        self._grace_seconds = grace_seconds
        """None where the command goes on after a loss."""
        self._ended = threading.Event()
        self._due = threading.Event()
        """Set to renew at once: by an event of this claim, and at the end."""
        self._lost = False
        self._why = ""
        """How the claim has ended, where an event said so: the refusal of a renewal does not."""
        self._failure = ""
        """Why the last renewal failed; empty where it did not."""
        self._child: Child | None = None

    def attach(self, child: Child) -> None:
        """Note which command to end when the claim is lost."""
        self._child = child
        if self._lost:
            self._end_child()

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew while the block lasts, then release."""
        for work, name in ((self._renew_while_held, "renew the claim"), (self._follow, "follow the claim")):
            threading.Thread(target=work, name=name, daemon=True).start()
        try:
            yield
        finally:
            self._ended.set()
            self._due.set()
            self._release()

    def _renew_while_held(self) -> None:
        """Renew also after a loss: a lost claim may be attached again when its node is back."""
        while True:
            self._due.wait(max(0.0, self._lease.renew_at - time.monotonic()))
            self._due.clear()
            if self._ended.is_set():
                return
            sent_at = time.monotonic()
            if self._failure and self._lease.has_expired(sent_at):
                self._lose(f"it could not be renewed in time: {self._failure}")
            try:
                renewed = self._renew(within_seconds=self._lease.expires_at - sent_at)
            except Failure as failure:
                self._note_failure(failure, sent_at)
            else:
                self._lease, self._failure = Lease.of(renewed, sent_at=sent_at), ""
                self._regain()

    def _renew(self, *, within_seconds: float) -> ClaimView:
        """Renew before the claim expires, or after that as any request is sent."""
        within = min(within_seconds, TIMEOUT_SECONDS) if within_seconds > 0 else TIMEOUT_SECONDS
        path = f"/v1/claims/{quote_id(self._claim.job_id)}/renew"
        return self._api.post(
            path, {"claim_id": self._claim.claim_id}, ClaimView, timeout_seconds=within
        ).model

    def _follow(self) -> None:
        """Renew at once when an event says that the claim has ended; without, a renewal notices it later."""
        with suppress(Failure):
            for one in follow_events(self._api, answered=True):
                if self._ended.is_set():
                    return
                if isinstance(one, Received) and self._is_end(one.event):
                    _, self._why = END_EVENTS[one.event.event]
                    self._due.set()

    def _is_end(self, event: RegistryEvent) -> bool:
        return event.event in END_EVENTS and event.fields.get("claim_id") == self._claim.claim_id

    def _note_failure(self, failure: Failure, sent_at: float) -> None:
        now = time.monotonic()
        if isinstance(failure, Refused) and failure.problem_code in END_CODES:
            self._lose(self._why or str(failure))
            self._lease = self._lease.refused(self._claim, sent_at=sent_at)
            return
        self._failure = str(failure)
        next_at = now + RETRY_SECONDS
        if self._lease.has_expired(now):
            self._lose(f"it could not be renewed in time: {failure}")
        else:
            next_at = min(next_at, self._lease.expires_at)
        self._lease = replace(self._lease, renew_at=next_at)

    def _lose(self, why: str) -> None:
        if self._lost or self._ended.is_set():
            return
        self._lost = True
        goes_on = self._grace_seconds is None
        what = "the command goes on (--kill-on-loss would end it)" if goes_on else "the command is ended"
        print_stderr(f"{printable(self._claim.job_id)} has lost its claim, and {what}: {printable(why)}")
        self._end_child()

    def _regain(self) -> None:
        """Say that the claim holds again, as after a restart of the registry, where the command goes on."""
        if self._lost and self._grace_seconds is None:
            self._lost, self._why = False, ""
            print_stderr(f"{printable(self._claim.job_id)} holds its claim again")

    def _end_child(self) -> None:
        """End the command in a thread of its own: the claim's renewals go on meanwhile."""
        child, grace_seconds = self._child, self._grace_seconds
        if child is None or grace_seconds is None:
            return

        def end() -> None:
            child.terminate()
            try:
                child.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                child.kill()

        threading.Thread(target=end, name="end the command", daemon=True).start()

    def _release(self) -> None:
        until = time.monotonic() + RELEASE_SECONDS
        while True:
            try:
                left = max(until - time.monotonic(), RETRY_SECONDS)
                self._api.delete(_path_of(self._claim), timeout_seconds=left)
            except Failure as failure:
                if isinstance(failure, Refused) and failure.problem_code in END_CODES:
                    return
                if time.monotonic() + RETRY_SECONDS > until:
                    print_stderr(f"the claim was not released, and expires by itself: {failure}")
                    return
                time.sleep(RETRY_SECONDS)
            else:
                return


COMMANDS: Commands = {"run": (declare, run)}
