"""`gpu-agent doctor`: checks all that the agent needs, and says how to fix what is wrong.

It uses the settings that `gpu-agent run` would use, registers nothing and writes nothing. Each result is
printed as soon as it is there. What may hang runs in a thread with a deadline, so that a dead disk costs its
deadline and no more.
"""

import argparse
import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpu_agent.cli.agent.doctor_machine import (
    cache_finding,
    collector_finding,
    container_finding,
    driver_findings,
    gpu_finding,
    model_findings,
    silent_cache_finding,
)
from gpu_agent.cli.agent.reading import ProbeRequest, read_inventory
from gpu_agent.cli.command import Commands, ExitCode, describe
from gpu_agent.cli.output.text import Line, Piece, line, print_lines, terminal_columns, wrap
from gpu_agent.cli.setting_options import add_setting_options
from gpu_agent.node.connection.check import STEPS, Tokens, check_connection
from gpu_agent.node.settings import DEFAULT_CONFIG, AgentSettings, load
from gpu_agent.node.state_checks import available_tokens, check_state
from gpu_agent.probe.models.scanner import DISK_SILENT
from gpu_agent.probe.nvml import device_nodes
from gpu_agent.probe.nvml.driver_files import DriverFiles, find_driver_files
from gpu_agent.probe.snapshot import open_sources
from gpu_agent.runtime.check_results import CheckResult, CheckStatus, fail, ok, skipped, warn
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.config.sources import unknown_variables
from gpu_agent.runtime.files import user_home
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.wire.inventory import GpuReport, Inventory, Outcome

DESCRIPTION = """\
Look at all that the agent needs, from the driver to the registry's door, and print a line for each: OK,
WARN (it works, and something about it should be known), FAIL (it keeps the agent from its work) or SKIP,
with how to mend it. It goes the way to the registry up to the handshake and registers nothing; tokens are
tried and never shown. Every step has a deadline. It uses the same settings as `gpu-agent run`: run it as
the agent's user."""


SETTING_OPTIONS = (
    "registry_url",
    "join_token_file",
    "simulate",
    "state_dir",
    "tls_ca_file",
    "tls_pin",
    "tls_cert_file",
    "tls_key_file",
    "insecure_plaintext",
)
"""The settings of the agent that are options here too."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; what is not given is left to the other layers."""
    describe(
        parser,
        DESCRIPTION,
        example="gpu-agent doctor --registry wss://registry.example:8080 --join-token-file join.token",
        exits={ExitCode.OK: "nothing fails", ExitCode.FAILED: "something fails; its line says what to do"},
        asks=False,
    )
    parser.add_argument("--json", action="store_true", help="print the gpu-agent.doctor/1 document")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="read this file instead of the one in /etc"
    )
    add_setting_options(parser, AgentSettings, only=SETTING_OPTIONS)


def main(arguments: argparse.Namespace) -> int:
    """Look and tell."""
    return run_checks(arguments)


MACHINE_SECONDS = 12.0
"""For the GPUs, the host and the models together."""
DISK_SECONDS = 3.0
_PLACEHOLDER_URL = "wss://localhost/"
_NO_REGISTRY = "no registry is named"


@dataclass(frozen=True, slots=True)
class _Configured:
    """The settings as far as they can be used."""

    settings: AgentSettings | None
    registry_named: bool
    finding: CheckResult


def run_checks(arguments: argparse.Namespace) -> int:
    """Go the round; 1 when something fails."""
    return asyncio.run(_run_checks(arguments))


async def _run_checks(arguments: argparse.Namespace) -> int:
    findings: list[CheckResult] = []
    async for finding in _checks(arguments):
        findings.append(finding)
        if not arguments.json:
            print_check(finding)
    if arguments.json:
        print(json.dumps(report_document(findings), indent=2))
    else:
        print_summary(findings)
    failed = any(finding.verdict is CheckStatus.FAIL for finding in findings)
    return ExitCode.FAILED if failed else ExitCode.OK


async def _checks(arguments: argparse.Namespace) -> AsyncIterator[CheckResult]:
    configured = _configuration(arguments)
    yield configured.finding
    settings = configured.settings
    async for finding in _machine(_probe_request(settings, arguments)):
        yield finding
    if settings is None:
        for name in ("state directory", "registry"):
            yield skipped(name, "not tried, since configuration failed")
        return
    for finding in await _with_deadline(DISK_SECONDS, "state directory", lambda: list(check_state(settings))):
        yield finding
    async for finding in _registry_checks(configured, settings):
        yield finding


