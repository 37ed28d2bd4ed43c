"""The child that a command forks before it loads the rest: when, and what it inherits and leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.probe.nvml.forked_child import is_secret
from tests.nvml_fake.control import HELD, FakeNvml
from tests.programs import COMMAND
from tests.waiting import patience

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")

BARE = {name: value for name, value in os.environ.items() if not is_secret(name)}
"""The environment of this test, without what keeps a command from forking."""
FORK = """\
import json, os, sys, time
from gpu_agent.probe.nvml.forked_child import fork_for
{before}

def run_child():
    from gpu_agent.probe.nvml import child

    child.main()

child = fork_for({words}, run_child)
if child is None:
    print(json.dumps(None))
else:
    {meanwhile}
    output, errors = child.collect({seconds})
    status = child.returncode
    child.abandon({grace})
    seen = {{"output": output.decode(), "errors": errors.decode(), "status": status, "pid": child.pid}}
    print(json.dumps(seen))
"""


@dataclass(frozen=True)
class Program:
    """What happens around the fork."""

    before: str = ""
    meanwhile: str = "pass"
    seconds: float = 20
    grace: float = 0


def forked(
    folder: Path,
    environment: Mapping[str, str],
    program: Program = Program(),
    *,
    words: tuple[str, ...] = ("probe", "--json"),
    cwd: Path | None = None,
    pass_fds: tuple[int, ...] = (),
) -> dict[str, Any] | None:
    """Fork in a program of its own, and what came of it."""
    path = folder / "program.py"
    path.write_text(FORK.format(words=list(words), **asdict(program)))
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**BARE, **{name: value for name, value in environment.items() if not is_secret(name)}},
        stdout=subprocess.PIPE,
        timeout=patience(60),
        check=True,
        cwd=cwd,
        pass_fds=pass_fds,
    )
    seen: dict[str, Any] | None = json.loads(done.stdout)
    return seen


def is_ended_or_asked_to(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeNvml]:
    machine = FakeNvml(tmp_path, gpus=2)
    yield machine
    machine.unset("hang")


def test_the_forked_child_reads_every_gpu_and_ends(tmp_path: Path, fake: FakeNvml) -> None:
    seen = forked(tmp_path, fake.environment())
    assert seen is not None
    answer = json.loads(seen["output"])
    assert (answer["id"], answer["outcome"], len(answer["gpus"])) == (1, "ok", 2)
    assert (seen["errors"], seen["status"]) == ("", 0)
    assert set(fake.callers()) == {seen["pid"]}


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("run",),
        ("probe", "--help"),
        ("probe", "-h"),
        ("probe", "--watch"),
        ("probe", "--simulate", "1xL4"),
        ("probe", "--json", "--simulate=1xL4"),
    ],
)
def test_commands_that_read_no_gpu_once_fork_nothing(
    words: tuple[str, ...], tmp_path: Path, fake: FakeNvml
) -> None:
    assert forked(tmp_path, fake.environment(), words=words) is None
    assert fake.callers() == []


@pytest.mark.parametrize("name", ["HF_TOKEN", "https_proxy", "GPU_AGENT_NAME", "AWS_SECRET_ACCESS_KEY"])
def test_with_a_credential_in_the_environment_nothing_is_forked(
    name: str, tmp_path: Path, fake: FakeNvml
) -> None:
    before = f"os.environ[{name!r}] = 'x'"
    assert forked(tmp_path, fake.environment(), Program(before=before)) is None


def test_while_threads_run_nothing_is_forked(tmp_path: Path, fake: FakeNvml) -> None:
    before = "import threading; threading.Thread(target=time.sleep, args=(1,), daemon=True).start()"
    assert forked(tmp_path, fake.environment(), Program(before=before)) is None


def test_where_modules_come_from_the_working_directory_nothing_is_forked(
    tmp_path: Path, fake: FakeNvml
) -> None:
    assert forked(tmp_path, fake.environment(), cwd=tmp_path) is None
    assert forked(tmp_path, fake.environment(), Program(before="sys.path.insert(0, '')")) is None


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_with_a_closed_standard_stream_nothing_is_forked(
    descriptor: int, tmp_path: Path, fake: FakeNvml
) -> None:
    before = f"""
was = os.dup({descriptor})
os.close({descriptor})
import gpu_agent.probe.nvml.forked_child as module
def fork_for(*arguments):
    child = module.fork_for(*arguments)
    os.dup2(was, {descriptor})
    return child
