"""What operators do: one page with a form for each action; the script shows the form as a dialog.

A form says what happens to running jobs and asks for a reason, which is recorded with the operator's name. An
action is answered once it is stored: then the browser goes back to a page that shows it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from starlette.responses import Response

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.quoting import one_line
from gpu_agent.registry.tokens import Role
from gpu_agent.server.web.findings import gpu_number, jobs_of, placeable
from gpu_agent.server.web.live import LiveView
from gpu_agent.server.web.node import unknown_node
from gpu_agent.server.web.rendering import duration, node_url
from gpu_agent.server.web.visit import PageError, PageRoute, Visit
from gpu_agent.wire.api import NodeDetail

MAX_REASON = 500
DEADLINES = (600, 3600, 8 * 3600, 24 * 3600, 7 * 24 * 3600)
"""Seconds that a drain may be given, besides the registry's default."""

_JOBS_NAMED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a form asks."""

    title: str
    sentences: tuple[str, ...]
    """What happens, and what does not; the first one is what matters."""
    button: str
    back: str
    """The page that shows what was done, or what was not."""
    deadlines: tuple[tuple[str, str], ...] = ()
    """Of a drain: the seconds of each choice, and its words."""
    confirm: str = ""
    """What must be typed."""
    is_danger: bool = False
    hidden: Mapping[str, str] | None = None
    """Fields that go with the form as they are."""
    reader: str = "others see it"
    """Who reads the reason."""


@dataclass(frozen=True, slots=True)
class Action:
    """One action: its path, who may do it, its question, and what it does."""

    path: str
    ask: Callable[[Visit], Question]
    do: Callable[[Visit, str], Awaitable[Refusal | None]]
    needed: Role = Role.OPERATE

    @property
    def routes(self) -> tuple[PageRoute, PageRoute]:
        """Its page, and where the form goes."""
        return PageRoute(self.path, self._show, self.needed), PageRoute(
            self.path, self._act, self.needed, method="POST"
        )

    async def _show(self, visit: Visit) -> Response:
        return _form(visit, self.ask(visit))

    async def _act(self, visit: Visit) -> Response:
        question, reason = self.ask(visit), visit.form.get("reason", "").strip()
        problem = _problem(visit, question, reason)
        if problem:
            return _form(visit, question, problem=problem, status=HTTPStatus.UNPROCESSABLE_ENTITY)
        visit.raise_if_refused(await self.do(visit, reason))
        return visit.go_to(question.back)


def _form(
    visit: Visit, question: Question, *, problem: str = "", status: HTTPStatus = HTTPStatus.OK
) -> Response:
    return visit.render(
        "action.html",
        status=status,
        question=question,
        problem=problem,
        reason=visit.form.get("reason", ""),
        deadline=visit.form.get("deadline_seconds", ""),
        most=MAX_REASON,
    )


def _problem(visit: Visit, question: Question, reason: str) -> str:
    """Say what is wrong with a form; empty where nothing is."""
    if not reason:
        return "State a reason: others will ask for it."
    if len(reason) > MAX_REASON:
        return f"The reason has {len(reason)} characters: write at most {MAX_REASON}."
    if question.confirm and " ".join(visit.form.get("confirm", "").split()) != question.confirm:
        return f"Type {question.confirm} to confirm."
    deadline = visit.form.get("deadline_seconds", "")
    if question.deadlines and deadline not in {seconds for seconds, _ in question.deadlines}:
        return "Choose one of the deadlines."
    return ""


def _node(visit: Visit) -> NodeDetail:
    node_id = visit.param("node_id")
    node = visit.registry.node(node_id)
    if node is None:
        raise unknown_node(visit.registry, node_id)
    return node


def _name(node: NodeDetail) -> str:
    return node.hostname or node.node_id


def _typed_name(node: NodeDetail) -> str:
    """Return the hostname as a person can type it; the node's id where nobody can."""
    name = " ".join((node.hostname or "").split())
    return name if name and one_line(name) == name else node.node_id


def _by(visit: Visit) -> str:
    return visit.requester.name or ""