async def _machine(asked: ProbeRequest) -> AsyncIterator[CheckResult]:
    read = await _read(asked)
    if isinstance(read, CheckResult):
        yield read
        return
    files, inventory = read
    for finding in driver_findings(files, inventory, await _device_node_faults(files, inventory.gpu)):
        yield finding
    yield collector_finding(inventory)
    yield gpu_finding(inventory)
    yield container_finding(inventory.host, os.environ)
    async for finding in _caches(asked, inventory):
        yield finding
    for finding in model_findings(inventory):
        yield finding


async def _caches(asked: ProbeRequest, inventory: Inventory) -> AsyncIterator[CheckResult]:
    """Look at each place of models; of one that did not answer before nobody asks again."""
    roots = open_sources(asked.options, environ=os.environ, home=user_home()).scanner.paths
    if not roots:
        yield skipped("model caches", "none are looked into")
    for root in roots:
        if inventory.models_unsearched.get(str(root)) == DISK_SILENT:
            yield silent_cache_finding(root)
            continue
        try:
            yield await in_thread("model cache", partial(cache_finding, root), deadline_seconds=DISK_SECONDS)
        except TimeoutError:
            yield silent_cache_finding(root)


async def _device_node_faults(files: DriverFiles, gpu: GpuReport) -> list[str]:
    """Look at the device nodes only where the driver has refused: opening them wakes GPUs."""
    if gpu.outcome is Outcome.OK or files.module_version is None:
        return []
    try:
        return await in_thread("device-nodes", device_nodes.node_problems, deadline_seconds=DISK_SECONDS)
    except TimeoutError:
        return [f"they did not open within {DISK_SECONDS:g} s: see `dmesg` for NVRM messages, and reboot"]


async def _read(asked: ProbeRequest) -> tuple[DriverFiles, Inventory] | CheckResult:
    def read() -> tuple[DriverFiles, Inventory]:
        return find_driver_files(os.environ), read_inventory(asked, None)

    try:
        return await in_thread("inventory", read, deadline_seconds=MACHINE_SECONDS)
    except TimeoutError:
        return fail(
            "machine",
            f"the GPUs, the host and the model caches could not be read within {MACHINE_SECONDS:g} s",
            "look for a disk that does not answer: `df`, `mount`, and `dmesg`",
        )


async def _registry_checks(configured: _Configured, settings: AgentSettings) -> AsyncIterator[CheckResult]:
    if not configured.registry_named:
        fix = "add --registry wss://HOST:8080/ws/node, or registry_url to the configuration"
        yield fail("registry", "none is named", fix)
        for name in STEPS:
            yield skipped(name, "not tried, since no registry is named")
        return
    yield ok("registry", settings.registry_url)
    url, proxy, security = settings.registry_url, settings.proxy, settings.security
    async for finding in check_connection(url, await _tokens(settings), proxy, security=security):
        yield finding


async def _tokens(settings: AgentSettings) -> Tokens:
    """What the agent could present; a disk that does not answer holds none, and was told of before."""
    try:
        return await in_thread("tokens", lambda: available_tokens(settings), deadline_seconds=DISK_SECONDS)
    except TimeoutError:
        return Tokens()


async def _with_deadline(
    seconds: float, check: str, work: Callable[[], list[CheckResult]]
) -> list[CheckResult]:
    try:
        return await in_thread(check, work, deadline_seconds=seconds)
    except TimeoutError:
        fix = "see whether that disk answers: `df`, `mount`, and `dmesg`"
        return [fail(check, f"the disk did not answer within {seconds:g} s", fix)]


def _configuration(arguments: argparse.Namespace) -> _Configured:
    flags = {name: getattr(arguments, name) for name in SETTING_OPTIONS}
    named, why = True, ""
    settings = _load_settings(flags, arguments.config)
    if isinstance(settings, str):
        why, named = settings, False
        settings = _load_settings({**flags, "registry_url": _PLACEHOLDER_URL}, arguments.config)
    if isinstance(settings, str) or (not why.startswith(_NO_REGISTRY) and why):
        fix = "mend what it names; docs/settings.md lists every setting"
        return _Configured(None, registry_named=False, finding=fail("configuration", why, fix))
    path = arguments.config or DEFAULT_CONFIG
    words = str(path) if path.is_file() else f"{path} is not there: defaults, variables and arguments count"
    service = service_settings(settings)
    if service is not None:
        settings, words = (
            service,
            f"{words}; the service is meant, with its state in {service.state_dir}",
        )
    astray = unknown_variables(AgentSettings, os.environ)
    if astray:
        told = "; ".join([words, *map(str, astray)])
        return _Configured(settings, named, warn("configuration", told, "correct its name, or unset it"))
    return _Configured(settings, named, ok("configuration", words))