"""
    assert forked(tmp_path, fake.environment(), Program(before=before)) is None


def test_beside_a_stuck_child_nothing_is_forked(tmp_path: Path, fake: FakeNvml) -> None:
    before = "import gpu_agent.probe.nvml.forked_child as module; module.find_stuck_child = lambda: 1"
    assert forked(tmp_path, fake.environment(), Program(before=before)) is None


def test_the_forked_child_has_a_session_of_its_own_and_no_descriptor_of_the_commands(
    tmp_path: Path, fake: FakeNvml
) -> None:
    fake.set("hang", "nvmlInitWithFlags", "*")
    meanwhile = f"""
    while open(f"/proc/{{child.pid}}/comm").read().strip() != {HELD!r}: time.sleep(0.01)
    leads = os.getsid(child.pid) == child.pid
    ends = [os.readlink(f"/proc/{{child.pid}}/fd/{{fd}}") for fd in os.listdir(f"/proc/{{child.pid}}/fd")]
    print(json.dumps([leads, ends]), file=open({str(tmp_path / "seen")!r}, "w"))
    """
    inherited = tmp_path / "inherited"
    inherited.touch()
    with inherited.open() as file:
        os.set_inheritable(file.fileno(), True)  # noqa: FBT003 - its only parameter
        seen = forked(
            tmp_path,
            fake.environment(),
            Program(meanwhile=meanwhile, seconds=0),
            pass_fds=(file.fileno(),),
        )
    assert seen is not None
    leads, ends = json.loads((tmp_path / "seen").read_text())
    assert leads
    assert str(inherited) not in ends
    assert str(inherited.parent / "seen") not in ends


def test_a_hung_forked_child_is_asked_to_end_and_left_alone(tmp_path: Path, fake: FakeNvml) -> None:
    fake.set("hang", "nvmlInitWithFlags", "*")
    started = time.monotonic()
    seen = forked(tmp_path, fake.environment(), Program(seconds=0.5, grace=0.2))
    assert seen is not None
    assert time.monotonic() - started < patience(5)
    assert (seen["output"], seen["status"]) == ("", None)
    assert Path(f"/proc/{seen['pid']}").exists()
    assert is_ended_or_asked_to(seen["pid"])


@pytest.mark.parametrize(
    ("statement", "status"),
    [(("crash", "nvmlDeviceGetUUID", "*"), -signal.SIGSEGV), (("exit", "nvmlInitWithFlags", "*", 3), 3)],
)
def test_how_a_forked_child_ended_is_known(
    statement: tuple[object, ...], status: int, tmp_path: Path, fake: FakeNvml
) -> None:
    fake.set(*statement)
    fake.set("complain", "nvmlInitWithFlags", "*", "vendor library: giving up")
    seen = forked(tmp_path, fake.environment())
    assert seen is not None
    assert (seen["output"], seen["status"]) == ("", status)
    assert "vendor library: giving up" in seen["errors"]


def test_a_fault_in_the_forked_child_ends_it_and_never_runs_the_command_twice(
    tmp_path: Path, fake: FakeNvml
) -> None:
    (tmp_path / "pynvml.py").write_text("raise RuntimeError('no such binding')")
    seen = forked(tmp_path, {**fake.environment(), "PYTHONPATH": str(tmp_path)}, cwd=Path("/"))
    assert seen is not None
    assert seen["status"] == 1
    assert "RuntimeError: no such binding" in seen["errors"]


def test_a_command_that_was_started_to_ignore_its_children_reads_all_the_same(
    tmp_path: Path, fake: FakeNvml
) -> None:
    ignored = Program(before="import signal; signal.signal(17, signal.SIG_IGN)")
    seen = forked(tmp_path, fake.environment(), ignored)
    assert seen is not None
    assert json.loads(seen["output"])["outcome"] == "ok"
    assert seen["status"] == 0


def test_a_command_with_wrong_arguments_asks_the_child_to_end(fake: FakeNvml) -> None:
    fake.set("hang", "nvmlInitWithFlags", "*")
    environment = {**BARE, **fake.environment()}
    done = subprocess.run([*COMMAND, "probe", "--jsn"], env=environment, timeout=patience(20), check=False)
    assert done.returncode == 4
    assert all(
        is_ended_or_asked_to(pid) for pid in fake.callers()
    )  # none where it was ended before its first call


def test_forked_or_executed_the_child_finds_the_same(fake: FakeNvml) -> None:
    documents = []
    for more in ({}, {"HF_TOKEN": "x"}):
        done = subprocess.run(
            [*COMMAND, "probe", "--json"],
            env={**BARE, **fake.environment(), **more},
            stdout=subprocess.PIPE,
            timeout=patience(30),
            check=False,
        )
        document = json.loads(done.stdout)
        documents.append({name: document[name] for name in ("outcome", "gpus", "driver_version", "models")})
    assert documents[0] == documents[1]
    assert len(documents[0]["gpus"]) == 2


ENDLESS = """\
import os, time
from gpu_agent.probe.nvml.forked_child import fork_for

def run_child():
    while True:
        os.write(2, b"x" * 65_536)

began = time.monotonic()
child = fork_for(["probe"], run_child)
output, errors = child.collect(0.5)
child.abandon(5)
print(child.returncode, len(errors) < 50_000_000, time.monotonic() - began < 5)
"""


def test_a_driver_that_prints_without_end_delays_nothing_and_fills_no_memory(tmp_path: Path) -> None:
    program = tmp_path / "endless.py"
    program.write_text(ENDLESS)
    done = subprocess.run(
        [sys.executable, str(program)], env=BARE, stdout=subprocess.PIPE, timeout=patience(30), check=True
    )
    assert done.stdout == b"-15 True True\n"


@pytest.mark.parametrize("room", range(8))
def test_without_descriptors_for_a_child_nothing_is_raised(room: int, tmp_path: Path, fake: FakeNvml) -> None:
    before = (
        "import resource\n"
        "from gpu_agent.probe.nvml import child as loaded\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({room + 3}, 64))"
    )
    meanwhile = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    seen = forked(tmp_path, fake.environment(), Program(before=before, meanwhile=meanwhile))
    assert seen is None or seen["status"] is not None


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_command_that_a_signal_ends_leaves_no_child_that_was_not_asked_to_end(
    ending: signal.Signals, fake: FakeNvml
) -> None:
    fake.set("delay", "nvmlDeviceGetCount_v2", "*", 120_000)
    environment = BARE | {name: value for name, value in fake.environment().items() if name not in os.environ}
    with subprocess.Popen(
        [*COMMAND, "probe", "--json"], env=environment, stdout=subprocess.DEVNULL
    ) as command:
        deadline = time.monotonic() + patience(20)
        while "nvmlDeviceGetCount_v2" not in fake.calls() and time.monotonic() < deadline:
            time.sleep(0.01)
        command.send_signal(ending)
        command.wait(patience(10))
        (child,) = fake.callers()
        assert child != command.pid
        deadline = time.monotonic() + patience(10)
        while not is_ended_or_asked_to(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_ended_or_asked_to(child)
