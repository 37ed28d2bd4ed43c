"""The commands of `gpu-agent` by subject. A command is loaded when it is used, and no other."""

import click

from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.declaration import Commands, Declaration, Entry, Group, Option, argument
from gpu_agent.version import __version__

COMPLETE_VARIABLE = "_GPU_AGENT_COMPLETE"
"""The variable by which a shell's script asks for completions."""
_SHELLS = ("bash", "zsh", "fish")


def commands_of(module: str) -> Commands:  # noqa: C901, PLR0912, PLR0915 - one case for each module
    """Load a module of commands."""
    match module:
        case "registry.tokens":
            from gpu_agent.cli.registry.tokens import COMMANDS
        case "registry.serve":
            from gpu_agent.cli.registry.serve import COMMANDS
        case "registry.members":
            from gpu_agent.cli.registry.members import COMMANDS
        case "registry.page":
            from gpu_agent.cli.registry.page import COMMANDS
        case "registry.settings":
            from gpu_agent.cli.registry.settings import COMMANDS
        case "registry.storage":
            from gpu_agent.cli.registry.storage import COMMANDS
        case "registry.nodes":
            from gpu_agent.cli.registry.nodes import COMMANDS
        case "registry.node_actions":
            from gpu_agent.cli.registry.node_actions import COMMANDS
        case "registry.events":
            from gpu_agent.cli.registry.events import COMMANDS
        case "registry.notify":
            from gpu_agent.cli.registry.notify import COMMANDS
        case "registry.claims":
            from gpu_agent.cli.registry.claims import COMMANDS
        case "registry.claim_run":
            from gpu_agent.cli.registry.claim_run import COMMANDS
        case "agent.jobs":
            from gpu_agent.cli.agent.jobs import COMMANDS
        case "config":
            from gpu_agent.cli.config import COMMANDS
        case "service":
            from gpu_agent.cli.service import COMMANDS
        case "agent.probe_options":
            from gpu_agent.cli.agent.probe_options import COMMANDS
        case "agent.check":
            from gpu_agent.cli.agent.check import COMMANDS
        case "agent.doctor":
            from gpu_agent.cli.agent.doctor import COMMANDS
        case "agent.run":
            from gpu_agent.cli.agent.run import COMMANDS
        case "agent.status":
            from gpu_agent.cli.agent.status import COMMANDS
        case "agent.explain":
            from gpu_agent.cli.agent.explain import COMMANDS
        case "registry.explain":
            from gpu_agent.cli.registry.explain import COMMANDS
        case "agent.drain":
            from gpu_agent.cli.agent.drain import COMMANDS
        case "demo":
            from gpu_agent.cli.demo import COMMANDS
        case "schema":
            from gpu_agent.cli.schema import COMMANDS
        case _:
            return {"completion": (declare_completion, run_completion)}
    return COMMANDS


def declare_completion() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Print a script by which a shell completes commands, options and their values. The packages "
        "bring it; "
        "after a pip install, have your shell read it when it starts:\n\n"
        "bash: `source <(gpu-agent completion bash)` in ~/.bashrc\n\n"
        "zsh: `source <(gpu-agent completion zsh)` in ~/.zshrc, behind compinit\n\n"
        "fish: `gpu-agent completion fish | source` in config.fish",
        example="gpu-agent completion bash",
        exits={ExitCode.OK: "printed"},
        asks=False,
        params=[argument("shell", metavar="SHELL", choices=_SHELLS, help="bash, zsh or fish")],
    )


def run_completion(arguments: Arguments) -> int:
    """Print what lets a shell complete the words after `gpu-agent`."""
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(arguments.shell)
    assert kind is not None  # noqa: S101 - click has all three
    made = kind(ROOT, {}, "gpu-agent", COMPLETE_VARIABLE)
    print(ShellComplete.source(made))  # that of bash would start a bash to see its version
    return ExitCode.OK


def complete(instruction: str) -> int:
    """Answer a shell's question, which its script puts into variables."""
    from click.shell_completion import shell_complete

    return shell_complete(ROOT, {}, "gpu-agent", COMPLETE_VARIABLE, instruction)


def _version_option() -> Option:
    def print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click hands it over so
        del param
        if value:
            print(f"gpu-agent {__version__}")
            ctx.exit()

    return Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=print_version,
        help="show the version and exit",
    )


