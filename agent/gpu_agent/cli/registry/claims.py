"""Jobs and their slots: `registry explain`, `select`, `claim`, `renew`, `release`, `claims`, `exclusions`."""

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.client.http import (
    CLAIM,
    CLAIMS,
    EXCLUSIONS,
    EXPLANATION,
    NODE_DETAIL,
    SELECTION,
    Api,
    Refused,
    Shape,
    get_all_pages,
)
from gpu_agent.cli.client.resources import JobClaim, Node
from gpu_agent.cli.command import Commands, ExitCode, Failure, describe
from gpu_agent.cli.options import add_request_options, label_pair, positive_number, print_json, whole_number
from gpu_agent.cli.output.exclusions import counts_in_words, eligibility_table, need_and_have
from gpu_agent.cli.output.nodes import NO_NODES
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import Piece, line, print_lines, printable, terminal_columns
from gpu_agent.cli.output.units import duration_in_words
from gpu_agent.cli.registry.events import clock

_Demands = dict[str, object]


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add one option for each demand that a job may state."""
    demands = parser.add_argument_group("what the job demands")
    demands.add_argument(
        "--model", action="append", default=[], metavar="M", help="a required model (repeatable)"
    )
    demands.add_argument(
        "--feature", action="append", default=[], metavar="F", help="a required feature (repeatable)"
    )
    demands.add_argument("--public", action="store_true", help="a job of the public pool")
    demands.add_argument(
        "--gpus", type=positive_number, default=1, metavar="N", help="how many GPUs (default 1)"
    )
    demands.add_argument("--gpu-name", metavar="NAME", help="part of the GPU's name")
    demands.add_argument(
        "--min-gpu-memory-mb", type=positive_number, metavar="MB", help="free memory on each GPU, in MiB"
    )
    demands.add_argument(
        "--label",
        action="append",
        type=label_pair,
        default=[],
        metavar="K=V",
        help="a required label (repeatable)",
    )
    demands.add_argument(
        "--node", action="append", default=None, metavar="ID", help="only on these nodes (repeatable)"
    )
    demands.add_argument(
        "--affinity", metavar="KEY", help="prefer the node that last had a job with this key"
    )
    demands.add_argument("--priority", type=whole_number, metavar="N", help="the job's priority (default 0)")


def job_request(arguments: argparse.Namespace) -> _Demands:
    """The demands as the API reads them; what was not asked for is left out."""
    job: _Demands = {
        "required_models": arguments.model,
        "required_features": arguments.feature,
        "public": arguments.public or None,
        "gpu_count": arguments.gpus,
        "gpu_name": arguments.gpu_name,
        "min_gpu_memory_mb": arguments.min_gpu_memory_mb,
        "labels": dict(arguments.label),
        "allowed_nodes": arguments.node,
        "affinity_key": arguments.affinity,
        "priority": arguments.priority,
    }
    return {name: value for name, value in job.items() if value not in (None, [], {})}


_NO_NODE = "NO_AVAILABLE_NODE"
_EXAMPLES = 5


def request_slot(
    api: Api, path: str, job: Mapping[str, object], *, arguments: argparse.Namespace, shape: Shape
) -> dict[str, Any] | None:
    """Ask for a place; None when nobody can take the job and that is what was to be printed."""
    try:
        return api.post(path, job, shape)
    except Refused as refused:
        if refused.problem.code != _NO_NODE:
            raise
        if arguments.json:
            print_json(refused.problem.document)
            return None
        told = "\n".join([str(refused), *_examples(refused.problem.document)])
        raise Failure(told, code=ExitCode.NOBODY) from None


def slot_in_words(place: Mapping[str, Any]) -> str:
    """Where a job has its place: the node, its GPUs, and where its worker is reached."""
    gpus = f", GPUs {' '.join(place['gpu_uuids'])}" if place.get("gpu_uuids") else ""
    worker = f", workers at {place['endpoint']}" if place.get("endpoint") else ""
    return printable(f"{place['node_id']}{gpus}{worker}")


def lease_in_words(place: Mapping[str, Any]) -> str:
    """How long a place is held unless it is renewed."""
    return f"for {duration_in_words(place['expires_at'] - time.time())} unless renewed"


def _examples(problem: Mapping[str, Any]) -> list[str]:
    examples = problem.get("examples")
    if not isinstance(examples, dict):
        return []
    told = [
        printable(f"{one['node_id']}: {one['reason']} ({need_and_have(one)})")
        for shown in examples.values()
        for one in shown
    ]
    return [f"  {one}" for one in told[:_EXAMPLES]]


def configure_select(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Say which node a job would get now, and which of its GPUs, without reserving them:\n"
        "a dry run of `claim`.",
        example="gpu-agent registry select --model my/model --min-gpu-memory-mb 16000",
        exits={ExitCode.OK: "there is a node", ExitCode.NOBODY: "no node can take the job now"},
    )
    add_job_options(parser)
    add_request_options(
        parser, json_is="what POST /v1/dispatch/select answers, a refusal for want of a node too"
    )


def run_select(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    job = job_request(arguments)
    place = request_slot(Api.of(arguments), "/v1/dispatch/select", job, arguments=arguments, shape=SELECTION)
    if place is None:
        return ExitCode.NOBODY
    if arguments.json:
        print_json(place)
    else:
        print(slot_in_words(place))
    return ExitCode.OK


def configure_explain(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: one for each demand that a job may state."""
    describe(
        parser,
        "Describe a job; every node answers whether it could take it now, and if not, which\n"
        "demand fails first, what the job needs and what the node has. Reserves nothing.",
        example="gpu-agent registry explain --model my/model --gpus 2 --label zone=a",
        exits={ExitCode.OK: "explained, whether or not a node is able"},
    )
    add_job_options(parser)
    add_request_options(parser, json_is="what POST /v1/dispatch/explain answers")