def _load_settings(flags: dict[str, object], config: Path | None) -> AgentSettings | str:
    try:
        return load(flags, config=config)
    except SettingsError as error:
        return str(error)


def _probe_request(settings: AgentSettings | None, arguments: argparse.Namespace) -> ProbeRequest:
    if settings is None:
        return ProbeRequest(simulate=arguments.simulate)
    return ProbeRequest(
        options=settings.probe_options, simulate=settings.simulate, state_dir=settings.state_dir
    )


SCHEMA = "gpu-agent.doctor/1"
_MARKS = {
    CheckStatus.OK: Piece("OK  ", "green"),
    CheckStatus.WARN: Piece("WARN", "yellow"),
    CheckStatus.FAIL: Piece("FAIL", "bold red"),
    CheckStatus.SKIPPED: Piece("SKIP", "dim"),
}
_NAME_COLUMNS = 15
_BEFORE = len("OK  ") + 2 + _NAME_COLUMNS + 2
_NARROW = 60
"""Below so many columns what is said stands under the name."""


def report_document(findings: Sequence[CheckResult]) -> dict[str, object]:
    """All findings, and whether nothing fails."""
    return {
        "schema": SCHEMA,
        "ok": all(finding.verdict is not CheckStatus.FAIL for finding in findings),
        "checks": [
            {"check": one.check, "verdict": one.verdict.value, "detail": one.detail, "fix": one.fix}
            for one in findings
        ],
    }


def print_check(finding: CheckResult) -> None:
    """Print one, as the terminal or the pipe has room for it."""
    print_lines(check_lines(finding, terminal_columns()))


def print_summary(findings: Sequence[CheckResult]) -> None:
    """Say what they come to."""
    print_lines([(), summary_line(findings)] if terminal_columns() is not None else [summary_line(findings)])


def check_lines(finding: CheckResult, columns: int | None) -> list[Line]:
    """Draw one; without a terminal it is one line."""
    head = line(_MARKS[finding.verdict], f"  {finding.check:<{_NAME_COLUMNS}}  ")
    if columns is None:
        fix = "" if finding.fix is None else f". Mend: {finding.fix}"
        return [line(*head, f"{finding.detail}{fix}")]
    indent = _BEFORE if columns >= _NARROW else len("OK    ")
    room = columns - indent
    told = wrap(line(finding.detail), room)
    if finding.fix is not None:
        told += wrap(line(Piece("mend: ", "bold"), finding.fix), room)
    below = Piece(" " * indent)
    if columns < _NARROW:
        return [line(_MARKS[finding.verdict], f"  {finding.check}"), *((below, *part) for part in told)]
    first, *rest = told
    return [(*head, *first), *((below, *part) for part in rest)]


def summary_line(findings: Sequence[CheckResult]) -> Line:
    """Count the verdicts."""
    counted = Counter(finding.verdict for finding in findings)
    if counted[CheckStatus.FAIL]:
        failing = ", ".join(one.check for one in findings if one.verdict is CheckStatus.FAIL)
        return line(Piece(f"{counted[CheckStatus.FAIL]} of {len(findings)} fail: {failing}", "bold red"))
    known = f", {counted[CheckStatus.WARN]} to know of" if counted[CheckStatus.WARN] else ""
    return line(Piece(f"Nothing fails{known}", "green"))


_STATE = Path("var/lib/gpu-agent")
"""Where the service keeps its state, from the machine's root."""
_JOIN_TOKEN = Path("etc/gpu-agent/join-token")
"""What systemd hands to the service, and root alone may read."""


def service_settings(settings: AgentSettings, machine: Path = Path("/")) -> AgentSettings | None:
    """The settings with what the unit adds to them; None where no service is meant, or there is none."""
    state, token = machine / _STATE, machine / _JOIN_TOKEN
    if settings.state_dir is not None or not _is_root() or not state.is_dir():
        return None
    added: dict[str, Path] = {"state_dir": state}
    if settings.join_token_file is None and settings.join_token is None and token.is_file():
        added["join_token_file"] = token
    return settings.model_copy(update=added)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


COMMANDS: Commands = {
    "doctor": (configure, main),
}
