"""The `gpu-agent` program: its commands, what loads each, and how failures become exit codes.

A command is loaded when it runs, and no other: `gpu-agent probe` must not pay for the others.
"""

import argparse
import gc
import os
import sys
from collections.abc import Iterable, Sequence

from gpu_agent.cli.command import (
    MEANINGS,
    Command,
    Configure,
    ExitCode,
    Failure,
    Formatter,
    Group,
    Parser,
    Run,
    describe,
    exit_code_lines,
    fill_paragraphs,
    parser_of,
)
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.version import __version__

# The commands that there are: their words, what loads each, and one line about it.
#
# A command is loaded when it runs, and no other: `gpu-agent probe` must not pay for the others.


Loaded = tuple[Configure, Run]
_SHELLS = ("bash", "zsh", "fish")


def configure_completion(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Print a script that completes commands, options and their choices. The packages bring it; after a "
        "pip install, have your shell read it when it starts:\n\n"
        "bash: `source <(gpu-agent completion bash)` in ~/.bashrc\n\n"
        "zsh: `source <(gpu-agent completion zsh)` in ~/.zshrc, behind compinit\n\n"
        "fish: `gpu-agent completion fish | source` in config.fish",
        example="gpu-agent completion bash",
        exits={ExitCode.OK: "printed"},
        asks=False,
    )
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help="bash, zsh or fish")


def run_completion(arguments: argparse.Namespace) -> int:
    """Print what lets a shell complete the words after `gpu-agent`."""
    from gpu_agent.cli.completion import script_for

    print(script_for(arguments.shell, ROOT), end="")
    return ExitCode.OK


def _load_registry_token_create() -> Loaded:
    from gpu_agent.cli.registry.tokens import configure_token_create as configure
    from gpu_agent.cli.registry.tokens import run_token_create as main

    return configure, main


def _load_registry_token_list() -> Loaded:
    from gpu_agent.cli.registry.tokens import configure_token_list as configure
    from gpu_agent.cli.registry.tokens import run_token_list as main

    return configure, main


def _load_registry_token_revoke() -> Loaded:
    from gpu_agent.cli.registry.tokens import configure_token_revoke as configure
    from gpu_agent.cli.registry.tokens import run_token_revoke as main

    return configure, main


def _load_registry_token_rotate() -> Loaded:
    from gpu_agent.cli.registry.tokens import configure_token_rotate as configure
    from gpu_agent.cli.registry.tokens import run_token_rotate as main

    return configure, main


def _load_registry_serve() -> Loaded:
    from gpu_agent.cli.registry.serve import configure_serve as configure
    from gpu_agent.cli.registry.serve import run_serve as main

    return configure, main


def _load_registry_thresholds() -> Loaded:
    from gpu_agent.cli.registry.thresholds import configure_thresholds as configure
    from gpu_agent.cli.registry.thresholds import run_thresholds as main

    return configure, main


def _load_registry_backup() -> Loaded:
    from gpu_agent.cli.registry.storage import configure_backup as configure
    from gpu_agent.cli.registry.storage import run_backup as main

    return configure, main


def _load_registry_restore() -> Loaded:
    from gpu_agent.cli.registry.storage import configure_restore as configure
    from gpu_agent.cli.registry.storage import run_restore as main

    return configure, main


def _load_registry_nodes() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_nodes as configure
    from gpu_agent.cli.registry.nodes import run_nodes as main

    return configure, main


def _load_registry_node() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_node as configure
    from gpu_agent.cli.registry.nodes import run_node as main

    return configure, main


def _load_registry_why() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_why as configure
    from gpu_agent.cli.registry.nodes import run_why as main

    return configure, main


def _load_registry_events() -> Loaded:
    from gpu_agent.cli.registry.events import configure_events as configure
    from gpu_agent.cli.registry.events import run_events as main

    return configure, main


