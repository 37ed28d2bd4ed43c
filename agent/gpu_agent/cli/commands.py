"""The commands that there are: their words, where each lives, and one line about it.

Groups list their commands by subject, as a person looks for them. Loads none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its module in this package, and one line about it."""

    module: str
    summary: str


@dataclass(frozen=True, slots=True)
class Group:
    """Commands under one word, by subject."""

    summary: str
    description: str
    what: str
    """What the next word is called: a command, an action, …"""
    subjects: Mapping[str, Mapping[str, "Command | Group"]]

    @property
    def commands(self) -> dict[str, "Command | Group"]:
        """All commands of the group, in the order of its subjects."""
        return {name: one for subject in self.subjects.values() for name, one in subject.items()}


TOKEN = Group(
    summary="make, list, revoke and replace credentials",
    description=(
        "Join tokens let new nodes in, node tokens are what nodes hold after that, operator tokens are for\n"
        "people and programs that use this API. The registry keeps digests only: a token is shown once."
    ),
    what="action",
    subjects={
        "actions": {
            "create": Command("registry.token_create", "let nodes join, or an operator in"),
            "list": Command("registry.token_list", "show which tokens open this registry"),
            "revoke": Command("registry.token_revoke", "end a token now"),
            "rotate": Command("registry.token_rotate", "give a node another token"),
        },
    },
)
REGISTRY = Group(
    summary="serve a registry, ask it, and act on its nodes",
    description="The registry: serve it, ask it, and act on its nodes.",
    what="action",
    subjects={
        "the registry itself": {
            "serve": Command("registry.serve", "run the registry"),
            "thresholds": Command("registry.thresholds", "show what it judges by"),
            "backup": Command("registry.backup", "write all that it keeps to a file"),
            "restore": Command("registry.restore", "put a backup in the place of its database"),
        },
        "nodes": {
            "nodes": Command("registry.nodes", "list all nodes with status and reason"),
            "node": Command("registry.node", "show one node: checks, GPUs, models, history"),
            "why": Command("registry.why", "say which jobs a node would be refused now, and why"),
            "events": Command("registry.events", "show what happened to a node, and what happens"),
        },
        "acting on a node": {
            "drain": Command("registry.drain", "let it finish its jobs, then take it offline"),
            "resume": Command("registry.resume", "take it back after a drain"),
            "cordon": Command("registry.cordon", "give it no new jobs"),
            "uncordon": Command("registry.uncordon", "let it have new jobs again"),
            "refresh": Command("registry.refresh", "have it look at itself again, now"),
            "reregister": Command("registry.reregister", "have it declare itself anew"),
            "forget": Command("registry.forget", "let its record go"),
            "reclaim": Command("registry.reclaim", "give it its id back when it has lost its state"),
        },
        "jobs and their places": {
            "explain": Command("registry.explain", "say for each node why it could or could not take a job"),
            "select": Command("registry.select", "say which node a job would get now"),
            "claim": Command("registry.claim", "reserve a place for a job"),
            "renew": Command("registry.renew", "keep a job's place for one more TTL"),
            "release": Command("registry.release", "give a job's place back"),
            "claims": Command("registry.claims", "list who holds which place"),
            "exclusions": Command("registry.exclusions", "count what jobs failed on lately"),
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
            "run": Command("local.job_run", "run a command as a job in flight"),
            "start": Command("local.job_start", "say that a job is in flight while a process lives"),
            "finish": Command("local.job_finish", "say that a job is done"),
            "list": Command("local.job_list", "list the jobs in flight, whose they are, and what ends them"),
        },
    },
)
CONFIG = Group(
    summary="check the configuration, or show it with where each value comes from",
    description="The configuration of either half: whether it can be used, and where each value comes from.",
    what="action",
    subjects={
        "actions": {
            "check": Command(
                "configuration.check", "say whether the settings can be used, and what is wrong"
            ),
            "show": Command("configuration.show", "show every setting and where its value comes from"),
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
            "install": Command("service.install", "make it a service: unit, user, settings to begin with"),
            "uninstall": Command("service.uninstall", "take that back; settings and state stay"),
            "status": Command("service.status", "show whether it runs, since when, and what it said last"),
        },
    },
)
ROOT = Group(
    summary="gpu-agent",
    description="Says, now and truthfully, what each GPU machine has and whether it may take a job.",
    what="command",
    subjects={
        "on a GPU machine": {
            "probe": Command("probe.probe", "show what this machine has and whether it could register"),
            "doctor": Command("doctor.doctor", "look at all that the agent needs, and say how to mend it"),
            "run": Command("run", "run the agent: probe, register, beat"),
        },
        "the agent that runs here": {
            "status": Command("local.status", "show how the agent stands, and what the registry says of it"),
            "why": Command("local.why", "say which jobs this machine would be refused now, and why"),
            "drain": Command("local.drain", "let this machine finish its jobs, then take it offline"),
            "resume": Command("local.resume", "take it back after a drain"),
            "refresh": Command("local.refresh", "have the agent look at its machine again, now"),
            "job": JOB,
        },
        "beside the scheduler": {
            "registry": REGISTRY,
        },
        "on either": {
            "config": CONFIG,
            "service": SERVICE,
            "completion": Command(
                "documents.completion", "print the completion for a shell: bash, zsh or fish"
            ),
        },
        "to try it, and to build on it": {
            "demo": Command("demo.demo", "a registry and three agents on this machine, until Ctrl-C"),
            "schema": Command("schema", "print the JSON Schemas of the protocol and of what commands print"),
        },
    },
)
