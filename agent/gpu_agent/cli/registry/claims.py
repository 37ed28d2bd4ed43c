"""`registry claim create|list|show|renew|release`, and `registry queue`."""

import time
from collections.abc import Iterator, Mapping, Sequence

import click

from gpu_agent.cli.client.answers import Answer, Model, parse_answer
from gpu_agent.cli.client.http import (
    TIMEOUT_SECONDS,
    Api,
    Refused,
    reason_option,
    request_options,
    without_none,
)
from gpu_agent.cli.client.resources import Node, read_claim, release_claim, renew_claim
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.exclusions import need_and_have
from gpu_agent.cli.output.table import Column, Fact, Row, Table, render_facts, render_table
from gpu_agent.cli.output.text import (
    Line,
    Piece,
    join_blocks,
    line,
    print_json,
    print_lines,
    printable,
    terminal_columns,
)
from gpu_agent.cli.output.units import clock, duration_in_words, local_time
from gpu_agent.cli.registry.job_options import (
    job_options,
    job_request,
    job_words,
    life_options,
    life_request,
    ttl_option,
)
from gpu_agent.wire.api import (
    ClaimDetail,
    ClaimList,
    ClaimNode,
    ClaimView,
    Problem,
    QueueView,
    Selection,
    WaitingJob,
)
from gpu_agent.wire.codes import EXPLAIN_ADVICE

_NO_NODE = "NO_AVAILABLE_NODE"
_EXAMPLES = 5
_SHOWN_OF_UUID = 12
_STATE_COLORS = {"active": "green", "held": "yellow", "lost": "red"}
_CLAIM_COLUMNS = (
    Column(head="JOB", wraps=True),
    Column(head="STATE"),
    Column(head="HOST", wraps=True),
    Column(head="NODE", priority=6),
    Column(head="GPUS", wraps=True),
    Column(head="OWNER", priority=5),
    Column(head="FOR", right=True, priority=4),
    Column(head="ENDS IN", right=True),
    Column(head="ENDPOINT", priority=2),
)
_CLAIM_ID = Column(head="CLAIM", priority=1)
_USE_COLUMNS = (
    Column(head="NODE", wraps=True),
    Column(head="GPU", wraps=True),
    Column(head="MEAN LOAD", right=True),
    Column(head="HIGHEST", right=True),
)
_QUEUE_COLUMNS = (
    Column(head="", right=True),
    Column(head="JOB", wraps=True),
    Column(head="OWNER", priority=2),
    Column(head="PRIORITY", right=True),
    Column(head="WAITS FOR", right=True),
    Column(head="RESERVED", wraps=True, priority=1),
)


def declare_create() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Claim slots for a job on the best nodes that can take it now, with GPUs of its own\n"
        "where it asks for them. The same job again gets the same claim. Renew the claim while\n"
        "the job runs, release it when it ends.",
        example="gpu-agent registry claim create job-1 --model my/model --gpus 2 --wait 5m",
        exits={ExitCode.OK: "the slots are reserved", ExitCode.NO_NODE: "no node can take the job now"},
        params=[
            argument("job_id", metavar="JOB", help="the job's id, which its scheduler chooses"),
            *job_options(),
            *life_options(),
            *request_options(json_is="what POST /v1/claims answers, a refusal for want of a node too"),
        ],
    )


def run_create(arguments: Arguments) -> int:
    """Request it and print the slot."""
    job = {"job_id": arguments.job_id, **job_request(arguments), **life_request(arguments)}
    slot = request_slot(
        Api.of(arguments),
        "/v1/claims",
        job,
        model=ClaimView,
        as_json=arguments.json,
        wait_seconds=arguments.wait or 0.0,
    )
    if slot is None:
        return ExitCode.NO_NODE
    if arguments.json:
        print_json(slot.document)
    else:
        job_id = printable(arguments.job_id)
        print(f"{job_id} has a slot on {slot_in_words(slot.model)}, {lease_in_words(slot.model)}")
        print(f"claim {slot.model.claim_id}: name it with --claim-id when you renew or release it")
    return ExitCode.OK