def _load_registry_drain() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_drain as configure
    from gpu_agent.cli.registry.nodes import run_drain as main

    return configure, main


def _load_registry_resume() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_resume as configure
    from gpu_agent.cli.registry.nodes import run_resume as main

    return configure, main


def _load_registry_cordon() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_cordon as configure
    from gpu_agent.cli.registry.nodes import run_cordon as main

    return configure, main


def _load_registry_uncordon() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_uncordon as configure
    from gpu_agent.cli.registry.nodes import run_uncordon as main

    return configure, main


def _load_registry_refresh() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_refresh as configure
    from gpu_agent.cli.registry.nodes import run_refresh as main

    return configure, main


def _load_registry_reregister() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_reregister as configure
    from gpu_agent.cli.registry.nodes import run_reregister as main

    return configure, main


def _load_registry_forget() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure_forget as configure
    from gpu_agent.cli.registry.nodes import run_forget as main

    return configure, main


def _load_registry_reclaim() -> Loaded:
    from gpu_agent.cli.registry.tokens import configure_reclaim as configure
    from gpu_agent.cli.registry.tokens import run_reclaim as main

    return configure, main


def _load_registry_explain() -> Loaded:
    from gpu_agent.cli.registry.claims import configure_explain as configure
    from gpu_agent.cli.registry.claims import run_explain as main

    return configure, main


def _load_registry_select() -> Loaded:
    from gpu_agent.cli.registry.claims import configure_select as configure
    from gpu_agent.cli.registry.claims import run_select as main

    return configure, main


def _load_registry_claim() -> Loaded:
    from gpu_agent.cli.registry.claims import configure_claim as configure
    from gpu_agent.cli.registry.claims import run_claim as main

    return configure, main


def _load_registry_renew() -> Loaded:
    from gpu_agent.cli.registry.claims import configure_renew as configure
    from gpu_agent.cli.registry.claims import run_renew as main

    return configure, main


def _load_registry_release() -> Loaded:
    from gpu_agent.cli.registry.claims import configure_release as configure
    from gpu_agent.cli.registry.claims import run_release as main

    return configure, main


def _load_registry_claims() -> Loaded:
    from gpu_agent.cli.registry.claims import configure_claims as configure
    from gpu_agent.cli.registry.claims import run_claims as main

    return configure, main


def _load_registry_exclusions() -> Loaded:
    from gpu_agent.cli.registry.claims import configure_exclusions as configure
    from gpu_agent.cli.registry.claims import run_exclusions as main

    return configure, main


def _load_job_run() -> Loaded:
    from gpu_agent.cli.agent.jobs import configure_job_run as configure
    from gpu_agent.cli.agent.jobs import run_job_run as main

    return configure, main


def _load_job_start() -> Loaded:
    from gpu_agent.cli.agent.jobs import configure_job_start as configure
    from gpu_agent.cli.agent.jobs import run_job_start as main

    return configure, main


def _load_job_finish() -> Loaded:
    from gpu_agent.cli.agent.jobs import configure_job_finish as configure
    from gpu_agent.cli.agent.jobs import run_job_finish as main

    return configure, main


def _load_job_list() -> Loaded:
    from gpu_agent.cli.agent.jobs import configure_job_list as configure
    from gpu_agent.cli.agent.jobs import run_job_list as main

    return configure, main


def _load_config_check() -> Loaded:
    from gpu_agent.cli.config import configure_check as configure
    from gpu_agent.cli.config import run_check as main

    return configure, main


def _load_config_show() -> Loaded:
    from gpu_agent.cli.config import configure_show as configure
    from gpu_agent.cli.config import run_show as main

    return configure, main


def _load_service_install() -> Loaded:
    from gpu_agent.cli.service import configure_install as configure
    from gpu_agent.cli.service import run_install as main

    return configure, main


def _load_service_uninstall() -> Loaded:
    from gpu_agent.cli.service import configure_uninstall as configure
    from gpu_agent.cli.service import run_uninstall as main

    return configure, main


