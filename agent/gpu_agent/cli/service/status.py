"""`gpu-agent service status`: who brought the service, whether it runs, and what it said last."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from gpu_agent.cli.lines import Line, Piece, line
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.service.place import add_half, command, place, refusal
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import show
from gpu_agent.runtime.redaction import without_secrets
from gpu_agent.runtime.services.installing import RefusedError
from gpu_agent.runtime.services.standing import Origin, Standing, look
from gpu_agent.runtime.services.steps import StepError
from gpu_agent.runtime.services.unit_files import HALVES, Half, UnwritablePathError, files_of
from gpu_agent.version import __version__

SCHEMA = "gpu-agent.service/1"
_BY = {
    Origin.PIP: "`gpu-agent service install`",
    Origin.PACKAGE: "a package",
    Origin.HAND: "somebody's own unit",
}
_BY_SIGNAL = ("signal", "core-dump", "watchdog", "oom-kill")
_NAME_COLUMNS = 13


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Show the service of this machine as systemd has it: who brought it, whether it is enabled and "
        "runs, since when, whether its unit fits this program, and the last lines of its log, where you may "
        "read them.",
        example="gpu-agent service status",
        exits={
            ExitCode.OK: "it runs",
            ExitCode.FAILED: "it does not run, or there is none",
            ExitCode.CONFIGURATION: "wrong arguments, or no systemd here",
        },
        asks=False,
    )
    add_half(parser)
    parser.add_argument("--json", action="store_true", help="print one object, for programs")


def main(arguments: argparse.Namespace) -> int:
    """Look and print."""
    half = HALVES[arguments.half]
    here = place()
    try:
        here.refuse_without_systemd()
        written = files_of(half, command(), __version__, source=here.source)[half.unit_file]
        standing = look(half, written)
    except (RefusedError, UnwritablePathError) as error:
        raise refusal(error) from None
    except StepError as error:
        raise Failure(str(error) if here.uid == 0 else f"{error}; ask as root") from None
    if arguments.json:
        print_json(_document(half, standing))
    else:
        show([*_lines(half, standing)])
    return ExitCode.OK if standing.runs else ExitCode.FAILED


def _document(half: Half, standing: Standing) -> dict[str, object]:
    found = asdict(standing)
    brought_by = found.pop("origin")
    told = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in found.items()
        if name != "lines"
    }
    return {
        "schema": SCHEMA,
        "half": half.name,
        "unit": half.unit,
        "installed_by": brought_by,
        "runs": standing.runs,
        **told,
        "program_version": __version__,
        "lines": [without_secrets(one) for one in standing.lines],
    }


def _lines(half: Half, standing: Standing) -> Iterator[Line]:
    if standing.origin is None:
        yield line(f"{half.unit} is not installed; `gpu-agent service install {half.name}` does that")
        return
    style = "green" if standing.runs else "bold red" if standing.active == "failed" else "yellow"
    yield line(
        f"{half.unit} is ", Piece(f"{standing.active} ({standing.sub})", style), _since(standing.since)
    )
    for name, told in _told(half, standing):
        yield line(Piece(f"  {name:<{_NAME_COLUMNS}}", "dim"), told)
    yield line(Piece("  last lines", "dim"), f" (all: `journalctl --unit {half.unit}`)")
    for one in standing.lines or ("none, or none that you may read",):
        yield line(f"    {without_secrets(one)}")


def _told(half: Half, standing: Standing) -> Iterator[tuple[str, str]]:
    if standing.says is not None:
        yield "it says", standing.says
    if standing.main_pid is not None:
        yield "process", f"{standing.main_pid}, {standing.restarts or 0} restarts by systemd"
    elif standing.result not in (None, "success"):
        yield "it ended", _ended(standing)
    if standing.origin is not None:
        yield "installed by", f"{_BY[standing.origin]}: {standing.file}"
    yield "at boot", "started" if standing.enabled == "enabled" else f"not started ({standing.enabled})"
    if standing.program is not None:
        yield "starts", standing.program
    yield from _fitting(half, standing)


def _ended(standing: Standing) -> str:
    """What ended it; where that was a signal, systemd tells its number in the place of the exit code."""
    if standing.result == "exit-code":
        return f"with exit code {standing.exit_code}"
    if standing.result in _BY_SIGNAL:
        return f"by {standing.result}, signal {standing.exit_code}"
    return f"by {standing.result}"


def _fitting(half: Half, standing: Standing) -> Iterator[tuple[str, str]]:
    """Say whether the unit is the one that belongs to this program."""
    if standing.current is not None:
        fits = f"as this version ({__version__}) writes it"
        other = (
            f"written by version {standing.version}, and other than this one ({__version__}, {command()}) "
            f"has it: run `gpu-agent service install {half.name}` again"
        )
        yield "unit", fits if standing.current else other
    if standing.unread:
        yield "unit", "changed since systemd has read it: run `systemctl daemon-reload`"


def _since(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return time.strftime(" since %Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
