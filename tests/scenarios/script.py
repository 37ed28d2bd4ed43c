"""The stage directions: each command of a scenario, and what it does in the harness.

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
    GpuCordonRequested,
    JoinTokenRequested,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    RevocationRequested,
    RotationRequested,
)
from gpu_agent.registry.job import Job
from gpu_agent.registry.settings import Admission, Thresholds
from gpu_agent.wire.codes import NODE_SCOPE
from gpu_agent.wire.inventory import ModelStatus
from gpu_agent.wire.messages import NodeCheck
from tests.scenarios.actors import JOIN_TOKEN, Agent, OlderNode, ScenarioHost, Stranger
from tests.scenarios.harness import Harness, RegistrySetup, digest_of
from tests.scenarios.transcript import EPOCH, Line, answered, explained, token_listed

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


def perform(harness: Harness, command: str) -> None:
    for pattern, do in _DIRECTIONS:
        match = pattern.fullmatch(command)
        if match is not None:
            do(harness, {name: value or "" for name, value in match.groupdict().items()})
            return
    raise UnknownDirectionError(
        f"{command!r} is no direction: tests/scenarios/script.py and token_directions.py have those that are"
    )


def tell_answer(harness: Harness, asker: str, result: Result) -> None:
    write(harness, asker, answered(result, harness.now))


def write(harness: Harness, asker: str, lines: Iterable[str]) -> None:
    for line in lines:
        harness.transcript.add(Line(harness.now, "registry → {}", asker, line))


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
        harness, text = Harness(), list[str]()
        for line in self.lines:
            if line.startswith("> "):
                perform(harness, line.removeprefix("> "))
                text += [line, *harness.transcript.read()]
            elif line.startswith("#") or not line:
                text.append(line)
        return "\n".join(text) + "\n"


@direction(r"record (?P<what>nothing|everything)")
def _record(harness: Harness, said: dict[str, str]) -> None:
    harness.transcript.recording = said["what"] == "everything"


@direction(r"run (?P<seconds>[\d.]+) s")
def _run(harness: Harness, said: dict[str, str]) -> None:
    harness.run(float(said["seconds"]))


@direction(r"registry with auth off")
def _auth_off(harness: Harness, _: dict[str, str]) -> None:
    harness.set_up(RegistrySetup(auth_off=True))


@direction(r"registry that requires model (?P<model>\S+)")
def _requires(harness: Harness, said: dict[str, str]) -> None:
    harness.set_up(RegistrySetup(thresholds=Thresholds(required_models=(said["model"],))))


@direction(r"registry that requires checks? (?P<checks>[\w, ]+)")
def _requires_checks(harness: Harness, said: dict[str, str]) -> None:
    admission = Admission(required_checks=_listed(said["checks"]))
    harness.set_up(RegistrySetup(thresholds=Thresholds(admission=admission)))


@direction(
    rf"check (?P<check>\w+) of (?:gpu (?P<place>\d+) of )?{NODE} (?P<what>passes|fails)(?:: (?P<why>.+))?"
)
def _check(harness: Harness, said: dict[str, str]) -> None:
    """What the machine's check finds once it is run."""
    host = harness.agent(said["name"]).host
    scope = f"GPU-{said['name']}-{said['place']}" if said["place"] else NODE_SCOPE
    others = (one for one in host.checks or () if (one.name, one.scope) != (said["check"], scope))
    found = NodeCheck(
        name=said["check"],
        scope=scope,
        ok=said["what"] == "passes",
        detail=said["why"],
        at=EPOCH + harness.now,
    )
    host.checks = (*others, found)


@direction(rf"{NODE} runs its checks")
def _run_checks(harness: Harness, said: dict[str, str]) -> None:
    agent = harness.agent(said["name"])
    harness.act(agent, agent.run_checks(harness.now))


@direction(r"registry that reads schema (?P<schema>\S+) only")
def _older_registry(harness: Harness, said: dict[str, str]) -> None:
    harness.set_up(RegistrySetup(only_schema=said["schema"]))