def request_slot(
    api: Api,
    path: str,
    job: Mapping[str, object],
    *,
    model: type[Model],
    as_json: bool,
    wait_seconds: float = 0.0,
) -> Answer[Model] | None:
    """Request a slot; raises `Failure` where no node can take the job, or prints that and returns None."""
    try:
        return api.post(path, job, model, timeout_seconds=TIMEOUT_SECONDS + wait_seconds)
    except Refused as refused:
        if refused.problem_code != _NO_NODE:
            raise
        if as_json:
            print_json(refused.document)
            return None
        examples = _examples(parse_answer(refused.document, Problem).model)
        explain = f"Node by node: gpu-agent registry explain job {job_words(job)}".rstrip()
        words = str(refused).removesuffix(EXPLAIN_ADVICE)  # the command below is this program's own
        sentence = "\n".join([words, *examples, *([explain] if examples or words != str(refused) else [])])
        raise Failure(sentence, code=ExitCode.NO_NODE) from None


def _examples(problem: Problem) -> list[str]:
    examples = [
        printable(f"{one.node_id}: {one.reason} ({need_and_have(one)})")
        for of_reason in (problem.examples or {}).values()
        for one in of_reason
    ]
    return [f"  {one}" for one in examples[:_EXAMPLES]]


def slot_in_words(slot: ClaimView | Selection) -> str:
    """Say where a job has its slot: the node, its GPUs, and the endpoint of its workers."""
    return "; ".join(_node_in_words(one) for one in slot.nodes)


def _node_in_words(node: ClaimNode) -> str:
    name = f"{node.node_id} ({node.hostname})" if node.hostname else node.node_id
    given = _gpu_names(node)
    gpus = f", GPUs {' '.join(given)}" if given else ""
    worker = f", workers at {node.endpoint}" if node.endpoint else ""
    return printable(f"{name}{gpus}{worker}")


def _gpu_names(node: ClaimNode) -> tuple[str, ...]:
    """Name a claim's GPUs on one node: by UUID, and by position where the node states none."""
    return node.gpu_uuids or tuple(f"#{index}" for index in node.gpu_indices)


def lease_in_words(slot: ClaimView) -> str:
    """Say how long a slot is reserved unless the claim is renewed."""
    return f"for {duration_in_words(round(slot.expires_in_seconds))} unless renewed"


def declare_renew() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Renew a job's claim for one more TTL (`registry settings` shows how long that is).",
        example="gpu-agent registry claim renew job-1",
        exits={ExitCode.OK: "renewed", ExitCode.REFUSED: "the job has no claim, or the registry refused"},
        params=[
            *_which_claim(),
            *ttl_option(),
            *request_options(json_is="what POST /v1/claims/JOB/renew answers"),
        ],
    )


def run_renew(arguments: Arguments) -> int:
    """Request it and print the slot."""
    slot = renew_claim(Api.of(arguments), arguments.job_id, arguments.claim_id, ttl_seconds=arguments.ttl)
    if arguments.json:
        print_json(slot.document)
    else:
        job_id = printable(arguments.job_id)
        print(f"{job_id} keeps its slot on {slot_in_words(slot.model)}, {lease_in_words(slot.model)}")
    return ExitCode.OK


def declare_release() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Release a job's claim because the job has ended, so that another job may have the slot\n"
        "and the GPUs. A claim that has expired or was lost still holds its GPUs until its node\n"
        "shows that the job is gone: name it with --claim-id to release them. Ends no process.",
        example="gpu-agent registry claim release job-1",
        exits={ExitCode.OK: "released", ExitCode.REFUSED: "the job has no claim, or the registry refused"},
        params=[
            *_which_claim(),
            reason_option(),
            *request_options(json_is="nothing, as DELETE /v1/claims/JOB answers nothing"),
        ],
    )