def _jobs_sentence(jobs: tuple[str, ...], *, then: str) -> str:
    """Name the jobs that are concerned."""
    if not jobs:
        return f"No job runs there. {then}"
    named = ", ".join(f"`{job.replace('`', '_')}`" for job in jobs[:_JOBS_NAMED])
    more = f" and {len(jobs) - _JOBS_NAMED} more" if len(jobs) > _JOBS_NAMED else ""
    count = "1 job runs" if len(jobs) == 1 else f"{len(jobs)} jobs run"
    return f"{count} there: {named}{more}. {then}"


def _jobs(node: NodeDetail) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*node.claimed_jobs, *(node.running_jobs or ()))))


def _ask_drain(visit: Visit) -> Question:
    node, name = _node(visit), _name(_node(visit))
    default = duration(visit.registry.thresholds.drain_deadline_seconds)
    choices = [("", f"the registry's default: {default}")]
    choices += [(str(seconds), duration(seconds)) for seconds in DEADLINES]
    return Question(
        title=f"Drain {name}?",
        sentences=(
            _jobs_sentence(_jobs(node), then="What runs goes on; no new job comes."),
            "The node goes offline when its jobs have ended, or at the deadline. Resume takes it back.",
        ),
        button=f"Drain {name}",
        back=node_url(node.node_id),
        deadlines=tuple(choices),
    )


async def _drain(visit: Visit, reason: str) -> Refusal | None:
    seconds = visit.form.get("deadline_seconds", "")
    return await visit.registry.drain(
        visit.param("node_id"),
        deadline_seconds=float(seconds) if seconds else None,
        reason=reason,
        by=_by(visit),
    )


def _ask_resume(visit: Visit) -> Question:
    node, name = _node(visit), _name(_node(visit))
    return Question(
        title=f"Resume {name}?",
        sentences=(
            "The node takes jobs again.",
            "It proves its health first, as a new node does; where its agent is not connected, once it is.",
        ),
        button=f"Resume {name}",
        back=node_url(node.node_id),
    )


async def _resume(visit: Visit, reason: str) -> Refusal | None:
    return await visit.registry.resume(visit.param("node_id"), reason=reason, by=_by(visit))


def _ask_cordon(visit: Visit) -> Question:
    node, name = _node(visit), _name(_node(visit))
    return Question(
        title=f"Cordon {name}?",
        sentences=(
            _jobs_sentence(_jobs(node), then="No new job comes. Its status, its jobs and their claims stay."),
            "Uncordon ends this at any time.",
        ),
        button=f"Cordon {name}",
        back=node_url(node.node_id),
    )


async def _cordon(visit: Visit, reason: str) -> Refusal | None:
    return await visit.registry.cordon(visit.param("node_id"), reason=reason, by=_by(visit))


def _ask_uncordon(visit: Visit) -> Question:
    node, name = _node(visit), _name(_node(visit))
    return Question(
        title=f"Uncordon {name}?",
        sentences=(
            "New jobs may go there again, whenever the node is ready.",
            f"It was cordoned for this reason: {node.cordoned or 'none given'}",
        ),
        button=f"Uncordon {name}",
        back=node_url(node.node_id),
    )


async def _uncordon(visit: Visit, reason: str) -> Refusal | None:
    return await visit.registry.uncordon(visit.param("node_id"), reason=reason, by=_by(visit))


def _ask_refresh(visit: Visit) -> Question:
    node, name = _node(visit), _name(_node(visit))
    return Question(
        title=f"Refresh {name}?",
        sentences=(
            "The agent probes its GPUs and models now, and reports all of them with its next heartbeat.",
            "Jobs notice nothing.",
        ),
        button=f"Refresh {name}",
        back=node_url(node.node_id),
    )


async def _refresh(visit: Visit, reason: str) -> Refusal | None:
    return await visit.registry.refresh(visit.param("node_id"), reason=reason, by=_by(visit))


def _ask_remove(visit: Visit) -> Question:
    node, name = _node(visit), _name(_node(visit))
    return Question(
        title=f"Remove {name}?",
        sentences=(
            f"This cannot be undone: the record of `{node.node_id}`, its history and its node token go.",
            _jobs_sentence(_jobs(node), then="Claims on the node end; the jobs themselves are not stopped."),
            "The machine can join again only with a join token.",
        ),
        button=f"Remove {name}",
        back="/nodes",
        confirm=_typed_name(node),
        is_danger=True,
    )


