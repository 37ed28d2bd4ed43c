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
    Commands,
    ExitCode,
    Failure,
    Formatter,
    Group,
    Parser,
    describe,
    exit_code_lines,
    fill_paragraphs,
    parser_of,
)
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.probe.nvml.forked_child import ForkedChild
from gpu_agent.version import __version__

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


def _load_tokens() -> Commands:
    from gpu_agent.cli.registry.tokens import COMMANDS

    return COMMANDS


def _load_serve() -> Commands:
    from gpu_agent.cli.registry.serve import COMMANDS

    return COMMANDS


def _load_members() -> Commands:
    from gpu_agent.cli.registry.members import COMMANDS

    return COMMANDS


def _load_settings() -> Commands:
    from gpu_agent.cli.registry.settings import COMMANDS

    return COMMANDS


def _load_storage() -> Commands:
    from gpu_agent.cli.registry.storage import COMMANDS

    return COMMANDS


def _load_nodes() -> Commands:
    from gpu_agent.cli.registry.nodes import COMMANDS

    return COMMANDS


def _load_node_actions() -> Commands:
    from gpu_agent.cli.registry.node_actions import COMMANDS

    return COMMANDS


def _load_events() -> Commands:
    from gpu_agent.cli.registry.events import COMMANDS

    return COMMANDS


def _load_claims() -> Commands:
    from gpu_agent.cli.registry.claims import COMMANDS

    return COMMANDS


def _load_claim_run() -> Commands:
    from gpu_agent.cli.registry.claim_run import COMMANDS

    return COMMANDS


def _load_jobs() -> Commands:
    from gpu_agent.cli.agent.jobs import COMMANDS

    return COMMANDS


def _load_config() -> Commands:
    from gpu_agent.cli.config import COMMANDS

    return COMMANDS


def _load_service() -> Commands:
    from gpu_agent.cli.service import COMMANDS

    return COMMANDS


def _load_probe() -> Commands:
    from gpu_agent.cli.agent.probe import COMMANDS

    return COMMANDS


def _load_check() -> Commands:
    from gpu_agent.cli.agent.check import COMMANDS

    return COMMANDS


def _load_doctor() -> Commands:
    from gpu_agent.cli.agent.doctor import COMMANDS

    return COMMANDS


def _load_run() -> Commands:
    from gpu_agent.cli.agent.run import COMMANDS

    return COMMANDS


def _load_status() -> Commands:
    from gpu_agent.cli.agent.status import COMMANDS

    return COMMANDS


def _load_explain() -> Commands:
    from gpu_agent.cli.agent.explain import COMMANDS

    return COMMANDS


def _load_explain_registry() -> Commands:
    from gpu_agent.cli.registry.explain import COMMANDS

    return COMMANDS


def _load_drain() -> Commands:
    from gpu_agent.cli.agent.drain import COMMANDS

    return COMMANDS


def _load_demo() -> Commands:
    from gpu_agent.cli.demo import COMMANDS

    return COMMANDS


def _load_schema() -> Commands:
    from gpu_agent.cli.schema import COMMANDS

    return COMMANDS


def _load_completion() -> Commands:
    return {"completion": (configure_completion, run_completion)}


