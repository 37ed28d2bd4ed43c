"""The demo's processes: a real registry and three real agents, in a folder that goes when they go.

Where Linux has `setpriv`, they end even when the demo is killed outright; the folder then stays.
"""

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
from typing import TypeVar

from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.demo.tokens import operator_token, write_join_token
from gpu_agent.cli.interruption import Interruption
from gpu_agent.cli.outcome import ExitCode, Failure

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
            yield _started(_Nursery(folder, heard, (*_lifeline(), *COMMAND), running))
        finally:
            heard.finish()


@dataclass(frozen=True, slots=True)
class _Nursery:
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


def _lifeline() -> tuple[str, ...]:
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


def _started(nursery: _Nursery) -> Fleet:
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
    nursery: _Nursery, member: Member, *, node_url: str, to_join: Path, simulated: bool
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
