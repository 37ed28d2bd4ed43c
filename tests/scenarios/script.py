"""The stage directions: each command of a scenario, and what it does in the theatre.

A scenario is a text: a claim (`# …`), then commands (`> …`), each followed by what was recorded. Further
`# …` lines and blank ones are the author's and stay.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpu_agent.registry.actions import Result
from gpu_agent.registry.events import (
    ClaimRequested,
    Command,
    ControlRequested,
    CordonRequested,
    DrainRequested,
    Event,
    JoinTokenRequested,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    RevocationRequested,
    RotationRequested,
)
from gpu_agent.registry.job import Job
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.inventory import ModelStatus
from tests.scenarios.actors import JOIN_TOKEN, Agent, Box, OlderNode, Stranger
from tests.scenarios.harness import Harness, RegistrySetup, digest_of
from tests.scenarios.transcript import Line, answered, explained, token_listed

# How a command of a scenario finds what it does: those who know directions teach them here.


Direction = Callable[[Harness, dict[str, str]], None]
_DIRECTIONS: list[tuple[re.Pattern[str], Direction]] = []

NODE = r"(?P<name>[a-z]+\d*)"


class UnknownDirectionError(Exception):
    """A command that no direction matches: the scenario's fault."""


def direction(pattern: str) -> Callable[[Direction], Direction]:
    """Teach what is done about commands of this form."""

    def learn(do: Direction) -> Direction:
        _DIRECTIONS.append((re.compile(pattern), do))
        return do

    return learn


def perform(theatre: Harness, command: str) -> None:
    for pattern, do in _DIRECTIONS:
        match = pattern.fullmatch(command)
        if match is not None:
            do(theatre, {name: value or "" for name, value in match.groupdict().items()})
            return
    raise UnknownDirectionError(
        f"{command!r} is no direction: tests/scenarios/script.py and token_directions.py have those that are"
    )


def tell_answer(theatre: Harness, asker: str, result: Result) -> None:
    tell(theatre, asker, answered(result, theatre.now))


def tell(theatre: Harness, asker: str, lines: Iterable[str]) -> None:
    for line in lines:
        theatre.transcript.add(Line(theatre.now, "registry → {}", asker, line))


