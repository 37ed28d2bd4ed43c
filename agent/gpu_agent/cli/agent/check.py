"""`gpu-agent check`: all admission checks of this machine, now, without an agent and without a registry."""

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from gpu_agent.cli.agent.reading import ProbeRequest, is_configured
from gpu_agent.cli.agent.settings import load_settings
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, option
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.text import Line, Piece, line, print_json, print_lines, terminal_columns, wrap
from gpu_agent.cli.signals import Interruption
from gpu_agent.probe.checks.judgement import Expected, Result, judge_count
from gpu_agent.probe.checks.machine import (
    check_gpu,
    real_child,
    run_hook,
    simulated_child,
    why_no_hook,
    why_not_checked,
)
from gpu_agent.probe.checks.process import CheckProcesses
from gpu_agent.probe.collectors.runner import collect_reports, merge_reports, start_collectors
from gpu_agent.probe.nvml.no_answer import DEADLINE_SECONDS
from gpu_agent.probe.nvml.process import start_child
from gpu_agent.probe.nvml.report import read_once
from gpu_agent.probe.simulation.gpus import read_simulated_once
from gpu_agent.wire.codes import NODE_SCOPE
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome
from gpu_agent.wire.probe_document import Document, json_schema

DESCRIPTION = """\
Run all admission checks of this machine now, and print a line for each: OK, FAIL, or SKIP with why it
did not run. gpu_count, gpu_model and hook run only if set in [checks] of the agent's settings, and have
no line else. It needs no agent and no registry. Memory is copied on every GPU that no process
uses, which wakes a GPU that sleeps."""

SCHEMA: Literal["gpu-agent.check/1"] = "gpu-agent.check/1"
_MARKS = {True: Piece("OK  ", "green"), False: Piece("FAIL", "bold red"), None: Piece("SKIP", "dim")}
_NAME_COLUMNS, _SCOPE_COLUMNS = 16, 6
_INDENT = len("OK  ") + 2 + _NAME_COLUMNS + 2 + _SCOPE_COLUMNS + 2


class CheckOfMachine(Document):
    """The result of one check."""

    name: str = Field(description="what was checked; *Return to service* in the documentation lists them")
    scope: str = Field(description="node, or the UUID of the GPU that was checked")
    ok: bool | None = Field(description="null where it could not be run: `detail` says why")
    detail: str = Field(description="what was found, for a person")


class CheckDocument(Document):
    """What `gpu-agent check --json` prints."""

    schema_id: Literal["gpu-agent.check/1"] = Field(alias="schema")
    outcome: Outcome
    detail: str | None = Field(description="the next step where no GPU was found")
    ok: bool = Field(description="whether the exit code is 0: there is a GPU, and no check has failed")
    checks: tuple[CheckOfMachine, ...] = Field(description="GPU by GPU, then the node")
    took_seconds: float


def declare() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about=DESCRIPTION,
        example="gpu-agent check --json",
        exits={
            ExitCode.OK: "no check has failed",
            ExitCode.FAILED: "a check has failed; its line says what was found",
            ExitCode.NO_GPU: "no GPU or no driver",
            ExitCode.DRIVER_BROKEN: "the driver is broken; the output says what to do",
        },
        asks=False,
        params=[
            option("--json", help="print the gpu-agent.check/1 document", flag=True),
            option(
                "--simulate",
                metavar="SPEC",
                help="a machine that does not exist, such as 8xH100-80GB (see *Simulate machines* in the "
                "documentation)",
            ),
            option(
                "--config",
                metavar="FILE",
                help="the agent's configuration (default /etc/gpu-agent/agent.toml)",
            ),
        ],
    )


def main(arguments: Arguments) -> int:
    """Run them one after another, and print each result once it is there."""
    began = time.monotonic()
    arguments.state_dir = None
    expected, request = Expected(), ProbeRequest(simulate=arguments.simulate)
    if is_configured(arguments, os.environ):
        settings = load_settings(arguments)
        expected = settings.checks.expected
        request = ProbeRequest(
            options=settings.probe_options, simulate=settings.simulate, state_dir=settings.state_dir
        )
    report = _read(request)
    indices = {gpu.uuid: f"GPU {gpu.index}" for gpu in report.gpus}
    results = []
    with Interruption():  # what runs in a session of its own would outlive this command
        for result in _run(report, expected, request):
            results.append(result)
            if not arguments.json:
                print_lines(result_lines(result, indices.get(result.scope, NODE_SCOPE), terminal_columns()))
    code = _exit_code(report, results)
    if arguments.json:
        found = document(report, results, took_seconds=time.monotonic() - began)
        print_json(found.model_dump(mode="json", by_alias=True))
    elif report.offered:
        print_lines([summary(results)])
    if code in (ExitCode.NO_GPU, ExitCode.DRIVER_BROKEN):
        print_stderr(_detail(report) or "")
    return code