def run_release(arguments: Arguments) -> int:
    """Request it and print."""
    release_claim(Api.of(arguments), arguments.job_id, arguments.claim_id, reason=arguments.reason)
    if not arguments.json:
        print(f"{printable(arguments.job_id)} has no slot any more")
    return ExitCode.OK


def _which_claim() -> list[click.Parameter]:
    return [
        argument("job_id", metavar="JOB", help="the job, as `registry claim list` shows it"),
        option("--claim-id", metavar="ID", help="only this claim of the job (default: your own current one)"),
    ]


def declare_list() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="List the claims: job, state, nodes, owner, for how long already, and when each expires\n"
        "unless it is renewed.",
        example="gpu-agent registry claim list --node node-7",
        exits={ExitCode.OK: "listed, even if there is none"},
        params=[
            option("--node", metavar="ID", help="only those on this node"),
            option("--ended", help="also those that ended within the hour, and how they ended", flag=True),
            *request_options(json_is="what GET /v1/claims answers, all pages as one"),
        ],
    )


def run_list(arguments: Arguments) -> int:
    """Read the list and print it."""
    api = Api.of(arguments)
    wanted = without_none(node_id=arguments.node, ended="true" if arguments.ended else None)
    query = [(name, str(value)) for name, value in wanted.items()]
    answer = api.get_pages("/v1/claims", ClaimList, members="claims", query=query)
    claims = answer.model.claims
    if arguments.node is not None and not claims:
        Node(api, arguments.node).detail()  # "no claim" on a node that does not exist would mislead
    if arguments.json:
        print_json(answer.document)
    elif claims:
        print_lines(claim_table(claims, terminal_columns(), now=time.time(), with_ids=arguments.ended))
    else:
        print("No claim is held." if arguments.node is None else f"No claim is held on {arguments.node}.")
    return ExitCode.OK


def claim_table(
    claims: Sequence[ClaimView], columns: int | None, *, now: float, with_ids: bool = False
) -> list[Line]:
    """Draw claims for a terminal of so many columns, None for no terminal; `now` is wall time."""
    heads = (*_CLAIM_COLUMNS, *([_CLAIM_ID] if with_ids else []))
    return render_table(Table(heads, [_claim_row(one, now, with_id=with_ids) for one in claims]), columns)


def _claim_row(claim: ClaimView, now: float, *, with_id: bool) -> Row:
    return Row(
        (
            line(claim.job_id),
            line(Piece(claim.state, _STATE_COLORS.get(claim.state, ""))),
            line(", ".join(one.hostname or one.node_id for one in claim.nodes)),
            line(" ".join(one.node_id for one in claim.nodes)),
            line("; ".join(_gpu_positions(one) for one in claim.nodes)),
            line(claim.owner or ""),
            line(duration_in_words((claim.ended_at or now) - claim.granted_at)),
            line("" if claim.ended_at else duration_in_words(claim.expires_in_seconds)),
            line(" ".join(one.endpoint for one in claim.nodes if one.endpoint)),
            *([line(claim.claim_id)] if with_id else []),
        )
    )


def _gpu_positions(node: ClaimNode) -> str:
    """Name a claim's GPUs on one node as `node show` numbers them; `claim show` has their UUIDs."""
    numbers = node.gpu_indices
    if not numbers or len(set(numbers)) < len(numbers):  # MIG devices have their GPU's position
        return " ".join(uuid[:_SHOWN_OF_UUID] for uuid in node.gpu_uuids)
    return " ".join(map(str, numbers))


def declare_show() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Show a job's claim, also for an hour after its end: where, since when, what happened to\n"
        "it, and how busy its GPUs were while it held them.",
        example="gpu-agent registry claim show job-1",
        exits={ExitCode.OK: "shown", ExitCode.REFUSED: "the job has no claim, and had none within the hour"},
        params=[
            argument("job_id", metavar="JOB", help="the job, as `registry claim list --ended` shows it"),
            *request_options(json_is="what GET /v1/claims/JOB answers"),
        ],
    )


