"""`gpu-agent demo`: a registry and three agents as real processes, in a folder that goes when they go.

Where Linux has `setpriv`, they end even when the demo is killed outright; the folder then stays. Tokens go
the way of real ones: through the state directory, over the operators' API, in files.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpu_agent.cli.client.discovery import OperatorToken
from gpu_agent.cli.client.http import Api, quote_id
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, option
from gpu_agent.cli.demo_workload import Workload
from gpu_agent.cli.output.exclusions import need_and_have
from gpu_agent.cli.output.inventory import gpus_in_words
from gpu_agent.cli.output.nodes import node_table
from gpu_agent.cli.output.screen import LiveLines, can_redraw, print_changes, timed_lines
from gpu_agent.cli.output.streams import reader_left
from gpu_agent.cli.output.text import BLANK, terminal_columns
from gpu_agent.cli.registry.page import page_url
from gpu_agent.cli.service import program_path
from gpu_agent.cli.signals import Interruption
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE
from gpu_agent.wire.api import ClaimView, ExplanationView, NewToken, NodeDetail, NodeList, NodeSummary
from gpu_agent.wire.codes import NodeStatus

JOIN_TTL_SECONDS = 600.0
COMMAND: tuple[str, ...] = (sys.executable, "-m", "gpu_agent.cli")
START_SECONDS = 15.0
LEAVE_SECONDS = 6.0
POLL_SECONDS = 0.05
"""The interval at which the demo polls a process; each wait has a deadline."""
DYING_SECONDS = 1.0
"""How long after its last answer a dying process may still run."""
READY_SECONDS = 20.0
OFFLINE_SECONDS = 5.0
JOB = "demo-job-1"
REFRESH_SECONDS = 0.5
"""The interval at which the list is redrawn: its ages grow without any event."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Member:
    """One demo agent: the machine that it simulates, and the models that its owner declares."""

    name: str
    simulate: str
    models: tuple[tuple[str, str], ...]
    """Model id and kind."""


_FAULTS = "".join(f":lost#{number + 3}@{20 + 75 * number}s-{40 + 75 * number}s" for number in range(6))
"""GPUs of alpha that fail and recover, one after the other."""
MEMBERS = (
    Member("alpha", f"8xH100-80GB{_FAULTS}", (("demo/chat-70b", "llm"), ("demo/whisper", "asr"))),
    Member("beta", "4xL40S-48GB", (("demo/whisper", "asr"), ("demo/translate-zh-en", "nmt"))),
    Member("gamma", "2xL4-24GB,1xT4-16GB", (("demo/translate-zh-en", "nmt"),)),
)


@dataclass(frozen=True, slots=True)
class DemoProcess:
    """A running process of the demo, and its log file."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def log_end(self) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])


@dataclass(frozen=True, slots=True)
class DemoFleet:
    """The running demo."""

    api: Api
    token_file: str
    """Holds the operator's token, for commands in other terminals."""
    processes: tuple[DemoProcess, ...]
    simulated: bool

    def check_alive(self) -> None:
        """Raise `Failure` with the end of its log when a process has ended."""
        for one in self.processes:
            code = one.process.poll()
            if code is not None:
                raise Failure(f"the demo's {one.name} ended with {code}:\n{one.log_end()}")

    def nodes(self) -> NodeList:
        """Read the list of nodes."""
        return self.api.get("/v1/nodes", NodeList).model

    @contextmanager
    def naming_ended_process(self) -> Iterator[None]:
        """Report the process that ended, rather than the request that failed because of it."""
        try:
            yield
        except Failure as failure:
            deadline = time.monotonic() + DYING_SECONDS
            while failure.code is ExitCode.UNREACHABLE and time.monotonic() < deadline:
                self.check_alive()
                time.sleep(POLL_SECONDS)
            raise

    def wait_for(self, look: Callable[[], _T | None], *, seconds: float, what: str) -> _T:
        """Call `look` until it returns something; raises `Failure` when the time is over."""
        deadline = time.monotonic() + seconds
        while (seen := look()) is None:
            self.check_alive()
            if time.monotonic() > deadline:
                raise Failure(f"waited {seconds:.0f} s in vain: {what}")
            time.sleep(POLL_SECONDS)
        return seen


def declare() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Start a registry and three agents on loopback ports of their own, give them jobs, drain one "
        "now and then, and show what happens, until Ctrl-C. "
        "Uses the machine's GPUs if it has some, else simulated ones, and says which. "
        "No process and no file stays afterwards.",
        example="gpu-agent demo --once",
        exits={
            ExitCode.OK: "all went well; without --once: ended by Ctrl-C",
            ExitCode.FAILED: "a step went wrong; the last line says which",
            ExitCode.INTERRUPTED: "--once was interrupted",
        },
        asks=False,
        params=[
            option(
                "--once",
                help="walk once through ready, claim, explain, drain and offline, then exit: 0 when all "
                "went well",
                flag=True,
            )
        ],
    )