def _load_service_status() -> Loaded:
    from gpu_agent.cli.service import configure_status as configure
    from gpu_agent.cli.service import run_status as main

    return configure, main


def _load_probe() -> Loaded:
    from gpu_agent.cli.agent.probe import configure, main

    return configure, main


def _load_doctor() -> Loaded:
    from gpu_agent.cli.agent.doctor import configure, main

    return configure, main


def _load_run() -> Loaded:
    from gpu_agent.cli.agent.run import configure, main

    return configure, main


def _load_status() -> Loaded:
    from gpu_agent.cli.agent.status import configure_status as configure
    from gpu_agent.cli.agent.status import run_status as main

    return configure, main


def _load_agent_why() -> Loaded:
    from gpu_agent.cli.agent.explain import configure, main

    return configure, main


def _load_agent_drain() -> Loaded:
    from gpu_agent.cli.agent.drain import configure_drain as configure
    from gpu_agent.cli.agent.drain import run_drain as main

    return configure, main


def _load_agent_resume() -> Loaded:
    from gpu_agent.cli.agent.drain import configure_resume as configure
    from gpu_agent.cli.agent.drain import run_resume as main

    return configure, main


def _load_agent_refresh() -> Loaded:
    from gpu_agent.cli.agent.status import configure_refresh as configure
    from gpu_agent.cli.agent.status import run_refresh as main

    return configure, main


def _load_completion() -> Loaded:
    return configure_completion, run_completion


def _load_demo() -> Loaded:
    from gpu_agent.cli.demo import configure, main

    return configure, main


def _load_schema() -> Loaded:
    from gpu_agent.cli.schema import configure, main

    return configure, main