@direction(r"the leader (?P<what>ends|answers nothing more)")
def _end_leader(harness: Harness, said: dict[str, str]) -> None:
    harness.registry.end_leader(answers=said["what"] == "ends")


@direction(r"another leader takes over")
def _take_over(harness: Harness, _: dict[str, str]) -> None:
    harness.take_over()


@direction(r"registry (?P<what>stops|starts)")
def _registry(harness: Harness, said: dict[str, str]) -> None:
    (harness.stop_registry if said["what"] == "stops" else harness.start_registry)()


@direction(r"store (?P<what>fails|works)")
def _store(harness: Harness, said: dict[str, str]) -> None:
    harness.registry.let_store_fail(fails=said["what"] == "fails")


@direction(
    rf"nodes? {_NODES} with (?P<gpus>no|\d+) GPUs?{_MODELS}"
    r"(?: that remembers? (?P<id>\S+))?(?: by token (?P<token>\S+))?(?P<checks> that runs checks)?"
)
def _node(harness: Harness, said: dict[str, str]) -> None:
    """Several nodes remember their own names as ids."""
    for name in _named(said):
        gpus = 0 if said["gpus"] == "no" else int(said["gpus"])
        host = ScenarioHost(name, gpus=gpus, models=_with_status(said["models"]))
        node_id = said["id"] or (name if said["last"] else None)
        agent = Agent(name, host, node_id=node_id)
        agent.join_token = said["token"] or agent.join_token
        host.checks = () if said["checks"] else None
        harness.enter(agent)
        harness.act(agent, agent.start(harness.now))


@direction(r"node (?P<name>[a-z]+) from a copy of (?P<original>[a-z]+)")
def _copy(harness: Harness, said: dict[str, str]) -> None:
    """Somebody cloned the machine, with what its agent had stored."""
    original = harness.agent(said["original"])
    agent = Agent(said["name"], ScenarioHost(said["name"], gpus=1, models={}), node_id=original.node_id)
    agent.token = original.token
    harness.enter(agent)
    harness.act(agent, agent.start(harness.now))


@direction(rf"older node {_NODES}(?: with models? (?P<models>[\w, -]+))?(?: by token (?P<token>\S+))?")
def _older_node(harness: Harness, said: dict[str, str]) -> None:
    for name in _named(said):
        node = OlderNode(name, models=_listed(said["models"]), token=said["token"] or None)
        harness.enter(node)
        harness.act(node, node.wake(harness.now))


@direction(r"stranger(?: with token (?P<token>\S+))? says (?P<frame>.+)")
def _stranger(harness: Harness, said: dict[str, str]) -> None:
    stranger = Stranger(said["frame"], token=said["token"] or JOIN_TOKEN)
    harness.enter(stranger)
    harness.act(stranger, stranger.dial())


@direction(rf"(?P<what>silence|speak|cut|unplug|plug in) {_NODES}")
def _line_of(harness: Harness, said: dict[str, str]) -> None:
    do = {
        "silence": harness.freeze,
        "speak": harness.thaw,
        "cut": harness.cut,
        "unplug": harness.unplug,
        "plug in": harness.plug_in,
    }[said["what"]]
    for name in _named(said):
        do(name)


@direction(rf"stop {_NODES}(?P<drain> draining)?")
def _stop(harness: Harness, said: dict[str, str]) -> None:
    agent = harness.agent(said["name"])
    harness.act(agent, agent.stop(drain=bool(said["drain"]), now=harness.now))


@direction(rf"start {_NODES}")
def _start(harness: Harness, said: dict[str, str]) -> None:
    agent = harness.agent(said["name"])
    harness.act(agent, agent.start(harness.now))


@direction(rf"(?P<what>lose|return) gpu (?P<place>\d+) of {_NODES}")
def _gpu(harness: Harness, said: dict[str, str]) -> None:
    lost = harness.agent(said["name"]).host.lost
    (lost.add if said["what"] == "lose" else lost.discard)(int(said["place"]))


