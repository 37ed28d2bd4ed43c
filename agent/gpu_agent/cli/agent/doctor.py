"""`gpu-agent doctor`: checks all that the agent needs, and says how to fix what is wrong.

It uses the settings that `gpu-agent run` would use, registers nothing and writes nothing. Each result is
printed as soon as it is there. What may hang runs in a thread with a deadline, so that a dead disk costs its
deadline and no more.
"""

import asyncio
import getpass
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gpu_agent.cli.agent.doctor_machine import (
    cache_check,
    collector_check,
    container_check,
    driver_checks,
    gpu_check,
    model_checks,
    silent_cache_check,
)
from gpu_agent.cli.agent.doctor_service import (
    AGENT,
    agent_checks,
    become_service,
    other_options,
    running_agent,
    why_not_as_service,
)
from gpu_agent.cli.agent.reading import ProbeRequest, read_inventory
from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.declaration import Commands, Declaration, option
from gpu_agent.cli.output.text import Line, Piece, line, print_json, print_lines, terminal_columns, wrap
from gpu_agent.cli.setting_options import setting_options
from gpu_agent.local.socket_path import service_socket
from gpu_agent.node.connection.check import STEPS, Tokens, check_connection
from gpu_agent.node.credentials import read_token_file
from gpu_agent.node.settings import DEFAULT_CONFIG, AgentSettings, load
from gpu_agent.node.state_checks import Credential, available_tokens, check_state
from gpu_agent.probe.models.scanner import DISK_SILENT
from gpu_agent.probe.nvml import device_nodes
from gpu_agent.probe.nvml.driver_files import DriverFiles, find_driver_files
from gpu_agent.probe.snapshot import as_unicode, open_sources
from gpu_agent.runtime.check_results import CheckResult, CheckStatus, fail, ok, skipped, warn
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.config.sources import unknown_variables
from gpu_agent.runtime.files import user_home
from gpu_agent.runtime.systemd.status import ServiceStatus, find_service, judge_service
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.wire.control import StatusDocument
from gpu_agent.wire.inventory import GpuReport, Inventory, Outcome
from gpu_agent.wire.probe_document import Document, json_schema

DESCRIPTION = """\
Check all that the agent needs, from its service to the registry, and print a line for each check: OK, WARN
(it works, and you should know something about it), FAIL (the agent cannot work) or SKIP, with the fix. It
connects to the registry up to the handshake and registers nothing; tokens are tried and never shown. Every
check has a deadline. Root checks the machine's service, as the service's user and with its environment. Any
other user, and root with --state-dir, checks what `gpu-agent run` would be for that user."""


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
_FILES = ("config", "join_token_file", "state_dir", "tls_ca_file", "tls_cert_file", "tls_key_file")
MACHINE_SECONDS = 12.0
"""The deadline for GPUs, host and models together."""
DISK_SECONDS = 3.0
AGENT_SECONDS = 8.0
"""The deadline for the answer of the agent on this machine."""
_PLACEHOLDER_URL = "wss://localhost/"
_NO_REGISTRY = "no registry is named"
SCHEMA: Literal["gpu-agent.doctor/1"] = "gpu-agent.doctor/1"
_MARKS = {
    CheckStatus.OK: Piece("OK  ", "green"),
    CheckStatus.WARN: Piece("WARN", "yellow"),
    CheckStatus.FAIL: Piece("FAIL", "bold red"),
    CheckStatus.SKIPPED: Piece("SKIP", "dim"),
}
_NAME_COLUMNS = 15
_BEFORE = len("OK  ") + 2 + _NAME_COLUMNS + 2
_NARROW = 60
"""With fewer columns the details are under the name."""
_MACHINE = Path("/")
_STATE = Path("var/lib/gpu-agent")
"""The state directory of the service, from the machine's root."""
_JOIN_TOKEN = Path("etc/gpu-agent/join-token")
"""The credential that systemd gives to the service; only root may read it."""


class CheckDocument(Document):
    """The result of one check."""

    check: str = Field(description="what was checked; *Probe and doctor* in the documentation lists them")
    verdict: CheckStatus
    detail: str = Field(description="what was seen, for a person")
    fix: str | None = Field(description="what to do; null where there is nothing")


class DoctorDocument(Document):
    """What `gpu-agent doctor --json` prints."""

    schema_id: Literal["gpu-agent.doctor/1"] = Field(alias="schema")
    ok: bool = Field(description="true when nothing fails, as the exit code 0 says")
    checks: tuple[CheckDocument, ...] = Field(description="in order, from the driver to the registry")