TOKEN = Group(
    summary="make, list, revoke and replace credentials",
    description=(
        "Join tokens let new nodes in, node tokens are what nodes hold after that, operator tokens are for\n"
        "people and programs that use this API. The registry keeps digests only: a token is shown once."
    ),
    what="action",
    subjects={
        "actions": {
            "create": Command(_load_registry_token_create, "let nodes join, or an operator in"),
            "list": Command(_load_registry_token_list, "show which tokens open this registry"),
            "revoke": Command(_load_registry_token_revoke, "end a token now"),
            "rotate": Command(_load_registry_token_rotate, "give a node another token"),
        },
    },
)
REGISTRY = Group(
    summary="serve a registry, ask it, and act on its nodes",
    description="The registry: serve it, ask it, and act on its nodes.",
    what="action",
    subjects={
        "the registry itself": {
            "serve": Command(_load_registry_serve, "run the registry"),
            "thresholds": Command(_load_registry_thresholds, "show what it judges by"),
            "backup": Command(_load_registry_backup, "write all that it keeps to a file"),
            "restore": Command(_load_registry_restore, "put a backup in the place of its database"),
        },
        "nodes": {
            "nodes": Command(_load_registry_nodes, "list all nodes with status and reason"),
            "node": Command(_load_registry_node, "show one node: checks, GPUs, models, history"),
            "why": Command(_load_registry_why, "say which jobs a node would be refused now, and why"),
            "events": Command(_load_registry_events, "show what happened to a node, and what happens"),
        },
        "acting on a node": {
            "drain": Command(_load_registry_drain, "let it finish its jobs, then take it offline"),
            "resume": Command(_load_registry_resume, "take it back after a drain"),
            "cordon": Command(_load_registry_cordon, "give it no new jobs"),
            "uncordon": Command(_load_registry_uncordon, "let it have new jobs again"),
            "refresh": Command(_load_registry_refresh, "have it look at itself again, now"),
            "reregister": Command(_load_registry_reregister, "have it declare itself anew"),
            "forget": Command(_load_registry_forget, "let its record go"),
            "reclaim": Command(_load_registry_reclaim, "give it its id back when it has lost its state"),
        },
        "jobs and their places": {
            "explain": Command(
                _load_registry_explain, "say for each node why it could or could not take a job"
            ),
            "select": Command(_load_registry_select, "say which node a job would get now"),
            "claim": Command(_load_registry_claim, "reserve a place for a job"),
            "renew": Command(_load_registry_renew, "keep a job's place for one more TTL"),
            "release": Command(_load_registry_release, "give a job's place back"),
            "claims": Command(_load_registry_claims, "list who holds which place"),
            "exclusions": Command(_load_registry_exclusions, "count what jobs failed on lately"),
        },
        "credentials": {
            "token": TOKEN,
        },
    },
)
JOB = Group(
    summary="say which jobs are in flight on this machine",
    description=(
        "Jobs in flight on this machine, announced to its agent: the registry counts them, and\n"
        "drains wait for them. A job ends with what holds it, or when it is said to be finished."
    ),
    what="action",
    subjects={
        "actions": {
            "run": Command(_load_job_run, "run a command as a job in flight"),
            "start": Command(_load_job_start, "say that a job is in flight while a process lives"),
            "finish": Command(_load_job_finish, "say that a job is done"),
            "list": Command(_load_job_list, "list the jobs in flight, whose they are, and what ends them"),
        },
    },
)
CONFIG = Group(
    summary="check the configuration, or show it with where each value comes from",
    description="The configuration of either half: whether it can be used, and where each value comes from.",
    what="action",
    subjects={
        "actions": {
            "check": Command(_load_config_check, "say whether the settings can be used, and what is wrong"),
            "show": Command(_load_config_show, "show every setting and where its value comes from"),
        },
    },
)
SERVICE = Group(
    summary="make either half a service of systemd after a pip install, or look at it",
    description=(
        "The agent, or the registry, as a service of this machine where it came from pip.\n"
        "The packages bring their services themselves; `status` shows those too."
    ),
    what="action",
    subjects={
        "actions": {
            "install": Command(
                _load_service_install, "make it a service: unit, user, settings to begin with"
            ),
            "uninstall": Command(_load_service_uninstall, "take that back; settings and state stay"),
            "status": Command(
                _load_service_status, "show whether it runs, since when, and what it said last"
            ),
        },
    },
)
ROOT = Group(
    summary="gpu-agent",
    description="Says, now and truthfully, what each GPU machine has and whether it may take a job.",
    what="command",
    subjects={
        "on a GPU machine": {
            "probe": Command(_load_probe, "show what this machine has and whether it could register"),
            "doctor": Command(_load_doctor, "look at all that the agent needs, and say how to mend it"),
            "run": Command(_load_run, "run the agent: probe, register, beat"),
        },
        "the agent that runs here": {
            "status": Command(_load_status, "show how the agent stands, and what the registry says of it"),
            "why": Command(_load_agent_why, "say which jobs this machine would be refused now, and why"),
            "drain": Command(_load_agent_drain, "let this machine finish its jobs, then take it offline"),
            "resume": Command(_load_agent_resume, "take it back after a drain"),
            "refresh": Command(_load_agent_refresh, "have the agent look at its machine again, now"),
            "job": JOB,
        },
        "beside the scheduler": {
            "registry": REGISTRY,
        },
        "on either": {
            "config": CONFIG,
            "service": SERVICE,
            "completion": Command(_load_completion, "print the completion for a shell: bash, zsh or fish"),
        },
        "to try it, and to build on it": {
            "demo": Command(_load_demo, "a registry and three agents on this machine, until Ctrl-C"),
            "schema": Command(
                _load_schema, "print the JSON Schemas of the protocol and of what commands print"
            ),
        },
    },
)


# The `gpu-agent` command: finds the command's module, parses, and turns failures into exit codes.
#
# Loads no command but the one that runs: `gpu-agent probe` must not pay for the others.


