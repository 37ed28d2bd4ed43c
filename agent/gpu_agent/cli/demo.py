"""`gpu-agent demo`: a registry and three agents as real processes, in a folder that goes when they go.

Where Linux has `setpriv`, they end even when the demo is killed outright; the folder then stays.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from gpu_agent.cli.client.discovery import OperatorToken
from gpu_agent.cli.client.http import CLAIM, EXPLANATION, NODE_DETAIL, NODES, Api, Problem, quote_id
from gpu_agent.cli.command import Commands, ExitCode, Failure, describe
from gpu_agent.cli.output.nodes import gpus_in_words, node_table
from gpu_agent.cli.output.screen import LiveLines
from gpu_agent.cli.signals import Interruption
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE

JOIN_TTL_SECONDS = 600.0


def operator_token(state_dir: Path) -> OperatorToken:
    """Read what the registry left at its first start."""
    file = state_dir / OPERATOR_TOKEN_FILE
    try:
        return OperatorToken(file.read_text(encoding="ascii").strip(), str(file))
    except OSError as error:
        raise Failure(f"the demo's registry has left no token in {file}: {error.strerror or error}") from None


def write_join_token(api: Api, file: Path, *, uses: int) -> Path:
    """Have a join token made, and put it where the agents alone read it."""
    asked = {"kind": "join", "uses": uses, "ttl_seconds": JOIN_TTL_SECONDS, "note": "the demo's agents"}
    made = api.post("/v1/tokens", asked, {"token": str})
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        opened.write(made["token"])
    return file


_T = TypeVar("_T")

COMMAND: tuple[str, ...] = (sys.executable, "-m", "gpu_agent.cli")
START_SECONDS = 15.0
LEAVE_SECONDS = 6.0
GLANCE_SECONDS = 0.05
"""Between two looks for what a process does in its own time; each row of looks has an end."""
DYING_SECONDS = 1.0
"""From the moment when a dying process answers no more until its end is known, at the most."""


@dataclass(frozen=True, slots=True)
class Member:
    """One demo agent: what it pretends to be, and the models that its owner declares."""

    name: str
    simulate: str
    models: tuple[tuple[str, str], ...]
    """Model id and kind."""


MEMBERS = (
    Member("alpha", "8xH100-80GB", (("demo/chat-70b", "llm"), ("demo/whisper", "asr"))),
    Member("beta", "4xL40S-48GB", (("demo/whisper", "asr"), ("demo/translate-zh-en", "nmt"))),
    Member("gamma", "2xL4-24GB,1xT4-16GB", (("demo/translate-zh-en", "nmt"),)),
)


@dataclass(frozen=True, slots=True)
class Process:
    """A running process of the demo, and where its log lines go."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def last_words(self) -> str:
        """The end of its log, for a person who asks what went wrong."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])


@dataclass(frozen=True, slots=True)
class Fleet:
    """The running demo."""

    api: Api
    token_file: str
    """Holds the operator's token, for whoever asks the demo's registry from elsewhere."""
    processes: tuple[Process, ...]
    simulated: bool

    def check_alive(self) -> None:
        """Raise `Failure` with its last words when a process has ended."""
        for one in self.processes:
            code = one.process.poll()
            if code is not None:
                raise Failure(f"the demo's {one.name} ended with {code}:\n{one.last_words()}")

    @contextmanager
    def blaming_the_dead(self) -> Iterator[None]:
        """Tell of the process that ended, rather than of the request that failed because it did."""
        try:
            yield
        except Failure as failure:
            deadline = time.monotonic() + DYING_SECONDS
            while failure.code is ExitCode.UNREACHABLE and time.monotonic() < deadline:
                self.check_alive()
                time.sleep(GLANCE_SECONDS)
            raise

    def await_(self, look: Callable[[], _T | None], *, seconds: float, what: str) -> _T:
        """Look until there is something to see; raises `Failure` when the time is over."""
        deadline = time.monotonic() + seconds
        while (seen := look()) is None:
            self.check_alive()
            if time.monotonic() > deadline:
                raise Failure(f"waited {seconds:.0f} s in vain: {what}")
            time.sleep(GLANCE_SECONDS)
        return seen


@contextmanager
def running_fleet(interruption: Interruption | None = None) -> Iterator[Fleet]:
    """Start everything; end everything and remove the folder, however the block ends."""
    heard = interruption or Interruption()
    with ExitStack() as undo:
        try:
            with heard.held():
                folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="gpu-agent-demo-")))
            running: list[subprocess.Popen[bytes]] = []
            undo.callback(_end_all, running)
            yield _start_fleet(_Launcher(folder, heard, (*_die_with_us(), *COMMAND), running))
        finally:
            heard.finish()


@dataclass(frozen=True, slots=True)
class _Launcher:
    """Where processes are started so that each is sure to be ended."""

    folder: Path
    interruption: Interruption
    command: tuple[str, ...]
    running: "list[subprocess.Popen[bytes]]"

    def start(self, name: str, *arguments: str) -> Process:
        log = self.folder / f"{name}.log"
        with log.open("wb") as written, self.interruption.held():
            process = subprocess.Popen(  # noqa: S603 - our own program
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                # Ctrl-C is for the demo alone: it ends its processes itself, in order.
                start_new_session=True,
                env=_plain_environment(),
            )
            self.running.append(process)
        return Process(name, process, log)


def _die_with_us() -> tuple[str, ...]:
    """What to put before a command so that the kernel ends it with us; empty where nothing can."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return ()
    words = (setpriv, "--pdeathsig", "TERM", "--")
    tried = subprocess.run([*words, "true"], capture_output=True, check=False)  # noqa: S603 - as found in PATH
    return words if tried.returncode == 0 else ()