@direction(rf"gpu (?P<place>\d+) of {_NODES} (?P<what>leaves|joins) the fabric")
def _fabric(harness: Harness, said: dict[str, str]) -> None:
    outside = harness.agent(said["name"]).host.outside_fabric
    (outside.add if said["what"] == "leaves" else outside.discard)(int(said["place"]))


@direction(rf"put a gpu into {_NODES}")
def _put_in(harness: Harness, said: dict[str, str]) -> None:
    harness.agent(said["name"]).host.add_gpu()


@direction(rf"(?P<what>hang|free) nvml of {_NODES}")
def _nvml(harness: Harness, said: dict[str, str]) -> None:
    host = harness.agent(said["name"]).host
    host.hung_since = harness.now if said["what"] == "hang" else None


@direction(rf"model (?P<model>\S+) of {_NODES} becomes (?P<status>\w+)")
def _model(harness: Harness, said: dict[str, str]) -> None:
    harness.agent(said["name"]).host.models[said["model"]] = ModelStatus(said["status"])


@direction(rf"job (?P<job>\S+) (?P<what>runs on|ends on) {_NODES}")
def _job(harness: Harness, said: dict[str, str]) -> None:
    """A worker announces its jobs; the agent reports them with its next heartbeat."""
    agent = harness.agent(said["name"])
    others = tuple(job for job in agent.running_jobs or () if job != said["job"])
    agent.running_jobs = (*others, said["job"]) if said["what"] == "runs on" else others


@direction(rf"operator (?P<what>drains|resumes|cordons|uncordons) {_NODES}(?: within (?P<seconds>\d+) s)?")
def _operator(harness: Harness, said: dict[str, str]) -> None:
    node_id, what = harness.node_id(said["name"]), said["what"]
    deadline = float(said["seconds"]) if said["seconds"] else None

    def event(ref: int) -> DrainRequested | ResumeRequested | CordonRequested:
        if what == "drains":
            return DrainRequested(ref, node_id, deadline, "maintenance")
        return (
            ResumeRequested(ref, node_id)
            if what == "resumes"
            else CordonRequested(ref, node_id, _cordon(what))
        )

    tell_answer(harness, "operator", harness.ask(event))


@direction(rf"operator has {_NODES} (?P<what>probe|register|check) again")
def _order(harness: Harness, said: dict[str, str]) -> None:
    node_id = harness.node_id(said["name"])
    command = {"probe": Command.REFRESH, "register": Command.REREGISTER, "check": Command.CHECK}[said["what"]]
    tell_answer(harness, "operator", harness.ask(lambda ref: ControlRequested(ref, node_id, command)))


@direction(
    r"scheduler claims (?P<job>\S+)(?: with models? (?P<models>[\w, -]+?))?"
    r"(?: with (?P<gpus>\d+) GPUs?(?: on each of (?P<nodes>\d+) nodes)?)?"
    r"(?: for (?P<ttl>\d+) s)?(?: and waits (?P<wait>\d+) s)?"
)
def _claim(harness: Harness, said: dict[str, str]) -> None:
    job = Job(
        job_id=said["job"],
        required_models=_listed(said["models"]),
        gpu_count=int(said["gpus"]) if said["gpus"] else None,
        nodes=int(said["nodes"] or 1),
        ttl_seconds=float(said["ttl"]) if said["ttl"] else None,
        wait_seconds=float(said["wait"] or 0),
    )

    def event(ref: int) -> ClaimRequested:
        return ClaimRequested(ref, job, f"claim-{ref}")

    if job.wait_seconds:
        harness.ask_and_wait(event)
    else:
        tell_answer(harness, "scheduler", harness.ask(event))


@direction(r"scheduler (?P<what>releases|renews) (?P<job>\S+)(?: by (?P<claim>\S+))?")
def _claimed(harness: Harness, said: dict[str, str]) -> None:
    event = ReleaseRequested if said["what"] == "releases" else RenewalRequested
    tell_answer(harness, "scheduler", harness.ask(lambda ref: event(ref, said["job"], said["claim"] or None)))