def declare() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about=DESCRIPTION,
        example="gpu-agent doctor --registry wss://registry.example:8080 --tls-ca-file ca.pem",
        exits={ExitCode.OK: "nothing fails", ExitCode.FAILED: "something fails; its line says what to do"},
        asks=False,
        params=[
            option("--json", help="print the gpu-agent.doctor/1 document", flag=True),
            option("--config", metavar="FILE", type=Path, help="read this file instead of the one in /etc"),
            *setting_options(AgentSettings, only=SETTING_OPTIONS),
        ],
    )


@dataclass(frozen=True, slots=True)
class _Configured:
    """The settings as far as they can be used."""

    settings: AgentSettings | None
    registry_named: bool
    result: CheckResult


def main(arguments: Arguments) -> int:
    """Run the checks; 1 when one fails."""
    for name in _FILES:  # as the caller means them: the service's user has another home and directory
        path = getattr(arguments, name)
        if path is not None:
            setattr(arguments, name, type(path)(Path(path).expanduser().absolute()))
    return asyncio.run(_run_checks(arguments))


async def _run_checks(arguments: Arguments) -> int:
    results: list[CheckResult] = []
    async for result in _checks(arguments):
        results.append(result)
        if not arguments.json:
            print_lines(check_lines(result, terminal_columns()))
    if arguments.json:
        print_json(report_document(results).model_dump(mode="json", by_alias=True))
    else:
        print_lines([*([()] if terminal_columns() is not None else []), summary_line(results)])
    failed = any(result.verdict is CheckStatus.FAIL for result in results)
    return ExitCode.FAILED if failed else ExitCode.OK


async def _checks(arguments: Arguments) -> AsyncIterator[CheckResult]:
    standing = await in_thread("service", lambda: find_service(AGENT), deadline_seconds=None)
    if standing is not None:
        yield judge_service(AGENT, standing)
    socket = service_socket() if standing is not None and standing.origin is not None else None
    agent = await _agent(socket, service_runs=_runs(standing))
    for result in agent_checks(agent) if isinstance(agent, StatusDocument) else [agent]:
        yield result
    service = _is_root() and arguments.state_dir is None and _is_installed(standing)
    credential = _enter_service(standing) if service else None
    configured = _configuration(arguments, as_service=service)
    yield configured.result
    settings = configured.settings
    if settings is not None and isinstance(agent, StatusDocument):
        simulates = settings.simulate is not None
        options = other_options(agent, registry_named=configured.registry_named, simulates=simulates)
        if options:
            yield _of_other_settings(options)
            return
    async for result in _machine(_probe_request(settings, arguments)):
        yield result
    if settings is None:
        for name in ("state directory", "registry"):
            yield skipped(name, "not tried, since configuration failed")
        return
    check = partial(check_state, settings, credential, made_at_start=service)
    for result in await _with_deadline(DISK_SECONDS, "state directory", lambda: list(check())):
        yield result
    async for result in _registry_checks(configured, settings, credential):
        yield result


async def _agent(socket: Path | None, *, service_runs: bool) -> StatusDocument | CheckResult:
    ask = partial(running_agent, socket, service_runs=service_runs)
    try:
        return await in_thread("agent", ask, deadline_seconds=AGENT_SECONDS)
    except TimeoutError:
        return _silent_disk("agent", AGENT_SECONDS)


def _of_other_settings(options: Sequence[str]) -> CheckResult:
    """Stop there: failures of settings that the agent does not use would mislead."""
    given = " and ".join(f"`{option}`" for option in options)
    return warn(
        "settings",
        f"the agent that runs here was started with {given}, so that nothing more was checked",
        "run the doctor with the same options as that agent",
    )


async def _machine(request: ProbeRequest) -> AsyncIterator[CheckResult]:
    read = await _read(request)
    if isinstance(read, CheckResult):
        yield read
        return
    files, inventory = read
    for result in driver_checks(files, inventory, await _device_node_faults(files, inventory.gpu)):
        yield result
    yield collector_check(inventory)
    yield gpu_check(inventory)
    yield container_check(inventory.host, os.environ)
    async for result in _caches(request, inventory):
        yield result
    for result in model_checks(inventory):
        yield result


async def _caches(request: ProbeRequest, inventory: Inventory) -> AsyncIterator[CheckResult]:
    """Check each model cache; one that did not answer the scan is not tried again."""
    roots = open_sources(request.options, environ=os.environ, home=user_home()).scanner.paths
    if not roots:
        yield skipped("model caches", "none are scanned")
    for root in roots:
        if inventory.models_unsearched.get(as_unicode(str(root))) == DISK_SILENT:
            yield silent_cache_check(root)
            continue
        try:
            yield await in_thread("model cache", partial(cache_check, root), deadline_seconds=DISK_SECONDS)
        except TimeoutError:
            yield silent_cache_check(root)