def run_show(arguments: Arguments) -> int:
    """Read the claim and print it."""
    answer = read_claim(Api.of(arguments), arguments.job_id)
    if arguments.json:
        print_json(answer.document)
    else:
        print_lines(claim_page(answer.model, terminal_columns(), now=time.time()))
    return ExitCode.OK


def claim_page(claim: ClaimDetail, columns: int | None, *, now: float) -> list[Line]:
    """Draw a claim for a terminal of so many columns, None for no terminal; `now` is wall time."""
    state = Piece(claim.state, _STATE_COLORS.get(claim.state, ""))
    uses = [
        Row(
            (
                line(one.node_id),
                line(one.gpu_uuid),
                _percent(one.mean_utilization_percent),
                _percent(one.highest_utilization_percent),
            )
        )
        for one in claim.gpu_use
    ]
    notes = [line(Piece(f"{clock(one.at, now)}  ", "dim"), one.text) for one in claim.history]
    return join_blocks(
        (
            [line(Piece(claim.job_id, "bold"), "  ", state)],
            render_facts(_claim_facts(claim, now=now), columns),
            render_table(Table(_USE_COLUMNS, uses), columns),
            [line(Piece("HISTORY", "bold")), *notes] if notes else [],
        )
    )


def _claim_facts(claim: ClaimDetail, *, now: float) -> Iterator[Fact]:
    yield "claim", line(claim.claim_id)
    if claim.owner:
        yield "owner", line(claim.owner)
    for node in claim.nodes:
        yield "node", line(_node_in_words(node))
    held = duration_in_words((claim.ended_at or now) - claim.granted_at)
    yield "since", line(f"{local_time(claim.granted_at)}, for {held}")
    if claim.ended_at is not None:
        yield "ended", line(f"{local_time(claim.ended_at)} ({duration_in_words(now - claim.ended_at)} ago)")
    else:
        left = duration_in_words(claim.expires_in_seconds)
        yield "ends", line(f"in {left} unless renewed, each time for {duration_in_words(claim.ttl_seconds)}")
    if claim.gpu_sharing:
        yield "gpus", line(claim.gpu_sharing)


def _percent(value: float | None) -> Line:
    return line("?" if value is None else f"{value:.0f}%")


def declare_queue() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="List the jobs that wait for capacity, in the order in which they get it, each with the\n"
        "nodes that are reserved for it and the reason why no node takes it now.",
        example="gpu-agent registry queue",
        exits={ExitCode.OK: "listed, even if there is none"},
        params=[*request_options(json_is="what GET /v1/queue answers")],
    )


def run_queue(arguments: Arguments) -> int:
    """Read the queue and print it."""
    answer = Api.of(arguments).get("/v1/queue", QueueView)
    if arguments.json:
        print_json(answer.document)
    elif answer.model.jobs:
        rows = [_queue_row(job) for job in answer.model.jobs]
        print_lines(render_table(Table(_QUEUE_COLUMNS, rows, note="REASON"), terminal_columns()))
    else:
        print("No job waits.")
    return ExitCode.OK


def _queue_row(job: WaitingJob) -> Row:
    unasked = "" if job.open_requests else "nobody waits for the answer now"
    reason = "; ".join(filter(None, (unasked, job.reason)))
    return Row(
        (
            line(job.position),
            line(job.job_id),
            line(job.owner or ""),
            line(job.priority),
            line(duration_in_words(job.waited_seconds)),
            line(" ".join(job.reserved_nodes)),
        ),
        line(reason),
    )


COMMANDS: Commands = {
    "create": (declare_create, run_create),
    "list": (declare_list, run_list),
    "show": (declare_show, run_show),
    "renew": (declare_renew, run_renew),
    "release": (declare_release, run_release),
    "queue": (declare_queue, run_queue),
}