def _exit_code(report: GpuReport, results: Sequence[Result]) -> ExitCode:
    if report.outcome is Outcome.DRIVER_BROKEN:
        return ExitCode.DRIVER_BROKEN
    if report.outcome is not Outcome.OK or not report.offered:
        return ExitCode.NO_GPU
    return ExitCode.FAILED if any(result.ok is False for result in results) else ExitCode.OK


def _detail(report: GpuReport) -> str | None:
    return report.detail or (None if report.gpus else "no GPU was found")


def _read(request: ProbeRequest) -> GpuReport:
    options = request.options
    if request.simulate is not None:
        from gpu_agent.probe.simulation.gpu_models import SimulationError

        try:
            return read_simulated_once(request.simulate, seed=request.seed, now=time.time())
        except SimulationError as error:
            raise Failure(f"--simulate: {error}", code=ExitCode.CONFIGURATION) from None
    child = start_child()
    with contextlib.redirect_stdout(sys.stderr):  # a collector that prints must not spoil a document
        others = start_collectors(options.collectors, options.surroundings, deadline_seconds=DEADLINE_SECONDS)
        return merge_reports(read_once(child, DEADLINE_SECONDS), collect_reports(others))


def _run(report: GpuReport, expected: Expected, request: ProbeRequest) -> Iterator[Result]:
    stop = threading.Event()
    processes = CheckProcesses(os.environ)
    run = (
        simulated_child
        if request.simulate is not None
        else real_child(processes, seconds=expected.gpu_seconds, sys_dir=request.options.surroundings.sys_dir)
    )
    for gpu in report.checked:
        why = why_not_checked(gpu, report)
        if why is None:
            yield from check_gpu(gpu, run=run, expected=expected, why_no_copies=None, stop=stop)
        else:
            yield _skipped("memory_bandwidth", gpu, why)
    yield from judge_count(report, expected)
    why = why_no_hook(report)
    if expected.hook and why is not None and not expected.hook_while_in_use:
        yield Result(name="hook", ok=None, detail=why)
    elif expected.hook:
        yield run_hook(processes, expected, stop)


def _skipped(name: str, gpu: Gpu, why: str) -> Result:
    return Result(name=name, scope=gpu.uuid, ok=None, detail=f"the GPU is not checked: {why}")


def document(report: GpuReport, results: Sequence[Result], *, took_seconds: float) -> CheckDocument:
    """Return all results as one document."""
    return CheckDocument(
        schema_id=SCHEMA,
        outcome=report.outcome,
        detail=_detail(report),
        ok=_exit_code(report, results) is ExitCode.OK,
        checks=tuple(
            CheckOfMachine(name=one.name, scope=one.scope, ok=one.ok, detail=one.detail) for one in results
        ),
        took_seconds=round(took_seconds, 3),
    )


def check_schema() -> dict[str, Any]:
    """Return the JSON Schema of `gpu-agent check --json`."""
    return json_schema("check", f"What `gpu-agent check --json` prints ({SCHEMA}).", CheckDocument)


def result_lines(result: Result, scope: str, columns: int | None) -> list[Line]:
    """Draw one result; without a terminal it is one line."""
    head = line(_MARKS[result.ok], f"  {result.name:<{_NAME_COLUMNS}}  {scope:<{_SCOPE_COLUMNS}}  ")
    if columns is None:
        return [line(*head, result.detail)]
    first, *rest = wrap(line(result.detail or "passed"), max(20, columns - _INDENT))
    return [(*head, *first), *((Piece(" " * _INDENT), *part) for part in rest)]


def summary(results: Sequence[Result]) -> Line:
    """Count the results."""
    counted = Counter(result.ok for result in results)
    skipped = f", {counted[None]} could not be run" if counted[None] else ""
    if counted[False]:
        failing = ", ".join(dict.fromkeys(one.name for one in results if one.ok is False))
        fail = "fails" if counted[False] == 1 else "fail"
        return line(Piece(f"{counted[False]} of {len(results)} {fail}: {failing}", "bold red"), skipped)
    return line(Piece(f"Nothing fails: {counted[True]} passed", "green"), skipped)


COMMANDS: Commands = {
    "check": (declare, main),
}