async def _device_node_faults(files: DriverFiles, gpu: GpuReport) -> list[str]:
    """Check the device nodes only where the driver has refused: opening them wakes GPUs."""
    if gpu.outcome is Outcome.OK or files.module_version is None:
        return []
    try:
        return await in_thread("device-nodes", device_nodes.node_problems, deadline_seconds=DISK_SECONDS)
    except TimeoutError:
        return [f"they did not open within {DISK_SECONDS:g} s: see `dmesg` for NVRM messages, and reboot"]


async def _read(request: ProbeRequest) -> tuple[DriverFiles, Inventory] | CheckResult:
    def read() -> tuple[DriverFiles, Inventory]:
        return find_driver_files(os.environ), read_inventory(request, None)

    try:
        return await in_thread("inventory", read, deadline_seconds=MACHINE_SECONDS)
    except TimeoutError:
        return fail(
            "machine",
            f"the GPUs, the host and the model caches could not be read within {MACHINE_SECONDS:g} s",
            "look for a disk that does not answer: `df`, `mount`, and `dmesg`",
        )


async def _registry_checks(
    configured: _Configured, settings: AgentSettings, credential: Credential | None
) -> AsyncIterator[CheckResult]:
    if not configured.registry_named:
        fix = "add --registry wss://HOST:8080/ws/node, or registry_url to the configuration"
        yield fail("registry", "none is named", fix)
        for name in STEPS:
            yield skipped(name, "not tried, since no registry is named")
        return
    tokens = await _tokens(settings, credential)
    if len(settings.registry_urls) == 1:
        async for result in _address_checks(settings.registry_urls[0], settings, tokens):
            yield result
        return
    for result in await _checks_of_all(settings, tokens):
        yield result


async def _checks_of_all(settings: AgentSettings, tokens: Tokens) -> list[CheckResult]:
    """Check all addresses side by side. A fault of one is a warning while the agent can use another."""

    async def check(url: str) -> list[CheckResult]:
        return [result async for result in _address_checks(url, settings, tokens)]

    async with asyncio.TaskGroup() as tasks:
        checking = [tasks.create_task(check(url)) for url in settings.registry_urls]
    each = [task.result() for task in checking]
    one_works = any(all(result.verdict is not CheckStatus.FAIL for result in results) for results in each)
    return [
        replace(result, verdict=CheckStatus.WARN)
        if one_works and result.verdict is CheckStatus.FAIL
        else result
        for results in each
        for result in results
    ]


async def _address_checks(url: str, settings: AgentSettings, tokens: Tokens) -> AsyncIterator[CheckResult]:
    yield ok("registry", url)
    async for result in check_connection(url, tokens, settings.proxy, security=settings.security):
        yield result


async def _tokens(settings: AgentSettings, credential: Credential | None) -> Tokens:
    """Return the tokens that the agent has; none where the disk does not answer, which is reported before."""
    try:
        return await in_thread(
            "tokens", lambda: available_tokens(settings, credential), deadline_seconds=DISK_SECONDS
        )
    except TimeoutError:
        return Tokens()


async def _with_deadline(
    seconds: float, check: str, work: Callable[[], list[CheckResult]]
) -> list[CheckResult]:
    try:
        return await in_thread(check, work, deadline_seconds=seconds)
    except TimeoutError:
        return [_silent_disk(check, seconds)]


def _silent_disk(check: str, seconds: float) -> CheckResult:
    fix = "see whether that disk answers: `df`, `mount`, and `dmesg`"
    return fail(check, f"the disk did not answer within {seconds:g} s", fix)


def _runs(standing: ServiceStatus | None) -> bool:
    return standing is not None and standing.active == "active"


def _is_installed(standing: ServiceStatus | None) -> bool:
    """Whether this machine has the service; where systemd does not run it, its state directory shows that."""
    if standing is not None:
        return standing.origin is not None
    return "GPU_AGENT_STATE_DIR" not in os.environ and (_MACHINE / _STATE).is_dir()


def _enter_service(standing: ServiceStatus | None) -> Credential | None:
    """Become the service's user where that is possible; returns the join token that root alone may read."""
    file = _MACHINE / _JOIN_TOKEN
    credential = Credential(file, read_token_file(file)) if file.is_file() else None
    if why_not_as_service() is None:
        become_service(() if standing is None else standing.environment)
    return credential


