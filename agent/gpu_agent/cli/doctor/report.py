"""The doctor's round: the settings, the machine, what the agent keeps, and the way to the registry.

Each finding is told as soon as it is there. What may hang is looked at in a thread that is left
behind, so that a dead disk costs its deadline and no more.
"""

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpu_agent.cli.doctor.machine import (
    cache_finding,
    collector_finding,
    container_finding,
    driver_findings,
    gpu_finding,
    model_findings,
    silent_cache_finding,
)
from gpu_agent.cli.doctor.shown import document, show_finding, show_sum
from gpu_agent.cli.doctor.whose import of_the_service
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.probe.asked import Asked
from gpu_agent.cli.probe.reading import inventory_of
from gpu_agent.cli.tls_options import NAMES
from gpu_agent.node.rehearsal import STEPS, Tokens, rehearse
from gpu_agent.node.settings import DEFAULT_CONFIG, AgentSettings, load
from gpu_agent.node.standing import standing, tokens
from gpu_agent.probe import device_nodes
from gpu_agent.probe.driver_files import DriverFiles, look
from gpu_agent.probe.models.catalogue import SILENT
from gpu_agent.probe.options import sources_of
from gpu_agent.runtime.findings import Finding, Verdict, fail, ok, skipped, warn
from gpu_agent.runtime.layers import SettingsError
from gpu_agent.runtime.own_home import home
from gpu_agent.runtime.strays import strays
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.wire.inventory import GpuReport, Inventory, Outcome

MACHINE_SECONDS = 12.0
"""For the GPUs, the host and the models together."""
DISK_SECONDS = 3.0
_UNNAMED = "wss://localhost/"
_NO_REGISTRY = "no registry is named"


@dataclass(frozen=True, slots=True)
class _Configured:
    """The settings as far as they can be used."""

    settings: AgentSettings | None
    registry_named: bool
    finding: Finding


def main(arguments: argparse.Namespace) -> int:
    """Go the round; 1 when something fails."""
    return asyncio.run(_told(arguments))


async def _told(arguments: argparse.Namespace) -> int:
    findings: list[Finding] = []
    async for finding in _round(arguments):
        findings.append(finding)
        if not arguments.json:
            show_finding(finding)
    if arguments.json:
        print(json.dumps(document(findings), indent=2))
    else:
        show_sum(findings)
    failed = any(finding.verdict is Verdict.FAIL for finding in findings)
    return ExitCode.FAILED if failed else ExitCode.OK


async def _round(arguments: argparse.Namespace) -> AsyncIterator[Finding]:
    configured = _configuration(arguments)
    yield configured.finding
    settings = configured.settings
    async for finding in _machine(_asked(settings, arguments)):
        yield finding
    if settings is None:
        for name in ("state directory", "registry"):
            yield skipped(name, "not tried, since configuration failed")
        return
    for finding in await _within(DISK_SECONDS, "state directory", lambda: list(standing(settings))):
        yield finding
    async for finding in _way(configured, settings):
        yield finding


async def _machine(asked: Asked) -> AsyncIterator[Finding]:
    read = await _read(asked)
    if isinstance(read, Finding):
        yield read
        return
    files, inventory = read
    for finding in driver_findings(files, inventory, await _node_troubles(files, inventory.gpu)):
        yield finding
    yield collector_finding(inventory)
    yield gpu_finding(inventory)
    yield container_finding(inventory.host, os.environ)
    async for finding in _caches(asked, inventory):
        yield finding
    for finding in model_findings(inventory):
        yield finding


async def _caches(asked: Asked, inventory: Inventory) -> AsyncIterator[Finding]:
    """Look at each place of models; of one that did not answer before nobody asks again."""
    roots = sources_of(asked.options, environ=os.environ, home=home()).catalogue.places
    if not roots:
        yield skipped("model caches", "none are looked into")
    for root in roots:
        if inventory.models_unsearched.get(str(root)) == SILENT:
            yield silent_cache_finding(root)
            continue
        try:
            yield await in_thread("model cache", partial(cache_finding, root), deadline_seconds=DISK_SECONDS)
        except TimeoutError:
            yield silent_cache_finding(root)