def main(arguments: Arguments) -> int:
    """Run the demo until it is done or interrupted."""
    started = time.monotonic()
    try:
        with (
            Interruption() as interruption,
            running_fleet(interruption) as fleet,
            fleet.naming_ended_process(),
        ):
            print(_gpus_in_use(fleet), flush=True)
            if arguments.once:
                Walk(fleet, lambda words: print(words, flush=True), started=started).all_steps()
            else:
                _show(fleet)
    except KeyboardInterrupt:
        print("Ended: all processes are gone.")
        return ExitCode.INTERRUPTED if arguments.once else ExitCode.OK
    return ExitCode.OK


def _show(fleet: DemoFleet) -> None:
    """Give the fleet work and print what is seen, above the list of nodes where a terminal can redraw it."""
    where = f"--server {fleet.api.url} --token-file {fleet.token_file}"
    print(
        f"The registry listens at {fleet.api.url}. Look at it in a browser; this link signs you in, once:\n"
        f"{page_url(fleet.api)}\n"
        f"In another terminal, try:\n"
        f"{own_command()} registry node list --watch {where}\n"
        f"A link was used? Get another one:\n"
        f"{own_command()} registry page {where}\n",
        flush=True,
    )
    workload = Workload(fleet.api, simulated=fleet.simulated)
    if not can_redraw():
        while not reader_left():
            fleet.check_alive()
            print_changes(workload.step(time.monotonic()))
            time.sleep(REFRESH_SECONDS)
        return
    with LiveLines() as live:
        while True:
            fleet.check_alive()
            columns = terminal_columns()
            seen = workload.step(time.monotonic())
            live.print_above(one for words in seen for one in timed_lines(words, columns))
            live.draw([BLANK, *node_table(workload.nodes, columns, now=time.time())])
            time.sleep(REFRESH_SECONDS)


def own_command() -> str:
    """Return what starts this program in another terminal: `make demo` has it in no folder of PATH."""
    own, found = program_path(), shutil.which("gpu-agent")
    return "gpu-agent" if found and Path(found).samefile(own) else shlex.quote(str(own))


def _gpus_in_use(fleet: DemoFleet) -> str:
    if fleet.simulated:
        return "This machine has no usable GPU: the three agents simulate theirs."
    return "The three agents share this machine's own GPUs."


class Walk:
    """The main use of a registry, step by step on a running fleet, each printed with its time."""

    def __init__(self, fleet: DemoFleet, print_line: Callable[[str], None], *, started: float) -> None:
        self._fleet = fleet
        self._print = print_line
        self._started = started

    def all_steps(self) -> None:
        """Walk; raises `Failure` at the first step that does not go as it must."""
        self._step(f"the registry listens, operators at {self._fleet.api.url}")
        for node in self._ready():
            self._step(f"{node.node_id} is ready: {gpus_in_words(node.gpus)}")
        claim = self._claim()
        self._explain(
            {"job_id": "demo-job-2", "required_models": ["demo/no-node-has-this"]},
            "a job that needs a model that no node has",
        )
        self._drain(claim.nodes[0].node_id)
        self._explain({"job_id": "demo-job-3"}, "any job, now")
        self._step("done")

    def _ready(self) -> list[NodeSummary]:
        expected = len(self._fleet.processes) - 1

        def look() -> list[NodeSummary] | None:
            ready = [node for node in self._fleet.nodes().nodes if node.status == NodeStatus.READY]
            return ready if len(ready) == expected else None

        return self._fleet.wait_for(look, seconds=READY_SECONDS, what=f"{expected} nodes ready")

    def _claim(self) -> ClaimView:
        job: dict[str, object] = {"job_id": JOB}
        if self._fleet.simulated:
            job |= {"required_models": ["demo/whisper"], "gpu_count": 2}
        claim, again = (self._fleet.api.post("/v1/claims", job, ClaimView).model for _ in range(2))
        if again.node_id != claim.node_id:
            raise Failure(f"the same job was placed twice: on {claim.node_id} and {again.node_id}")
        self._step(f"claimed a slot for {JOB} on {claim.node_id}: {len(claim.nodes[0].gpu_uuids)} GPU(s)")
        return claim

    def _explain(self, job: dict[str, object], words: str) -> None:
        answer = self._fleet.api.post("/v1/dispatch/explain", job, ExplanationView).model
        self._step(f"explained: {words}")
        for node_id in answer.eligible:
            self._print(f"           {node_id}: eligible")
        for one in answer.excluded:
            self._print(f"           {one.node_id}: {one.reason} ({need_and_have(one)})")

    def _drain(self, node_id: str) -> None:
        path = f"/v1/nodes/{quote_id(node_id)}"
        drained = self._fleet.api.post(f"{path}/drain", {}, NodeDetail).model
        if drained.status != NodeStatus.DRAINING:
            raise Failure(f"{node_id} should be draining while {JOB} runs, but is {drained.status}")
        self._step(f"{node_id} is draining: it keeps {JOB} and takes nothing new")
        self._fleet.api.delete(f"/v1/claims/{JOB}")
        self._step(f"{JOB} has ended: its claim is released")

        def look() -> NodeDetail | None:
            node = self._fleet.api.get(path, NodeDetail).model
            return node if node.status == NodeStatus.OFFLINE else None

        gone = self._fleet.wait_for(
            look, seconds=OFFLINE_SECONDS, what=f"{node_id} offline after its last job"
        )
        self._step(f"{node_id} is offline: {gone.reason_code}")

    def _step(self, words: str) -> None:
        self._print(f"[{time.monotonic() - self._started:6.2f} s] {words}")