_MODELS = r"(?: and models? (?P<models>[\w, ()-]+?))?"
_NODES = r"(?P<name>[a-z]+\d*)(?: to (?P<last>[a-z]+\d+))?"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario as it stands in its file."""

    lines: tuple[str, ...]

    @property
    def claim(self) -> str:
        return self.lines[0].removeprefix("# ")

    def played(self) -> str:
        """Play all commands; returns the text that the file should hold."""
        theatre, text = Harness(), list[str]()
        for line in self.lines:
            if line.startswith("> "):
                perform(theatre, line.removeprefix("> "))
                text += [line, *theatre.transcript.read()]
            elif line.startswith("#") or not line:
                text.append(line)
        return "\n".join(text) + "\n"


@direction(r"record (?P<what>nothing|everything)")
def _record(theatre: Harness, said: dict[str, str]) -> None:
    theatre.transcript.recording = said["what"] == "everything"


@direction(r"run (?P<seconds>[\d.]+) s")
def _run(theatre: Harness, said: dict[str, str]) -> None:
    theatre.run(float(said["seconds"]))


@direction(r"registry with auth off")
def _auth_off(theatre: Harness, _: dict[str, str]) -> None:
    theatre.furnish(RegistrySetup(auth_off=True))


@direction(r"registry that requires model (?P<model>\S+)")
def _requires(theatre: Harness, said: dict[str, str]) -> None:
    theatre.furnish(RegistrySetup(thresholds=Thresholds(required_models=(said["model"],))))


@direction(r"registry that reads schema (?P<schema>\S+) only")
def _older_registry(theatre: Harness, said: dict[str, str]) -> None:
    theatre.furnish(RegistrySetup(only_schema=said["schema"]))


@direction(r"registry (?P<what>stops|starts)")
def _registry(theatre: Harness, said: dict[str, str]) -> None:
    (theatre.stop_registry if said["what"] == "stops" else theatre.start_registry)()


@direction(r"store (?P<what>fails|works)")
def _store(theatre: Harness, said: dict[str, str]) -> None:
    theatre.registry.let_store_fail(fails=said["what"] == "fails")


@direction(
    rf"nodes? {_NODES} with (?P<gpus>no|\d+) GPUs?{_MODELS}"
    r"(?: that remembers? (?P<id>\S+))?(?: by token (?P<token>\S+))?"
)
def _node(theatre: Harness, said: dict[str, str]) -> None:
    """Several nodes remember their own names as ids."""
    for name in _named(said):
        gpus = 0 if said["gpus"] == "no" else int(said["gpus"])
        box = Box(name, gpus=gpus, models=_with_status(said["models"]))
        node_id = said["id"] or (name if said["last"] else None)
        agent = Agent(name, box, node_id=node_id)
        agent.join_token = said["token"] or agent.join_token
        theatre.enter(agent)
        theatre.act(agent, agent.start(theatre.now))


@direction(r"node (?P<name>[a-z]+) from a copy of (?P<original>[a-z]+)")
def _copy(theatre: Harness, said: dict[str, str]) -> None:
    """Somebody cloned the machine, with what its agent had stored."""
    original = theatre.agent(said["original"])
    agent = Agent(said["name"], Box(said["name"], gpus=1, models={}), node_id=original.node_id)
    agent.token = original.token
    theatre.enter(agent)
    theatre.act(agent, agent.start(theatre.now))


@direction(rf"older node {_NODES}(?: with models? (?P<models>[\w, -]+))?(?: by token (?P<token>\S+))?")
def _older_node(theatre: Harness, said: dict[str, str]) -> None:
    for name in _named(said):
        node = OlderNode(name, models=_listed(said["models"]), token=said["token"] or None)
        theatre.enter(node)
        theatre.act(node, node.wake(theatre.now))


@direction(r"stranger(?: with token (?P<token>\S+))? says (?P<frame>.+)")
def _stranger(theatre: Harness, said: dict[str, str]) -> None:
    stranger = Stranger(said["frame"], token=said["token"] or JOIN_TOKEN)
    theatre.enter(stranger)
    theatre.act(stranger, stranger.dial())


@direction(rf"(?P<what>silence|speak|cut|unplug|plug in) {_NODES}")
def _line_of(theatre: Harness, said: dict[str, str]) -> None:
    do = {
        "silence": theatre.freeze,
        "speak": theatre.thaw,
        "cut": theatre.cut,
        "unplug": theatre.unplug,
        "plug in": theatre.plug_in,
    }[said["what"]]
    for name in _named(said):
        do(name)


@direction(rf"stop {_NODES}(?P<drain> draining)?")
def _stop(theatre: Harness, said: dict[str, str]) -> None:
    agent = theatre.agent(said["name"])
    theatre.act(agent, agent.stop(drain=bool(said["drain"]), now=theatre.now))


@direction(rf"start {_NODES}")
def _start(theatre: Harness, said: dict[str, str]) -> None:
    agent = theatre.agent(said["name"])
    theatre.act(agent, agent.start(theatre.now))


@direction(rf"(?P<what>lose|return) gpu (?P<place>\d+) of {_NODES}")
def _gpu(theatre: Harness, said: dict[str, str]) -> None:
    lost = theatre.agent(said["name"]).box.lost
    (lost.add if said["what"] == "lose" else lost.discard)(int(said["place"]))


@direction(rf"put a gpu into {_NODES}")
def _put_in(theatre: Harness, said: dict[str, str]) -> None:
    theatre.agent(said["name"]).box.add_gpu()


@direction(rf"(?P<what>hang|free) nvml of {_NODES}")
def _nvml(theatre: Harness, said: dict[str, str]) -> None:
    box = theatre.agent(said["name"]).box
    box.hung_since = theatre.now if said["what"] == "hang" else None


@direction(rf"model (?P<model>\S+) of {_NODES} becomes (?P<status>\w+)")
def _model(theatre: Harness, said: dict[str, str]) -> None:
    theatre.agent(said["name"]).box.models[said["model"]] = ModelStatus(said["status"])


@direction(rf"job (?P<job>\S+) (?P<what>runs on|ends on) {_NODES}")
def _job(theatre: Harness, said: dict[str, str]) -> None:
    """A worker announces its jobs; the agent tells them at its next beat."""
    agent = theatre.agent(said["name"])
    others = tuple(job for job in agent.running_jobs or () if job != said["job"])
    agent.running_jobs = (*others, said["job"]) if said["what"] == "runs on" else others


@direction(rf"operator (?P<what>drains|resumes|cordons|uncordons) {_NODES}(?: within (?P<seconds>\d+) s)?")
def _operator(theatre: Harness, said: dict[str, str]) -> None:
    node_id, what = theatre.node_id(said["name"]), said["what"]
    deadline = float(said["seconds"]) if said["seconds"] else None

    def event(ref: int) -> DrainRequested | ResumeRequested | CordonRequested:
        if what == "drains":
            return DrainRequested(ref, node_id, deadline, "maintenance")
        return (
            ResumeRequested(ref, node_id)
            if what == "resumes"
            else CordonRequested(ref, node_id, _cordon(what))
        )

    tell_answer(theatre, "operator", theatre.ask(event))


@direction(rf"operator has {_NODES} (?P<what>probe|register) again")
def _order(theatre: Harness, said: dict[str, str]) -> None:
    node_id = theatre.node_id(said["name"])
    command = Command.REFRESH if said["what"] == "probe" else Command.REREGISTER
    tell_answer(theatre, "operator", theatre.ask(lambda ref: ControlRequested(ref, node_id, command)))


@direction(r"scheduler claims (?P<job>\S+)(?: with models? (?P<models>[\w, -]+))?")
def _claim(theatre: Harness, said: dict[str, str]) -> None:
    job = Job(job_id=said["job"], required_models=_listed(said["models"]))
    tell_answer(theatre, "scheduler", theatre.ask(lambda ref: ClaimRequested(ref, job)))


@direction(r"scheduler (?P<what>releases|renews) (?P<job>\S+)")
def _claimed(theatre: Harness, said: dict[str, str]) -> None:
    event = ReleaseRequested if said["what"] == "releases" else RenewalRequested
    tell_answer(theatre, "scheduler", theatre.ask(lambda ref: event(ref, said["job"])))


@direction(r"explain (?P<job>\S+)(?: with models? (?P<models>[\w, -]+))?")
def _explain(theatre: Harness, said: dict[str, str]) -> None:
    job = Job(job_id=said["job"], required_models=_listed(said["models"]))
    tell(theatre, "scheduler", explained(theatre.registry.fleet.explain(job, theatre.now)))


def _cordon(what: str) -> str | None:
    return "maintenance" if what == "cordons" else None


def _listed(models: str) -> tuple[str, ...]:
    return tuple(model.strip() for model in models.split(",")) if models else ()


def _with_status(models: str) -> dict[str, ModelStatus]:
    """Models are ready unless another status stands behind them: `m, n (downloading)`."""
    told = [re.fullmatch(r"(\S+)(?: \((\w+)\))?", model) for model in _listed(models)]
    return {one[1]: ModelStatus(one[2] or "ready") for one in told if one is not None}


def _named(said: dict[str, str]) -> list[str]:
    """One name, or a row of numbered ones (`n01 to n12`)."""
    first, last = said["name"], said["last"]
    if not last:
        return [first]
    stem = first.rstrip("0123456789")
    digits = len(first) - len(stem)
    return [f"{stem}{number:0{digits}}" for number in range(int(first[-digits:]), int(last[-digits:]) + 1)]


# Stage directions about tokens: who makes them, who has them, who lost them.
#
# A token's text is its id: nobody on this stage guesses.


@direction(
    r"operator makes token (?P<token>\S+) for (?:(?P<uses>\d+)|any number of) nodes?"
    r"(?: within (?P<seconds>\d+) s)?(?: with label (?P<label>\S+)=(?P<value>\S+))?(?: named (?P<id>\S+))?"
)
def _make(theatre: Harness, said: dict[str, str]) -> None:
    result = theatre.ask(
        lambda ref: JoinTokenRequested(
            ref=ref,
            token_id=said["token"],
            digest=digest_of(said["token"]),
            ttl_seconds=float(said["seconds"]) if said["seconds"] else None,
            uses=int(said["uses"]) if said["uses"] else None,
            labels={said["label"]: said["value"]} if said["label"] else {},
            node_id=said["id"] or None,
            reclaims=False,
        )
    )
    tell_answer(theatre, "operator", result)


@direction(r"operator reclaims (?P<name>\S+) by token (?P<token>\S+)")
def _reclaim(theatre: Harness, said: dict[str, str]) -> None:
    """Of a node by name, or by an id that its agent has forgotten."""
    token, name = said["token"], said["name"]
    node_id = theatre.node_id(name) if name in theatre.players else name
    result = theatre.ask(
        lambda ref: JoinTokenRequested(
            ref=ref, token_id=token, digest=digest_of(token), ttl_seconds=3600.0, node_id=node_id
        )
    )
    tell_answer(theatre, "operator", result)


@direction(rf"operator (?P<what>rotates|forgets) {NODE}(?P<at_once> at once)?")
def _of_node(theatre: Harness, said: dict[str, str]) -> None:
    node_id, at_once = theatre.node_id(said["name"]), bool(said["at_once"])

    def event(ref: int) -> Event:
        rotates = said["what"] == "rotates"
        return RotationRequested(ref, node_id, at_once) if rotates else RemovalRequested(ref, node_id)

    tell_answer(theatre, "operator", theatre.ask(event))


@direction(r"operator revokes token (?P<token>\S+)")
def _revoke(theatre: Harness, said: dict[str, str]) -> None:
    tell_answer(theatre, "operator", theatre.ask(lambda ref: RevocationRequested(ref, said["token"])))


@direction(r"operator lists tokens")
def _list(theatre: Harness, _: dict[str, str]) -> None:
    tokens = theatre.registry.fleet.tokens()
    tell(theatre, "operator", [token_listed(token, theatre.now) for token in tokens])


@direction(rf"give {NODE} token (?P<token>\S+)")
def _give(theatre: Harness, said: dict[str, str]) -> None:
    theatre.agent(said["name"]).join_token = said["token"]


@direction(rf"wipe {NODE}")
def _wipe(theatre: Harness, said: dict[str, str]) -> None:
    """Its state directory is gone, say with its disk."""
    agent = theatre.agent(said["name"])
    agent.node_id = agent.token = None