_LIKE = 0.75
"""From this likeness on an option is taken for another, mistyped: all begin alike."""
_OWN_OPTIONS = ("-h", "--help", "--version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the only place where an unexpected exception ends."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except Failure as failure:
        print_stderr(str(failure))
        return failure.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as fault:
        if os.environ.get("GPU_AGENT_DEBUG"):
            raise
        print_stderr(
            f"unexpected fault: {type(fault).__name__}: {fault}\n"
            "This is a bug. Run again with GPU_AGENT_DEBUG=1 and report what it prints."
        )
        return ExitCode.FAILED


def _run(words: Sequence[str]) -> int:
    place: Command | Group = ROOT
    path: tuple[str, ...] = ("gpu-agent",)
    rest = list(words)
    while isinstance(place, Group):
        parser = _parser_of_group(place, path)
        name = _next_word(parser, place, rest[:1])
        if name is None:
            return _print_group_help(parser, place, rest)
        place, path, rest = place.commands[name], (*path, name), rest[1:]
    configure, run = place.load()
    arguments = _parse(parser_of(configure, path), rest)
    gc.enable()
    return run(arguments)


def _parser_of_group(group: Group, path: Sequence[str]) -> Parser:
    prog = " ".join(path)
    parser = Parser(
        prog=prog,
        usage=f"{prog} {group.what.upper()} ...",
        description=fill_paragraphs(group.description),
        epilog=_command_list(group, path),
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    if group is ROOT:
        parser.add_argument("--version", action="version", version=f"gpu-agent {__version__}")
    return parser


def _command_list(group: Group, path: Sequence[str]) -> str:
    """The commands by subject; for the program itself its exit codes too."""
    lines = []
    width = max(map(len, group.commands), default=0)
    for subject, commands in group.subjects.items():
        lines += [f"{subject}:", *(f"  {name:<{width}}  {one.summary}" for name, one in commands.items()), ""]
    lines.append(f"`{' '.join(path)} {group.what.upper()} --help` says more, with an example.")
    if group is ROOT:
        lines += ["", "exit codes:", *exit_code_lines(MEANINGS)]
    return "\n".join(lines)


def _next_word(parser: Parser, group: Group, word: Sequence[str]) -> str | None:
    """The name that stands where one must; an option of a command has its place behind it."""
    if not word or word[0] in _OWN_OPTIONS:
        return None
    if word[0].startswith("-"):
        hint = (
            _nearest_option(parser, word) or f"; options stand behind the {group.what}: put {word[0]} there"
        )
        parser.error(f"no {group.what} is named before {word[0]}{hint}")
    if word[0] not in group.commands:
        nearest = _nearest(word[0], group.commands)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"there are: {', '.join(group.commands)}."
        parser.error(f"no {group.what} {word[0]!r}: {hint}")
    return word[0]


def _nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    """The one that was probably meant, if any; only a mistake costs the loading of the search."""
    import difflib

    return difflib.get_close_matches(word, list(known), 1, likeness)


def _print_group_help(parser: Parser, group: Group, words: Sequence[str]) -> int:
    """Only the program itself may be called without a command: it says what there is."""
    _parse(parser, words)
    if group is not ROOT:
        parser.error(f"say which {group.what}: {', '.join(group.commands)}")
    parser.print_help()
    return ExitCode.OK


def _parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        options = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        shown = " ".join(options or unknown)  # what is given to an option may be a secret
        parser.error(f"unrecognized arguments: {shown}{_nearest_option(parser, unknown)}")
    return arguments


def _nearest_option(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    """A hint at the option that was meant by the first unknown one that is like any."""
    known = [option for action in parser._actions for option in action.option_strings]  # noqa: SLF001 - argparse lists its options nowhere else
    for word in unknown:
        option = word.partition("=")[0]
        nearest = _nearest(option, known, _LIKE) if option.startswith("--") else []
        if nearest:
            return f"; did you mean {nearest[0]}?"
    return ""