@direction(rf"operator (?P<what>cordons|uncordons) gpu (?P<place>\d+) of {NODE}")
def _cordon_gpu(harness: Harness, said: dict[str, str]) -> None:
    node_id, uuid = harness.node_id(said["name"]), f"GPU-{said['name']}-{said['place']}"
    reason = "ECC errors" if said["what"] == "cordons" else None
    asking = harness.ask(lambda ref: GpuCordonRequested(ref, node_id, uuid, reason, by="ada"))
    tell_answer(harness, "operator", asking)


@direction(r"explain (?P<job>\S+)(?: with models? (?P<models>[\w, -]+))?")
def _explain(harness: Harness, said: dict[str, str]) -> None:
    job = Job(job_id=said["job"], required_models=_listed(said["models"]))
    write(harness, "scheduler", explained(harness.registry.fleet.explain(job, harness.now)))


def _cordon(what: str) -> str | None:
    return "maintenance" if what == "cordons" else None


def _listed(models: str) -> tuple[str, ...]:
    return tuple(model.strip() for model in models.split(",")) if models else ()


def _with_status(models: str) -> dict[str, ModelStatus]:
    """Models are ready unless another status stands behind them: `m, n (downloading)`."""
    found = [re.fullmatch(r"(\S+)(?: \((\w+)\))?", model) for model in _listed(models)]
    return {one[1]: ModelStatus(one[2] or "ready") for one in found if one is not None}


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
# A token's text is its id: no actor here guesses.


@direction(
    r"operator makes token (?P<token>\S+) for (?:(?P<uses>\d+)|any number of) nodes?"
    r"(?: within (?P<seconds>\d+) s)?(?: with label (?P<label>\S+)=(?P<value>\S+))?(?: named (?P<id>\S+))?"
)
def _make(harness: Harness, said: dict[str, str]) -> None:
    result = harness.ask(
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
    tell_answer(harness, "operator", result)


@direction(r"operator reclaims (?P<name>\S+) by token (?P<token>\S+)")
def _reclaim(harness: Harness, said: dict[str, str]) -> None:
    """Of a node by name, or by an id that its agent has forgotten."""
    token, name = said["token"], said["name"]
    node_id = harness.node_id(name) if name in harness.actors else name
    result = harness.ask(
        lambda ref: JoinTokenRequested(
            ref=ref, token_id=token, digest=digest_of(token), ttl_seconds=3600.0, node_id=node_id
        )
    )
    tell_answer(harness, "operator", result)


@direction(rf"operator (?P<what>rotates|forgets) {NODE}(?P<revoke_now> at once)?")
def _of_node(harness: Harness, said: dict[str, str]) -> None:
    node_id, revoke_now = harness.node_id(said["name"]), bool(said["revoke_now"])

    def event(ref: int) -> Event:
        rotates = said["what"] == "rotates"
        return RotationRequested(ref, node_id, revoke_now) if rotates else RemovalRequested(ref, node_id)

    tell_answer(harness, "operator", harness.ask(event))


@direction(r"operator revokes token (?P<token>\S+)")
def _revoke(harness: Harness, said: dict[str, str]) -> None:
    tell_answer(harness, "operator", harness.ask(lambda ref: RevocationRequested(ref, said["token"])))


@direction(r"operator lists tokens")
def _list(harness: Harness, _: dict[str, str]) -> None:
    tokens = harness.registry.fleet.tokens()
    write(harness, "operator", [token_listed(token, harness.now) for token in tokens])


@direction(rf"give {NODE} token (?P<token>\S+)")
def _give(harness: Harness, said: dict[str, str]) -> None:
    harness.agent(said["name"]).join_token = said["token"]


@direction(rf"wipe {NODE}")
def _wipe(harness: Harness, said: dict[str, str]) -> None:
    """Its state directory is gone, say with its disk."""
    agent = harness.agent(said["name"])
    agent.node_id = agent.token = None
