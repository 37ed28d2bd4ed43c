"""`gpu-agent config check`: whether the settings of one half can be used, before it is started with them."""

import argparse
import json
import stat
from collections import Counter
from collections.abc import Iterator

from gpu_agent.cli.configuration.read import Configuration, add_arguments, failure, read
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach
from gpu_agent.runtime.layers import SettingsError
from gpu_agent.runtime.origins import Layer
from gpu_agent.runtime.redaction import sounds_secret, without_secrets


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Say whether the settings of the agent or the registry can be used: every fault at once, each "
        "with the line or the variable that has it, and for an unknown key the nearest that there is. "
        "Nothing is started or reached: `gpu-agent doctor` looks at what the agent's settings name.",
        example="gpu-agent config check agent",
        exits={
            ExitCode.OK: "they can be used, perhaps with something to know",
            ExitCode.CONFIGURATION: "they cannot; it says why",
        },
        asks=False,
    )
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one object, for programs")


def main(arguments: argparse.Namespace) -> int:
    """Read and judge."""
    try:
        configuration = read(arguments)
    except SettingsError as fault:
        return _refused(fault, as_json=arguments.json)
    if configuration.lacking:
        return _refused(SettingsError(configuration.lacking), as_json=arguments.json)
    warnings = list(_warnings(configuration))
    if arguments.json:
        print(json.dumps({"usable": True, "faults": [], "warnings": warnings}, indent=2, ensure_ascii=False))
    else:
        print("\n".join([_summary(arguments.half, configuration), *warnings]))
    return ExitCode.OK


def _refused(fault: SettingsError, *, as_json: bool) -> int:
    if not as_json:
        raise failure(fault)
    faults = without_secrets(str(fault)).splitlines()
    print(json.dumps({"usable": False, "faults": faults, "warnings": []}, indent=2, ensure_ascii=False))
    return ExitCode.CONFIGURATION


def _summary(half: str, configuration: Configuration) -> str:
    counted = Counter(one.origin.layer for one in configuration.settings)
    stated = [
        f"{counted[layer]} by {word}"
        for layer, word in {
            Layer.FILE: "the file",
            Layer.VARIABLE: "variables",
            Layer.OPTION: "options",
            Layer.CREDENTIAL: "systemd's credential",
        }.items()
        if counted[layer]
    ]
    there = "" if configuration.file_is_there else " (there is no such file)"
    told = f"set {', '.join(stated)}; the rest by default" if stated else "all by default"
    return f"the {half} can use these settings: {configuration.file}{there}, {told}"


def _warnings(configuration: Configuration) -> Iterator[str]:
    """What works and should be known: secrets that everybody may read, limits without what they limit."""
    yield from (f"warning: {stray}" for stray in configuration.strays)
    yield from _idle_limits(configuration)
    yield from _told_secrets(configuration)
    mode = stat.S_IMODE(configuration.file.stat().st_mode) if configuration.file_is_there else 0
    if mode & stat.S_IWOTH:
        yield (
            f"warning: {configuration.file}: everybody on this machine may write the settings (mode "
            f"{mode:04o}), and so send its nodes and tokens elsewhere; run `chmod o-w {configuration.file}`"
        )
    for one in configuration.settings:
        if one.secret and one.origin.layer is Layer.FILE and mode & stat.S_IROTH:
            yield (
                f"warning: {one.origin}: {one.key} is a secret, and everybody on this machine may read "
                f"the file (mode {mode:04o}); keep it in a file of its own that the service alone may "
                "read, and have it replaced"
            )


def _told_secrets(configuration: Configuration) -> Iterator[str]:
    """What a node tells of itself, and sounds as if it should not be told."""
    for one in configuration.settings:
        names = one.value if one.key == "labels" and isinstance(one.value, dict) else {}
        for name in filter(sounds_secret, names):
            yield (
                f"warning: {one.origin}: the label {name!r} sounds like a secret, and labels are told to "
                "whoever asks the registry; take it out if it is one"
            )
        if one.key == "endpoint" and isinstance(one.value, str) and without_secrets(one.value) != one.value:
            yield (
                f"warning: {one.origin}: endpoint holds a password, and is told to whoever asks the "
                "registry; take it out"
            )


def _idle_limits(configuration: Configuration) -> Iterator[str]:
    accepted = any(one.key == "accept_public_jobs" and one.value for one in configuration.settings)
    limits = [
        one
        for one in configuration.settings
        if one.key.startswith("public_jobs.") and one.origin.layer is not Layer.DEFAULT
    ]
    if limits and not accepted:
        yield (
            f"warning: {limits[0].origin}: {limits[0].key} limits nothing, since no public jobs are let in; "
            "set accept_public_jobs = true if they may come"
        )