@contextmanager
def running_fleet(interruption: Interruption | None = None) -> Iterator[DemoFleet]:
    """Start everything; end everything and remove the folder, however the block ends."""
    signals = interruption or Interruption()
    with ExitStack() as undo:
        try:
            with signals.held():
                folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="gpu-agent-demo-")))
            running: list[subprocess.Popen[bytes]] = []
            undo.callback(_end_all, running)
            yield _start_fleet(_Launcher(folder, signals, (*ending_with_this_process(), *COMMAND), running))
        finally:
            signals.finish()


@dataclass(frozen=True, slots=True)
class _Launcher:
    """Starts processes, and records each so that it is ended in any case."""

    folder: Path
    interruption: Interruption
    command: tuple[str, ...]
    running: "list[subprocess.Popen[bytes]]"

    def start(self, name: str, *arguments: str) -> DemoProcess:
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
        return DemoProcess(name, process, log)


def ending_with_this_process() -> tuple[str, ...]:
    """Return a command's prefix with which the kernel ends it with us; empty where there is none."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return ()
    # A demo that died before setpriv asked the kernel would send no signal: the shell looks once after it.
    still_ours = ("sh", "-c", 'test "$PPID" = "$0" && exec "$@"', str(os.getpid()))
    words = (setpriv, "--pdeathsig", "TERM", "--", *still_ours)
    tried = subprocess.run([*words, "true"], capture_output=True, check=False)  # noqa: S603 - as found in PATH
    return words if tried.returncode == 0 else ()


def _plain_environment() -> dict[str, str]:
    """Return the environment without this machine's settings for agents and registries."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GPU_")}


def _start_fleet(launcher: _Launcher) -> DemoFleet:
    nothing = launcher.folder / "nothing.toml"
    nothing.touch()
    simulated = not _machine_has_gpus(nothing)
    state_dir = launcher.folder / "registry"
    registry = launcher.start(
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
    token_file = write_join_token(api, launcher.folder / "join.token", uses=len(MEMBERS))
    agents = tuple(
        _start_agent(launcher, member, node_url=node_url, token_file=token_file, simulated=simulated)
        for member in MEMBERS
    )
    return DemoFleet(api=api, token_file=token.source, processes=(registry, *agents), simulated=simulated)


def _machine_has_gpus(configuration: Path) -> bool:
    words = [*COMMAND, "probe", "--json", "--config", str(configuration)]
    probed = subprocess.run(words, capture_output=True, timeout=30, check=False, env=_plain_environment())  # noqa: S603 - our own program
    return probed.returncode == 0


def _start_agent(
    launcher: _Launcher, member: Member, *, node_url: str, token_file: Path, simulated: bool
) -> DemoProcess:
    configuration = launcher.folder / f"{member.name}.toml"
    configuration.write_text(
        "\n".join(
            f'[[declared_models]]\nmodel_id = "{model_id}"\nversion = "1"\nkind = "{kind}"'
            for model_id, kind in member.models
        )
    )
    simulate = ("--simulate", f"{member.simulate}; host: {member.name}") if simulated else ()
    return launcher.start(
        f"agent {member.name}",
        "run",
        "--registry",
        node_url,
        "--join-token-file",
        str(token_file),
        "--state-dir",
        str(launcher.folder / member.name),
        "--config",
        str(configuration),
        *simulate,
    )


def _end_all(running: "list[subprocess.Popen[bytes]]") -> None:
    """End the agents together while the registry still answers them, then the registry."""
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


def _addresses(registry: DemoProcess) -> tuple[str, str]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and registry.process.poll() is None:
        for line in registry.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("event") == "registry_listening":
                    return f"ws://{entry['node_listen']}/ws/node", f"http://{entry['operator_listen']}"
        time.sleep(POLL_SECONDS)
    raise Failure(f"the demo's registry did not start:\n{registry.log_end()}")


def operator_token(state_dir: Path) -> OperatorToken:
    """Read the token that the registry wrote at its first start."""
    file = state_dir / OPERATOR_TOKEN_FILE
    try:
        return OperatorToken(file.read_text(encoding="ascii").strip(), str(file))
    except OSError as error:
        raise Failure(
            f"the demo's registry has written no token to {file}: {error.strerror or error}"
        ) from None


def write_join_token(api: Api, file: Path, *, uses: int) -> Path:
    """Create a join token, in a file that the agents alone read."""
    request = {"kind": "join", "uses": uses, "ttl_seconds": JOIN_TTL_SECONDS, "note": "the demo's agents"}
    token = api.post("/v1/tokens", request, NewToken).model.token
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        opened.write(token)
    return file


COMMANDS: Commands = {
    "demo": (declare, main),
}