def _plain_environment() -> dict[str, str]:
    """This machine's settings for agents and registries are not the demo's."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GPU_")}


def _start_fleet(nursery: _Launcher) -> Fleet:
    nothing = nursery.folder / "nothing.toml"
    nothing.touch()
    simulated = not _machine_has_gpus(nothing)
    state_dir = nursery.folder / "registry"
    registry = nursery.start(
        "registry",
        "registry",
        "serve",
        "--state-dir",
        str(state_dir),
        "--store",
        "memory",
        "--node-listen",
        "127.0.0.1:0",
        "--operator-listen",
        "127.0.0.1:0",
        "--allow-simulated",
        "--config",
        str(nothing),
        # The agents stand for three machines, but share this one with whatever else keeps it busy.
        "--max-cpu-percent",
        "100",
        "--max-memory-percent",
        "100",
    )
    node_url, address = _addresses(registry)
    token = operator_token(state_dir)
    api = Api(address, token=token)
    to_join = write_join_token(api, nursery.folder / "join.token", uses=len(MEMBERS))
    agents = tuple(
        _start_agent(nursery, member, node_url=node_url, to_join=to_join, simulated=simulated)
        for member in MEMBERS
    )
    return Fleet(api=api, token_file=token.source, processes=(registry, *agents), simulated=simulated)


def _machine_has_gpus(configuration: Path) -> bool:
    words = [*COMMAND, "probe", "--json", "--config", str(configuration)]
    probed = subprocess.run(words, capture_output=True, timeout=30, check=False, env=_plain_environment())  # noqa: S603 - our own program
    return probed.returncode == 0


def _start_agent(
    nursery: _Launcher, member: Member, *, node_url: str, to_join: Path, simulated: bool
) -> Process:
    configuration = nursery.folder / f"{member.name}.toml"
    configuration.write_text(
        "\n".join(
            f'[[declared_models]]\nmodel_id = "{model_id}"\nversion = "1"\nkind = "{kind}"'
            for model_id, kind in member.models
        )
    )
    pretend = ("--simulate", member.simulate) if simulated else ()
    return nursery.start(
        f"agent {member.name}",
        "run",
        "--registry",
        node_url,
        "--join-token-file",
        str(to_join),
        "--state-dir",
        str(nursery.folder / member.name),
        "--config",
        str(configuration),
        *pretend,
    )


def _end_all(running: "list[subprocess.Popen[bytes]]") -> None:
    """End the agents together, so that they can say goodbye; then the registry, which is the first."""
    for group in (running[1:], running[:1]):
        for process in group:
            process.terminate()
        deadline = time.monotonic() + LEAVE_SECONDS
        for process in group:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _addresses(registry: Process) -> tuple[str, str]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and registry.process.poll() is None:
        for line in registry.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if said.get("event") == "registry_listening":
                    return f"ws://{said['node_listen']}/ws/node", f"http://{said['operator_listen']}"
        time.sleep(GLANCE_SECONDS)
    raise Failure(f"the demo's registry did not start:\n{registry.last_words()}")


READY_SECONDS = 20.0
OFFLINE_SECONDS = 5.0
JOB = "demo-job-1"


class Walk:
    """The main job, step by step, on a running fleet."""

    def __init__(self, fleet: Fleet, say: Callable[[str], None], *, started: float) -> None:
        self._fleet = fleet
        self._say = say
        self._started = started

    def all_steps(self) -> None:
        """Walk; raises `Failure` at the first step that does not go as it must."""
        self._step(f"the registry listens, operators at {self._fleet.api.url}")
        for node in self._ready():
            self._step(f"{node['node_id']} is ready: {gpus_in_words(node['gpus'])}")
        claim = self._claim()
        self._explain(
            {"job_id": "demo-job-2", "required_models": ["demo/nobody-has-this"]},
            "a job that needs a model nobody has",
        )
        self._drain(claim["node_id"])
        self._explain({"job_id": "demo-job-3"}, "any job, now")
        self._step("done")

    def _ready(self) -> list[dict[str, Any]]:
        expected = len(self._fleet.processes) - 1

        def look() -> list[dict[str, Any]] | None:
            nodes: list[dict[str, Any]] = self._fleet.api.get("/v1/nodes", NODES)["nodes"]
            ready = [node for node in nodes if node["status"] == "ready"]
            return ready if len(ready) == expected else None

        return self._fleet.await_(look, seconds=READY_SECONDS, what=f"{expected} nodes ready")

    def _claim(self) -> dict[str, Any]:
        job: dict[str, Any] = {"job_id": JOB}
        if self._fleet.simulated:
            job |= {"required_models": ["demo/whisper"], "gpu_count": 2}
        claim = self._fleet.api.post("/v1/claims", job, CLAIM)
        again = self._fleet.api.post("/v1/claims", job, CLAIM)
        if again["node_id"] != claim["node_id"]:
            raise Failure(f"the same job was placed twice: on {claim['node_id']} and {again['node_id']}")
        self._step(f"claimed a place for {JOB} on {claim['node_id']}: {len(claim['gpu_uuids'])} GPU(s)")
        return claim

    def _explain(self, job: dict[str, Any], words: str) -> None:
        answer = self._fleet.api.post("/v1/dispatch/explain", job, EXPLANATION)
        self._step(f"explained: {words}")
        for node_id in answer["able"]:
            self._say(f"           {node_id}: able")
        for one in answer["excluded"]:
            self._say(
                f"           {one['node_id']}: {one['reason']} (needs {one['need']}; has {one['have']})"
            )

    def _drain(self, node_id: str) -> None:
        path = f"/v1/nodes/{quote_id(node_id)}"
        drained = self._fleet.api.post(f"{path}/drain", {}, NODE_DETAIL)
        if drained["status"] != "draining":
            raise Failure(f"{node_id} should be draining while {JOB} runs, but is {drained['status']}")
        self._step(f"{node_id} is draining: it keeps {JOB} and takes nothing new")
        self._fleet.api.delete(f"/v1/claims/{JOB}")

        def look() -> dict[str, Any] | None:
            node = self._fleet.api.attempt("GET", path, None)
            return None if isinstance(node, Problem) or node["status"] != "offline" else node

        gone = self._fleet.await_(look, seconds=OFFLINE_SECONDS, what=f"{node_id} offline after its last job")
        self._step(f"{node_id} is offline: {gone['reason_code']}")

    def _step(self, words: str) -> None:
        self._say(f"[{time.monotonic() - self._started:6.2f} s] {words}")


REFRESH_SECONDS = 0.5
"""How often the list is drawn anew: ages in it grow though nothing happens."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Start a registry and three agents on loopback ports of their own and show them, until Ctrl-C. "
        "Uses the machine's GPUs if it has some, else simulated ones, and says which. "
        "Nothing is left behind: no process, no file.",
        example="gpu-agent demo --once",
        exits={
            ExitCode.OK: "all went well; without --once: ended by Ctrl-C",
            ExitCode.FAILED: "a step went wrong; the last line says which",
            ExitCode.INTERRUPTED: "--once was interrupted",
        },
        asks=False,
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="walk once through ready, claim, explain, drain and offline, then exit: 0 when all went well",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the demo until it is done or interrupted."""
    started = time.monotonic()
    console = Console()
    try:
        with Interruption() as interruption, running_fleet(interruption) as fleet, fleet.blaming_the_dead():
            console.print(_whose_gpus(fleet))
            if arguments.once:
                Walk(fleet, lambda line: print(line, flush=True), started=started).all_steps()
            else:
                _watch(fleet, console)
    except KeyboardInterrupt:
        console.print("Ended: all processes are gone.")
        return ExitCode.INTERRUPTED if arguments.once else ExitCode.OK
    return ExitCode.OK


def _watch(fleet: Fleet, console: Console) -> None:
    console.print(
        f"Operators' API: {fleet.api.url}. Try, in another terminal:\n"
        f"gpu-agent registry nodes --api {fleet.api.url} --token-file {fleet.token_file}",
        soft_wrap=True,
    )
    with LiveLines(console) as live:
        while True:
            fleet.check_alive()
            live.draw(node_table(fleet.api.get("/v1/nodes", NODES), console.width, now=time.time()))
            time.sleep(REFRESH_SECONDS)


def _whose_gpus(fleet: Fleet) -> str:
    if fleet.simulated:
        return "This machine has no usable GPU: the three agents simulate theirs."
    return "The three agents share this machine's own GPUs."


COMMANDS: Commands = {
    "demo": (configure, main),
}
