"""The commands that there are: their words, what loads each, and one line about it.

A command is loaded when it runs, and no other: `gpu-agent probe` must not pay for the others.
"""

import argparse

from gpu_agent.cli.grammar import Command, Configure, Group, Run
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach

Loaded = tuple[Configure, Run]
_SHELLS = ("bash", "zsh", "fish")


def configure_completion(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
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


def print_completion(arguments: argparse.Namespace) -> int:
    """Print what lets a shell complete the words after `gpu-agent`."""
    from gpu_agent.cli.documents.completion import script_for

    print(script_for(arguments.shell, ROOT), end="")
    return ExitCode.OK


def _load_registry_token_create() -> Loaded:
    from gpu_agent.cli.registry.token_create import configure, main

    return configure, main


def _load_registry_token_list() -> Loaded:
    from gpu_agent.cli.registry.token_list import configure, main

    return configure, main


def _load_registry_token_revoke() -> Loaded:
    from gpu_agent.cli.registry.token_revoke import configure, main

    return configure, main


def _load_registry_token_rotate() -> Loaded:
    from gpu_agent.cli.registry.token_rotate import configure, main

    return configure, main


def _load_registry_serve() -> Loaded:
    from gpu_agent.cli.registry.serve import configure, main

    return configure, main


def _load_registry_thresholds() -> Loaded:
    from gpu_agent.cli.registry.thresholds import configure, main

    return configure, main


def _load_registry_backup() -> Loaded:
    from gpu_agent.cli.registry.backup import configure, main

    return configure, main


def _load_registry_restore() -> Loaded:
    from gpu_agent.cli.registry.restore import configure, main

    return configure, main


def _load_registry_nodes() -> Loaded:
    from gpu_agent.cli.registry.nodes import configure, main

    return configure, main


def _load_registry_node() -> Loaded:
    from gpu_agent.cli.registry.node import configure, main

    return configure, main


def _load_registry_why() -> Loaded:
    from gpu_agent.cli.registry.why import configure, main

    return configure, main


def _load_registry_events() -> Loaded:
    from gpu_agent.cli.registry.events import configure, main

    return configure, main


def _load_registry_drain() -> Loaded:
    from gpu_agent.cli.registry.drain import configure, main

    return configure, main


def _load_registry_resume() -> Loaded:
    from gpu_agent.cli.registry.resume import configure, main

    return configure, main


def _load_registry_cordon() -> Loaded:
    from gpu_agent.cli.registry.cordon import configure, main

    return configure, main


def _load_registry_uncordon() -> Loaded:
    from gpu_agent.cli.registry.uncordon import configure, main

    return configure, main


def _load_registry_refresh() -> Loaded:
    from gpu_agent.cli.registry.refresh import configure, main

    return configure, main


def _load_registry_reregister() -> Loaded:
    from gpu_agent.cli.registry.reregister import configure, main

    return configure, main


def _load_registry_forget() -> Loaded:
    from gpu_agent.cli.registry.forget import configure, main

    return configure, main


def _load_registry_reclaim() -> Loaded:
    from gpu_agent.cli.registry.reclaim import configure, main

    return configure, main


def _load_registry_explain() -> Loaded:
    from gpu_agent.cli.registry.explain import configure, main

    return configure, main


def _load_registry_select() -> Loaded:
    from gpu_agent.cli.registry.select import configure, main

    return configure, main


def _load_registry_claim() -> Loaded:
    from gpu_agent.cli.registry.claim import configure, main

    return configure, main


def _load_registry_renew() -> Loaded:
    from gpu_agent.cli.registry.renew import configure, main

    return configure, main


def _load_registry_release() -> Loaded:
    from gpu_agent.cli.registry.release import configure, main

    return configure, main


def _load_registry_claims() -> Loaded:
    from gpu_agent.cli.registry.claims import configure, main

    return configure, main


def _load_registry_exclusions() -> Loaded:
    from gpu_agent.cli.registry.exclusions import configure, main

    return configure, main


def _load_job_run() -> Loaded:
    from gpu_agent.cli.local.job_run import configure, main

    return configure, main


def _load_job_start() -> Loaded:
    from gpu_agent.cli.local.job_start import configure, main

    return configure, main


def _load_job_finish() -> Loaded:
    from gpu_agent.cli.local.job_finish import configure, main

    return configure, main


def _load_job_list() -> Loaded:
    from gpu_agent.cli.local.job_list import configure, main

    return configure, main


def _load_config_check() -> Loaded:
    from gpu_agent.cli.configuration.check import configure, main

    return configure, main


def _load_config_show() -> Loaded:
    from gpu_agent.cli.configuration.show import configure, main

    return configure, main


def _load_service_install() -> Loaded:
    from gpu_agent.cli.service.install import configure, main

    return configure, main


def _load_service_uninstall() -> Loaded:
    from gpu_agent.cli.service.uninstall import configure, main

    return configure, main


def _load_service_status() -> Loaded:
    from gpu_agent.cli.service.status import configure, main

    return configure, main


def _load_probe() -> Loaded:
    from gpu_agent.cli.probe.probe import configure, main

    return configure, main


def _load_doctor() -> Loaded:
    from gpu_agent.cli.doctor.doctor import configure, main

    return configure, main


def _load_run() -> Loaded:
    from gpu_agent.cli.run import configure, main

    return configure, main


def _load_status() -> Loaded:
    from gpu_agent.cli.local.status import configure, main

    return configure, main


def _load_agent_why() -> Loaded:
    from gpu_agent.cli.local.why import configure, main

    return configure, main


def _load_agent_drain() -> Loaded:
    from gpu_agent.cli.local.drain import configure, main

    return configure, main


def _load_agent_resume() -> Loaded:
    from gpu_agent.cli.local.resume import configure, main

    return configure, main


def _load_agent_refresh() -> Loaded:
    from gpu_agent.cli.local.refresh import configure, main

    return configure, main


def _load_completion() -> Loaded:
    return configure_completion, print_completion


def _load_demo() -> Loaded:
    from gpu_agent.cli.demo.demo import configure, main

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