TOKEN = Group(
    "gpu-agent",
    "registry",
    "token",
    load=commands_of,
    summary="create, list, revoke and rotate tokens",
    about=(
        "New nodes register with join tokens, and authenticate with node tokens after that; operator\n"
        "tokens are for people and programs that use this API. The registry stores digests only: a\n"
        "token is shown once."
    ),
    what="action",
    subjects={
        "actions": {
            "create": Entry("registry.tokens", "create a join token or an operator token"),
            "list": Entry("registry.tokens", "list the tokens of this registry"),
            "revoke": Entry("registry.tokens", "revoke a token now"),
            "rotate": Entry("registry.tokens", "replace the token of a node"),
        },
    },
)
CLAIM = Group(
    "gpu-agent",
    "registry",
    "claim",
    load=commands_of,
    summary="create, list, renew and release claims; run a command with one",
    about=(
        "A claim reserves a slot on a node for a job, with GPUs of its own where the job asks for\n"
        "them. It expires unless it is renewed; release it when the job ends."
    ),
    what="action",
    subjects={
        "actions": {
            "create": Entry("registry.claims", "claim a slot for a job"),
            "list": Entry("registry.claims", "list the claims"),
            "show": Entry("registry.claims", "show one job's claim: where, since when, what happened to it"),
            "renew": Entry("registry.claims", "renew a job's claim for one more TTL"),
            "release": Entry("registry.claims", "release a job's claim"),
            "run": Entry("registry.claim_run", "claim GPUs for a command, run it, and release them"),
        },
    },
)
NODE = Group(
    "gpu-agent",
    "registry",
    "node",
    load=commands_of,
    summary="list and show nodes, and act on them: drain, cordon, remove, …",
    about="The nodes of a registry: what they have, what they do, and what an operator has them do.",
    what="action",
    subjects={
        "look": {
            "list": Entry("registry.nodes", "list all nodes with status and reason"),
            "show": Entry("registry.nodes", "show one node: checks, GPUs, models, history"),
        },
        "one node, or all with a label": {
            "drain": Entry("registry.node_actions", "let it finish its jobs, then take it offline"),
            "resume": Entry("registry.node_actions", "end its drain"),
            "cordon": Entry("registry.node_actions", "give it, or one of its GPUs, no new jobs"),
            "uncordon": Entry("registry.node_actions", "give it, or that GPU, new jobs again"),
        },
        "one node": {
            "refresh": Entry("registry.nodes", "have it probe again, now"),
            "check": Entry("registry.nodes", "have it run its admission checks, now"),
            "reregister": Entry("registry.nodes", "have it register again"),
            "readmit": Entry("registry.tokens", "create a token that gives a machine this node's id back"),
            "remove": Entry("registry.nodes", "remove its record"),
        },
    },
)
EVENT = Group(
    "gpu-agent",
    "registry",
    "event",
    load=commands_of,
    summary="list what happened, or follow what happens",
    about="The events of a registry, of one node or of all.",
    what="action",
    subjects={
        "actions": {
            "list": Entry("registry.events", "list the latest events"),
            "follow": Entry("registry.events", "print each event as it happens, until Ctrl-C"),
        },
    },
)
NOTIFY = Group(
    "gpu-agent",
    "registry",
    "notify",
    load=commands_of,
    summary="list the receivers of alarms, and try them",
    about=(
        "The receivers of alarms: webhooks, Slack, Teams and commands that learn of what happens.\n"
        "They stand in the registry's settings as tables [[notify]]."
    ),
    what="action",
    subjects={
        "actions": {
            "list": Entry("registry.notify", "list the receivers: what waits, and why one fails"),
            "test": Entry("registry.notify", "send a receiver a test message"),
        },
    },
)
EXPLAIN = Group(
    "gpu-agent",
    "registry",
    "explain",
    load=commands_of,
    summary="explain why a job gets no node, or a node no jobs",
    about="Why a job gets no node, and why a node gets no jobs. Nothing is reserved.",
    what="subject",
    subjects={
        "subjects": {
            "job": Entry("registry.explain", "which nodes could take a job now, and why not the others"),
            "node": Entry("registry.explain", "which jobs a node cannot take now, and why"),
            "exclusions": Entry("registry.explain", "why jobs got no node lately, counted by reason"),
        },
    },
)
REGISTRY = Group(
    "gpu-agent",
    "registry",
    load=commands_of,
    summary="serve a registry, query it, and act on its nodes",
    about="The registry: serve it, query it, and act on its nodes.",
    what="command",
    subjects={
        "nodes and jobs": {
            "node": NODE,
            "claim": CLAIM,
            "queue": Entry("registry.claims", "list the jobs that wait for capacity"),
            "explain": EXPLAIN,
            "event": EVENT,
        },
        "credentials": {
            "token": TOKEN,
        },
        "the registry itself": {
            "serve": Entry("registry.serve", "run the registry"),
            "members": Entry("registry.members", "show the processes of the registry, and which one leads"),
            "page": Entry("registry.page", "print where the fleet page is, with a link that signs in"),
            "settings": Entry("registry.settings", "show the thresholds in force"),
            "backup": Entry("registry.storage", "write its database to a file"),
            "restore": Entry("registry.storage", "restore its database from a backup"),
            "notify": NOTIFY,
        },
    },
)
JOB = Group(
    "gpu-agent",
    "job",
    load=commands_of,
    summary="announce jobs in flight on this machine",
    about=(
        "Jobs in flight on this machine, announced to its agent: the registry counts them, and\n"
        "drains wait for them. A job ends with its process or connection, or with `job finish`."
    ),
    what="action",
    subjects={
        "actions": {
            "run": Entry("agent.jobs", "run a command as a job in flight"),
            "start": Entry("agent.jobs", "announce a job that lasts as long as a process"),
            "finish": Entry("agent.jobs", "announce that a job has ended"),
            "list": Entry("agent.jobs", "list the jobs in flight, their users, and what ends them"),
        },
    },
)
CONFIG = Group(
    "gpu-agent",
    "config",
    load=commands_of,
    summary="check the configuration, or show where each value comes from",
    about="The settings of agent or registry: whether they can be used, and where each comes from.",
    what="action",
    subjects={
        "actions": {
            "check": Entry("config", "say whether the settings can be used, and what is wrong"),
            "show": Entry("config", "show every setting and where its value comes from"),
        },
    },
)
SERVICE = Group(
    "gpu-agent",
    "service",
    load=commands_of,
    summary="install agent or registry as a systemd service, or show it",
    about=(
        "The agent, or the registry, as a service of this machine where it came from pip.\n"
        "The packages bring their services themselves; `status` shows those too."
    ),
    what="action",
    subjects={
        "actions": {
            "install": Entry("service", "install the service: unit, user, first settings"),
            "uninstall": Entry("service", "remove the service; settings and state stay"),
            "status": Entry("service", "show whether it runs, since when, and the end of its log"),
        },
    },
)
ROOT = Group(
    "gpu-agent",
    load=commands_of,
    params=[_version_option()],
    summary="gpu-agent",
    about="Says, now and truthfully, what each GPU machine has and whether it may take a job.",
    what="command",
    subjects={
        "on a GPU machine": {
            "probe": Entry("agent.probe_options", "show what this machine has and whether it could register"),
            "doctor": Entry("agent.doctor", "check all that the agent needs, and say how to fix it"),
            "run": Entry("agent.run", "run the agent: probe, register, send heartbeats"),
            "check": Entry("agent.check", "run the checks that a machine passes before it takes jobs"),
        },
        "the agent that runs here": {
            "status": Entry("agent.status", "show the agent's state, and its status at the registry"),
            "explain": Entry("agent.explain", "say which jobs this machine cannot take now, and why"),
            "drain": Entry("agent.drain", "let this machine finish its jobs, then take it offline"),
            "resume": Entry("agent.drain", "end its drain"),
            "refresh": Entry("agent.status", "have the agent probe its machine again, now"),
            "job": JOB,
        },
        "beside the scheduler": {
            "registry": REGISTRY,
        },
        "on either": {
            "config": CONFIG,
            "service": SERVICE,
            "completion": Entry("groups", "print the completion for a shell: bash, zsh or fish"),
        },
        "to try it, and to build on it": {
            "demo": Entry("demo", "a registry and three agents on this machine, until Ctrl-C"),
            "schema": Entry("schema", "print the JSON Schemas of the protocol and of what commands print"),
        },
    },
)