async def _remove(visit: Visit, reason: str) -> Refusal | None:
    return await visit.registry.remove(visit.param("node_id"), reason=reason, by=_by(visit))


def _gpu_words(visit: Visit) -> tuple[NodeDetail, str, tuple[str, ...]]:
    """Return the node, what its GPU is called, and the jobs on it."""
    node, uuid = _node(visit), visit.param("uuid")
    for place, gpu in enumerate(placeable(node.gpus)):
        if gpu.uuid == uuid:
            return node, f"GPU {gpu_number(gpu, place)} of {_name(node)}", jobs_of(gpu)
    return node, f"{uuid} of {_name(node)}", ()


def _ask_cordon_gpu(visit: Visit) -> Question:
    node, name, jobs = _gpu_words(visit)
    return Question(
        title=f"Cordon {name}?",
        sentences=(
            _jobs_sentence(jobs, then="No new claim gets this GPU; one that holds it goes on."),
            "The node's other GPUs stay in service. Uncordon ends this at any time.",
        ),
        button=f"Cordon {name}",
        back=node_url(node.node_id),
    )


async def _cordon_gpu(visit: Visit, reason: str) -> Refusal | None:
    node_id, uuid = visit.param("node_id"), visit.param("uuid")
    return await visit.registry.cordon_gpu(node_id, uuid, reason=reason, by=_by(visit))


def _ask_uncordon_gpu(visit: Visit) -> Question:
    node, name, _ = _gpu_words(visit)
    return Question(
        title=f"Uncordon {name}?",
        sentences=("Claims may have this GPU again.",),
        button=f"Uncordon {name}",
        back=node_url(node.node_id),
    )


async def _uncordon_gpu(visit: Visit, reason: str) -> Refusal | None:
    node_id, uuid = visit.param("node_id"), visit.param("uuid")
    return await visit.registry.uncordon_gpu(node_id, uuid, reason=reason, by=_by(visit))


def _ask_release(visit: Visit) -> Question:
    job_id = visit.param("job_id")
    claim = visit.registry.claim_of(job_id)
    if claim is None:
        raise PageError(
            HTTPStatus.NOT_FOUND,
            "There is no such claim",
            f"The job {job_id!r} holds no claim. It may have ended.",
        )
    return Question(
        title=f"Release the claim of {job_id}?",
        sentences=(
            "The job itself is not stopped.",
            "Its slot and GPUs can go to other jobs at once, while it may still use them.",
        ),
        button="Release the claim",
        back="/jobs",
        is_danger=True,
        hidden={"claim_id": visit.form.get("claim_id") or claim.claim_id},
        reader="its owner sees it",
    )


async def _release(visit: Visit, reason: str) -> Refusal | None:
    return await visit.registry.release(
        visit.param("job_id"),
        visit.form.get("claim_id") or None,
        requester=visit.requester,
        reason=reason,
    )


def release_url(job_id: str) -> str:
    """Return the address of the page that releases a job's claim."""
    return f"/jobs/{quote(job_id, safe='')}/release"


_GPU = "/nodes/{node_id}/gpus/{uuid}"
_ACTIONS = (
    Action("/nodes/{node_id}/drain", _ask_drain, _drain),
    Action("/nodes/{node_id}/resume", _ask_resume, _resume),
    Action("/nodes/{node_id}/cordon", _ask_cordon, _cordon),
    Action("/nodes/{node_id}/uncordon", _ask_uncordon, _uncordon),
    Action("/nodes/{node_id}/refresh", _ask_refresh, _refresh),
    Action("/nodes/{node_id}/remove", _ask_remove, _remove, Role.ADMIN),
    Action(f"{_GPU}/cordon", _ask_cordon_gpu, _cordon_gpu),
    Action(f"{_GPU}/uncordon", _ask_uncordon_gpu, _uncordon_gpu),
    Action("/jobs/{job_id:path}/release", _ask_release, _release),
)

ROUTES = tuple(route for action in _ACTIONS for route in action.routes)
LIVE: Mapping[str, Callable[[Visit], LiveView]] = {}
"""Forms do not change by themselves."""