def _configuration(arguments: Arguments, *, as_service: bool) -> _Configured:
    flags = {name: getattr(arguments, name) for name in SETTING_OPTIONS}
    named, why = True, ""
    settings = _load_settings(flags, arguments.config)
    if isinstance(settings, str):
        why, named = settings, False
        settings = _load_settings({**flags, "registry_url": _PLACEHOLDER_URL}, arguments.config)
    if isinstance(settings, str) or (not why.startswith(_NO_REGISTRY) and why):
        fix = "correct what it names; *Settings* in the documentation lists every setting"
        return _Configured(None, registry_named=False, result=fail("configuration", why, fix))
    path = arguments.config or DEFAULT_CONFIG
    words = str(path) if path.is_file() else f"{path} is not there: defaults, variables and arguments hold"
    if as_service:
        if settings.state_dir is None:
            settings = settings.model_copy(update={"state_dir": _MACHINE / _STATE})
        if _is_root():
            fix = "let that user run this program, or run the doctor as that user"
            words = f"{words}; checked as root: {why_not_as_service()}"
            return _Configured(settings, named, warn("configuration", words, fix))
        words = (
            f"{words}; checked as the service's user {AGENT.service}, with its state in {settings.state_dir}"
        )
    else:
        words = f"{words}; checked as user {_user_name()}"
    unknown = unknown_variables(AgentSettings, os.environ)
    if unknown:
        words = "; ".join([words, *map(str, unknown)])
        return _Configured(settings, named, warn("configuration", words, "correct its name, or unset it"))
    return _Configured(settings, named, ok("configuration", words))


def _load_settings(flags: dict[str, object], config: Path | None) -> AgentSettings | str:
    try:
        return load(flags, config=config)
    except SettingsError as error:
        return str(error)


def _probe_request(settings: AgentSettings | None, arguments: Arguments) -> ProbeRequest:
    if settings is None:
        return ProbeRequest(simulate=arguments.simulate)
    return ProbeRequest(
        options=settings.probe_options, simulate=settings.simulate, state_dir=settings.state_dir
    )


def report_document(results: Sequence[CheckResult]) -> DoctorDocument:
    """Return all results as one document."""
    return DoctorDocument(
        schema_id=SCHEMA,
        ok=all(result.verdict is not CheckStatus.FAIL for result in results),
        checks=tuple(
            CheckDocument(check=one.check, verdict=one.verdict, detail=one.detail, fix=one.fix)
            for one in results
        ),
    )


def doctor_schema() -> dict[str, Any]:
    """Return the JSON Schema of `gpu-agent doctor --json`."""
    return json_schema("doctor", f"What `gpu-agent doctor --json` prints ({SCHEMA}).", DoctorDocument)


def check_lines(result: CheckResult, columns: int | None) -> list[Line]:
    """Draw one result; without a terminal it is one line."""
    head = line(_MARKS[result.verdict], f"  {result.check:<{_NAME_COLUMNS}}  ")
    faults = result.detail.split("\n")  # of a settings file, say
    if columns is None:
        end = "" if result.detail.endswith(("?", ".", "!")) else "."
        fix = "" if result.fix is None else f"{end} Fix: {result.fix}"
        return [line(*head, f"{'; '.join(faults)}{fix}")]
    indent = _BEFORE if columns >= _NARROW else len("OK    ")
    room = columns - indent
    details = [part for fault in faults for part in wrap(line(fault), room)]
    if result.fix is not None:
        details += wrap(line(Piece("fix: ", "bold"), result.fix), room)
    below = Piece(" " * indent)
    if columns < _NARROW:
        return [line(_MARKS[result.verdict], f"  {result.check}"), *((below, *part) for part in details)]
    first, *rest = details
    return [(*head, *first), *((below, *part) for part in rest)]


def summary_line(results: Sequence[CheckResult]) -> Line:
    """Count the results."""
    counted = Counter(result.verdict for result in results)
    if counted[CheckStatus.FAIL]:
        failing = ", ".join(one.check for one in results if one.verdict is CheckStatus.FAIL)
        return line(Piece(f"{counted[CheckStatus.FAIL]} of {len(results)} fail: {failing}", "bold red"))
    warnings = counted[CheckStatus.WARN]
    if not warnings:
        return line(Piece("Nothing fails", "green"))
    words = f"{warnings} {'warning' if warnings == 1 else 'warnings'}"
    return line(Piece("Nothing fails", "green"), ", ", Piece(words, "yellow"))


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        return str(os.geteuid()) if hasattr(os, "geteuid") else "?"


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


COMMANDS: Commands = {
    "doctor": (declare, main),
}