def run_explain(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Api.of(arguments).post("/v1/dispatch/explain", job_request(arguments), EXPLANATION)
    if arguments.json:
        print_json(answer)
        return ExitCode.OK
    if not (answer["able"] or answer["excluded"]):
        print(NO_NODES)
        return ExitCode.OK
    print_lines(eligibility_table(answer["able"], answer["excluded"], terminal_columns()))
    print(f"{len(answer['able'])} able; excluded: {counts_in_words(answer['counts']) or 'none'}")
    return ExitCode.OK


_EXCLUSION_COLUMNS = (
    Column(head="FROM"),
    Column(head="FAILED", right=True),
    Column(head="REASON"),
    Column(head="NODES", right=True),
)


def configure_exclusions(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Count what jobs failed on in the last hour, by the minute: how many found no node, and how "
        "many nodes fell to each reason, with one of them as an example.",
        example="gpu-agent registry exclusions",
        exits={ExitCode.OK: "counted, even if no job failed"},
    )
    add_request_options(parser, json_is="what GET /v1/exclusions answers")


def run_exclusions(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Api.of(arguments).get("/v1/exclusions", EXCLUSIONS)
    if arguments.json:
        print_json(answer)
        return ExitCode.OK
    now = time.time()
    rows = [row for window in answer["windows"] for row in _exclusion_rows(window, now)]
    if rows:
        print_lines(render_table(Table(_EXCLUSION_COLUMNS, rows, note="FOR EXAMPLE"), terminal_columns()))
    else:
        print("Every job of the last hour found a node, or none asked for one.")
    return ExitCode.OK


def _exclusion_rows(window: Mapping[str, Any], now: float) -> Iterator[Row]:
    for reason, count in window["counts"].items():
        examples = window["examples"].get(reason) or ()
        yield Row(
            (
                line(clock(window["window_start"], now)),
                line(window["failed"]),
                line(Piece(reason, "yellow")),
                line(count),
            ),
            line(*(f"{one['node_id']} {need_and_have(one)}" for one in examples[:1])),
        )
    if window["failed"] and not window["counts"]:
        yield Row(
            (line(clock(window["window_start"], now)), line(window["failed"]), line("no node known"), line(0))
        )


def configure_claim(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Reserve a place for a job on the best node that can take it now. The same job again\n"
        "gets the same place. Renew the claim while the job runs, release it when it ends.",
        example="gpu-agent registry claim job-1 --model my/model --gpus 2",
        exits={ExitCode.OK: "the place is reserved", ExitCode.NOBODY: "no node can take the job now"},
    )
    parser.add_argument("job_id", metavar="JOB", help="the job's id, which whoever runs it chooses")
    add_job_options(parser)
    add_request_options(parser, json_is="what POST /v1/claims answers, a refusal for want of a node too")


def run_claim(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    job = {"job_id": arguments.job_id, **job_request(arguments)}
    place = request_slot(Api.of(arguments), "/v1/claims", job, arguments=arguments, shape=CLAIM)
    if place is None:
        return ExitCode.NOBODY
    if arguments.json:
        print_json(place)
    else:
        print(f"{printable(arguments.job_id)} has a place on {slot_in_words(place)}, {lease_in_words(place)}")
    return ExitCode.OK


def configure_renew(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Keep a job's place for one more TTL (`registry thresholds` shows how long that is).",
        example="gpu-agent registry renew job-1",
        exits={ExitCode.OK: "renewed", ExitCode.REFUSED: "no such claim is held, or the registry refused"},
    )
    parser.add_argument("job_id", metavar="JOB", help="the job, as `registry claims` shows it")
    add_request_options(parser, json_is="what POST /v1/claims/JOB/renew answers")


def run_renew(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    place = JobClaim(Api.of(arguments), arguments.job_id).renew(CLAIM)
    if arguments.json:
        print_json(place)
    else:
        job = printable(arguments.job_id)
        print(f"{job} keeps its place on {slot_in_words(place)}, {lease_in_words(place)}")
    return ExitCode.OK


def configure_release(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Give a job's place back, so that another job may have it. Ends no process.",
        example="gpu-agent registry release job-1",
        exits={ExitCode.OK: "released", ExitCode.REFUSED: "no such claim is held, or the registry refused"},
    )
    parser.add_argument("job_id", metavar="JOB", help="the job, as `registry claims` shows it")
    add_request_options(parser, json_is="nothing, as DELETE /v1/claims/JOB answers nothing")


def run_release(arguments: argparse.Namespace) -> int:
    """Ask and say so."""
    JobClaim(Api.of(arguments), arguments.job_id).release()
    if not arguments.json:
        print(f"{printable(arguments.job_id)} has no place any more")
    return ExitCode.OK


_CLAIM_COLUMNS = (
    Column(head="JOB", wraps=True),
    Column(head="NODE"),
    Column(head="HELD", right=True, priority=2),
    Column(head="ENDS IN", right=True),
    Column(head="GPUS", wraps=True),
    Column(head="ENDPOINT", priority=1),
)


def configure_claims(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "List the claims that are held: job, node, for how long already, and when each ends\n"
        "unless it is renewed.",
        example="gpu-agent registry claims --node node-7",
        exits={ExitCode.OK: "listed, even if there is none"},
    )
    parser.add_argument("--node", metavar="ID", help="only those on this node")
    add_request_options(parser, json_is="what GET /v1/claims answers, all pages as one")


def run_claims(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    api = Api.of(arguments)
    query = [] if arguments.node is None else [("node_id", arguments.node)]
    answer = get_all_pages(api, "/v1/claims", CLAIMS, key="claims", query=query)
    if arguments.node is not None and not answer["claims"]:
        Node(api, arguments.node).get(shape=NODE_DETAIL)  # "none" of a node that nobody knows would mislead
    if arguments.json:
        print_json(answer)
    elif answer["claims"]:
        now = time.time()
        print_lines(
            render_table(
                Table(_CLAIM_COLUMNS, [_claim_row(claim, now) for claim in answer["claims"]]),
                terminal_columns(),
            )
        )
    else:
        print("No claim is held." if arguments.node is None else f"No claim is held on {arguments.node}.")
    return ExitCode.OK


def _claim_row(claim: Mapping[str, Any], now: float) -> Row:
    granted = claim.get("granted_at")
    return Row(
        (
            line(claim["job_id"]),
            line(claim["node_id"]),
            line("" if granted is None else duration_in_words(now - granted)),
            line(duration_in_words(claim["expires_at"] - now)),
            line(" ".join(claim.get("gpu_uuids") or ())),
            line(claim.get("endpoint") or ""),
        )
    )


COMMANDS: Commands = {
    "explain": (configure_explain, run_explain),
    "select": (configure_select, run_select),
    "claim": (configure_claim, run_claim),
    "renew": (configure_renew, run_renew),
    "release": (configure_release, run_release),
    "claims": (configure_claims, run_claims),
    "exclusions": (configure_exclusions, run_exclusions),
}