TOKEN = Group(
    summary="create, list, revoke and rotate tokens",
    description=(
        "New nodes register with join tokens, and authenticate with node tokens after that; operator\n"
        "tokens are for people and programs that use this API. The registry stores digests only: a\n"
        "token is shown once."
    ),
    what="action",
    subjects={
        "actions": {
            "create": Command(_load_tokens, "create a join token or an operator token"),
            "list": Command(_load_tokens, "list the tokens of this registry"),
            "revoke": Command(_load_tokens, "revoke a token now"),
            "rotate": Command(_load_tokens, "replace the token of a node"),
        },
    },
)
CLAIM = Group(
    summary="create, list, renew and release claims; run a command with one",
    description=(
        "A claim reserves a slot on a node for a job, with GPUs of its own where the job asks for\n"
        "them. It expires unless it is renewed; release it when the job ends."
    ),
    what="action",
    subjects={
        "actions": {
            "create": Command(_load_claims, "claim a slot for a job"),
            "list": Command(_load_claims, "list the claims"),
            "show": Command(_load_claims, "show one job's claim: where, since when, what happened to it"),
            "renew": Command(_load_claims, "renew a job's claim for one more TTL"),
            "release": Command(_load_claims, "release a job's claim"),
            "run": Command(_load_claim_run, "claim GPUs for a command, run it, and release them"),
        },
    },
)
NODE = Group(
    summary="list and show nodes, and act on them: drain, cordon, remove, …",
    description="The nodes of a registry: what they have, what they do, and what an operator has them do.",
    what="action",
    subjects={
        "look": {
            "list": Command(_load_nodes, "list all nodes with status and reason"),
            "show": Command(_load_nodes, "show one node: checks, GPUs, models, history"),
        },
        "one node, or all with a label": {
            "drain": Command(_load_node_actions, "let it finish its jobs, then take it offline"),
            "resume": Command(_load_node_actions, "end its drain"),
            "cordon": Command(_load_node_actions, "give it, or one of its GPUs, no new jobs"),
            "uncordon": Command(_load_node_actions, "give it, or that GPU, new jobs again"),
        },
        "one node": {
            "refresh": Command(_load_nodes, "have it probe again, now"),
            "check": Command(_load_nodes, "have it run its admission checks, now"),
            "reregister": Command(_load_nodes, "have it register again"),
            "readmit": Command(_load_tokens, "create a token that gives a machine this node's id back"),
            "remove": Command(_load_nodes, "remove its record"),
        },
    },
)
EVENT = Group(
    summary="list what happened, or follow what happens",
    description="The events of a registry, of one node or of all.",
    what="action",
    subjects={
        "actions": {
            "list": Command(_load_events, "list the latest events"),
            "follow": Command(_load_events, "print each event as it happens, until Ctrl-C"),
        },
    },
)
EXPLAIN = Group(
    summary="explain why a job gets no node, or a node no jobs",
    description="Why a job gets no node, and why a node gets no jobs. Nothing is reserved.",
    what="subject",
    subjects={
        "subjects": {
            "job": Command(
                _load_explain_registry, "which nodes could take a job now, and why not the others"
            ),
            "node": Command(_load_explain_registry, "which jobs a node cannot take now, and why"),
            "exclusions": Command(_load_explain_registry, "why jobs got no node lately, counted by reason"),
        },
    },
)
REGISTRY = Group(
    summary="serve a registry, query it, and act on its nodes",
    description="The registry: serve it, query it, and act on its nodes.",
    what="command",
    subjects={
        "nodes and jobs": {
            "node": NODE,
            "claim": CLAIM,
            "queue": Command(_load_claims, "list the jobs that wait for capacity"),
            "explain": EXPLAIN,
            "event": EVENT,
        },
        "credentials": {
            "token": TOKEN,
        },
        "the registry itself": {
            "serve": Command(_load_serve, "run the registry"),
            "members": Command(_load_members, "show the processes of the registry, and which one leads"),
            "settings": Command(_load_settings, "show the thresholds in force"),
            "backup": Command(_load_storage, "write its database to a file"),
            "restore": Command(_load_storage, "restore its database from a backup"),
        },
    },
)
JOB = Group(
    summary="announce jobs in flight on this machine",
    description=(
        "Jobs in flight on this machine, announced to its agent: the registry counts them, and\n"
        "drains wait for them. A job ends with its process or connection, or with `job finish`."
    ),
    what="action",
    subjects={
        "actions": {
            "run": Command(_load_jobs, "run a command as a job in flight"),
            "start": Command(_load_jobs, "announce a job that lasts as long as a process"),
            "finish": Command(_load_jobs, "announce that a job has ended"),
            "list": Command(_load_jobs, "list the jobs in flight, their users, and what ends them"),
        },
    },
)
CONFIG = Group(
    summary="check the configuration, or show it with where each value comes from",
    description="The settings of agent or registry: whether they can be used, and where each comes from.",
    what="action",
    subjects={
        "actions": {
            "check": Command(_load_config, "say whether the settings can be used, and what is wrong"),
            "show": Command(_load_config, "show every setting and where its value comes from"),
        },
    },
)
SERVICE = Group(
    summary="install agent or registry as a systemd service after a pip install, or show it",
    description=(
        "The agent, or the registry, as a service of this machine where it came from pip.\n"
        "The packages bring their services themselves; `status` shows those too."
    ),
    what="action",
    subjects={
        "actions": {
            "install": Command(_load_service, "install the service: unit, user, first settings"),
            "uninstall": Command(_load_service, "remove the service; settings and state stay"),
            "status": Command(_load_service, "show whether it runs, since when, and the end of its log"),
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
            "doctor": Command(_load_doctor, "check all that the agent needs, and say how to fix it"),
            "run": Command(_load_run, "run the agent: probe, register, send heartbeats"),
            "check": Command(_load_check, "run the checks that a machine passes before it takes jobs"),
        },
        "the agent that runs here": {
            "status": Command(_load_status, "show the agent's state, and its status at the registry"),
            "explain": Command(_load_explain, "say which jobs this machine cannot take now, and why"),
            "drain": Command(_load_drain, "let this machine finish its jobs, then take it offline"),
            "resume": Command(_load_drain, "end its drain"),
            "refresh": Command(_load_status, "have the agent probe its machine again, now"),
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


_LIKE = 0.75
"""The least similarity of a mistyped option: all begin alike."""
_NO_THREAD = "can't start new thread"
"""How Python reports it; a class of its own for it there is none."""
_NO_THREAD_SENTENCE = (
    "no thread or process can be started: this user, service or container has as many as it may. End some, "
    "or raise the limit: `ulimit -u`, TasksMax of the unit, or pids.max of the container"
)
_OWN_OPTIONS = ("-h", "--help", "--version")


def main(argv: Sequence[str] | None = None, *, child: ForkedChild | None = None) -> int:
    """Run one command; the only place where an unexpected exception ends.

    `child` reads the GPUs for it already, if it is given.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words, child)
    except Failure as failure:
        print_stderr(str(failure))
        return failure.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as fault:
        if os.environ.get("GPU_AGENT_DEBUG"):
            raise
        if _NO_THREAD in str(fault):
            print_stderr(_NO_THREAD_SENTENCE)
            return ExitCode.FAILED
        print_stderr(
            f"unexpected fault: {type(fault).__name__}: {fault}\n"
            "This is a bug. Run again with GPU_AGENT_DEBUG=1 and report what it prints."
        )
        return ExitCode.FAILED


def _run(words: Sequence[str], child: ForkedChild | None) -> int:
    entry: Command | Group = ROOT
    path: tuple[str, ...] = ("gpu-agent",)
    rest = list(words)
    while isinstance(entry, Group):
        command = entry.commands.get(rest[0]) if rest else None
        if command is None:
            return _without_command(entry, path, rest)
        entry, path, rest = command, (*path, rest[0]), rest[1:]
    configure, run = entry.load()[path[-1]]
    arguments = _parse(parser_of(configure, path), rest, argparse.Namespace(child=child))
    gc.enable()
    return run(arguments)


def _without_command(group: Group, path: Sequence[str], words: Sequence[str]) -> int:
    """Print the program's help; raise `Failure` where no command of the group is named."""
    parser = _parser_of_group(group, path)
    if words and words[0] not in _OWN_OPTIONS:
        parser.error(_unknown_word(parser, group, words[0]))
    _parse(parser, words)
    if group is not ROOT:
        parser.error(f"say which {group.what}: {', '.join(group.commands)}")
    parser.print_help()
    return ExitCode.OK


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
    """List the commands by subject; for the program itself its exit codes too."""
    lines = []
    width = max(map(len, group.commands), default=0)
    for subject, commands in group.subjects.items():
        lines += [f"{subject}:", *(f"  {name:<{width}}  {one.summary}" for name, one in commands.items()), ""]
    lines.append(f"`{' '.join(path)} {group.what.upper()} --help` says more, with an example.")
    if group is ROOT:
        lines += ["", "exit codes:", *exit_code_lines(MEANINGS)]
    return "\n".join(lines)


def _unknown_word(parser: Parser, group: Group, word: str) -> str:
    """Say what is wrong with a word that names no command; an option of a command comes after it."""
    if word.startswith("-"):
        hint = _nearest_option(parser, [word]) or f"; options come after the {group.what}: put {word} there"
        return f"no {group.what} is named before {word}{hint}"
    path = parser.prog.split()[1:]
    below = [f"`{' '.join((*path, name, word))}`" for name, one in group.commands.items() if _has(one, word)]
    if below:
        return f"no {group.what} {word!r}: did you mean {' or '.join(below)}?"
    nearest = _nearest(word, group.commands)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"there are: {', '.join(group.commands)}."
    return f"no {group.what} {word!r}: {hint}"


def _has(below: Command | Group, word: str) -> bool:
    return isinstance(below, Group) and word in below.commands


def _nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    """Return the name that was probably meant; only a mistake costs the loading of the search."""
    import difflib

    return difflib.get_close_matches(word, list(known), 1, likeness)


def _parse(
    parser: Parser, words: Sequence[str], given: argparse.Namespace | None = None
) -> argparse.Namespace:
    arguments, unknown = parser.parse_known_args(words, given)
    if unknown:
        options = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        shown = " ".join(options or unknown)  # an option's value may be a secret
        parser.error(f"unrecognized arguments: {shown}{_nearest_option(parser, unknown)}")
    return arguments


def _nearest_option(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    """Suggest the option that the first unknown one resembles."""
    known = [option for action in parser._actions for option in action.option_strings]  # noqa: SLF001 - argparse lists its options nowhere else
    for word in unknown:
        option = word.partition("=")[0]
        nearest = _nearest(option, known, _LIKE) if option.startswith("--") else []
        if nearest:
            return f"; did you mean {nearest[0]}?"
    return ""