async def _node_troubles(files: DriverFiles, gpu: GpuReport) -> list[str]:
    """Look at the device nodes only where the driver has refused: opening them wakes GPUs."""
    if gpu.outcome is Outcome.OK or files.module_version is None:
        return []
    try:
        return await in_thread("device-nodes", device_nodes.troubles, deadline_seconds=DISK_SECONDS)
    except TimeoutError:
        return [f"they did not open within {DISK_SECONDS:g} s: see `dmesg` for NVRM messages, and reboot"]


async def _read(asked: Asked) -> tuple[DriverFiles, Inventory] | Finding:
    def read() -> tuple[DriverFiles, Inventory]:
        return look(os.environ), inventory_of(asked, None)

    try:
        return await in_thread("inventory", read, deadline_seconds=MACHINE_SECONDS)
    except TimeoutError:
        return fail(
            "machine",
            f"the GPUs, the host and the model caches could not be read within {MACHINE_SECONDS:g} s",
            "look for a disk that does not answer: `df`, `mount`, and `dmesg`",
        )


async def _way(configured: _Configured, settings: AgentSettings) -> AsyncIterator[Finding]:
    if not configured.registry_named:
        mend = "add --registry wss://HOST:8080/ws/node, or registry_url to the configuration"
        yield fail("registry", "none is named", mend)
        for name in STEPS:
            yield skipped(name, "not tried, since no registry is named")
        return
    yield ok("registry", settings.registry_url)
    url, proxy, security = settings.registry_url, settings.proxy, settings.security
    async for finding in rehearse(url, await _tokens(settings), proxy, security=security):
        yield finding


async def _tokens(settings: AgentSettings) -> Tokens:
    """What the agent could present; a disk that does not answer holds none, and was told of before."""
    try:
        return await in_thread("tokens", lambda: tokens(settings), deadline_seconds=DISK_SECONDS)
    except TimeoutError:
        return Tokens()


async def _within(seconds: float, check: str, work: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return await in_thread(check, work, deadline_seconds=seconds)
    except TimeoutError:
        mend = "see whether that disk answers: `df`, `mount`, and `dmesg`"
        return [fail(check, f"the disk did not answer within {seconds:g} s", mend)]


def _configuration(arguments: argparse.Namespace) -> _Configured:
    flags = {
        name: getattr(arguments, name)
        for name in ("registry_url", "join_token_file", "simulate", "state_dir", *NAMES)
    }
    named, why = True, ""
    settings = _loaded(flags, arguments.config)
    if isinstance(settings, str):
        why, named = settings, False
        settings = _loaded({**flags, "registry_url": _UNNAMED}, arguments.config)
    if isinstance(settings, str) or (not why.startswith(_NO_REGISTRY) and why):
        mend = "mend what it names; docs/settings.md lists every setting"
        return _Configured(None, registry_named=False, finding=fail("configuration", why, mend))
    path = arguments.config or DEFAULT_CONFIG
    words = str(path) if path.is_file() else f"{path} is not there: defaults, variables and arguments count"
    service = of_the_service(settings)
    if service is not None:
        settings, words = (
            service,
            f"{words}; the service is meant, with its state in {service.state_dir}",
        )
    astray = strays(AgentSettings, os.environ)
    if astray:
        told = "; ".join([words, *map(str, astray)])
        return _Configured(settings, named, warn("configuration", told, "correct its name, or unset it"))
    return _Configured(settings, named, ok("configuration", words))


def _loaded(flags: dict[str, object], config: Path | None) -> AgentSettings | str:
    try:
        return load(flags, config=config)
    except SettingsError as error:
        return str(error)


def _asked(settings: AgentSettings | None, arguments: argparse.Namespace) -> Asked:
    if settings is None:
        return Asked(simulate=arguments.simulate)
    apart = "" if settings.state_dir is None else f"\n{settings.state_dir}"
    return Asked(options=settings.probe_options, simulate=settings.simulate, apart=apart)
