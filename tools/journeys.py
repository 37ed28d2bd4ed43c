"""How many files and functions six journeys through the program pass, traced while real programs run.

    python -m tools.journeys                            this checkout
    python -m tools.journeys --source OTHER/agent       another one, such as a worktree of an older commit
    python -m tools.journeys --files                    the files too, in the order of their first calls

Five journeys count all calls of `gpu_agent` from the event to its effect, less what an idle program calls in
the same time; what an idle program calls about as often does not count. The sixth, a GPU reading on its way
to the wire, counts the functions that are handed the power reading or return it, from the NVML child to the
socket. Bodies of modules and classes do not count.

Ends with 1 where a journey of this checkout passes more files than `MOST_FILES` allows: another file on the
way of each heartbeat or claim is a decision, and a commit that makes it says why beside the new number.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.bare_registry import BareRegistry, listening_registry
from tests.nvml_fake.control import FakeNvml

ROOT = Path(__file__).parent.parent
HOOK = Path(__file__).parent / "journey_hook"
POWER_MILLIWATTS = 123_457
POWER_WATTS = "123.457"
"""A reading that nothing else equals: it is followed by its value."""
SETTLE_SECONDS = 0.4
HEARTBEATS_UNTIL_ORDINARY = 6
"""After so many healthy heartbeats the registry's window of failures is full."""
PATIENCE_SECONDS = 60.0
QUIET_REGISTRY = {
    "SCAN_INTERVAL_SECONDS": "3600",
    "PERFORMANCE_INTERVAL_SECONDS": "3600",
    "NODE_STATUS_INTERVAL_SECONDS": "3600",
    "HEARTBEAT_INTERVAL_SECONDS": "3600",
    "WARMUP_HEARTBEAT_INTERVAL_SECONDS": "1200",
    "HEARTBEAT_TIMEOUT_SECONDS": "36000",
    "WARMUP_TIMEOUT_SECONDS": "36000",
    "ALLOW_SIMULATED": "true",
}
MOST_FILES = {
    "heartbeat": 13,
    "status change": 42,  # the fast reader of heartbeats included
    "claim over HTTP": 42,
    "drain": 51,  # the answer says of each GPU what it is for jobs; failed requests are counted
    "GPU reading to the wire": 22,
    "gpu-agent status": 29,  # what is wrong with the machine is drawn as `probe` draws it
}
"""Each file on a journey decides something (access, rate, trace, order, health, admission checks, capacity,
GPUs, what is stored, logged and counted) and is a subject that one looks for by name. A merge would hide one.
"""

GPU = {"name": "A100", "memory_gb": 80, "uuid": "GPU-1", "memory_mb": 81920, "health": "ok"}
REGISTER = {
    "type": "node_register",
    "version": "1.0.0",
    "capability_schema_version": "1.1",
    "node_id": None,
    "platform": "linux",
    "hardware": {"cpu_cores": 8, "memory_gb": 64, "gpus": [GPU]},
    "max_concurrent_jobs": 4,
}


@dataclass
class Journey:
    """What one journey called, by function, in the order of first calls."""

    name: str
    calls: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The files passed, in order, less `records`: it makes values as `dataclasses` does."""
        return list(dict.fromkeys(file for file, _ in self.calls if file != "records.py"))

    def row(self) -> str:
        """One line of the table."""
        total = sum(self.calls.values())
        return f"{self.name:<28} {len(self.files):>6} {len(self.calls):>10} {total:>8}"


class Trace:
    """The directory through which this program and the traced ones speak."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder = folder
        self._source = source
        folder.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the traced tree's `gpu-agent`."""
        module, _, function = _entry_point(self._source.parent).partition(":")
        run = f"import sys; from {module} import {function} as run; sys.exit(run())"
        process = subprocess.Popen(
            [sys.executable, "-c", run, *words],
            env={
                **os.environ,
                **(environment or {}),
                "PYTHONPATH": os.pathsep.join([str(HOOK), str(self._source)]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "JOURNEY_TRACE": str(self.folder),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "stderr").open("ab"),
        )
        self._processes.append(process)
        return process

    async def window(self, name: str, *values: str) -> None:
        """Have every traced process begin a window, and wait until all have."""
        processes = list(self.folder.glob("ready.*"))
        beside = self.folder / "window.new"
        beside.write_text(" ".join([name, *values]), encoding="utf-8")
        beside.replace(self.folder / "window")
        await _until(  # a process may end meanwhile, as the one that checks a GPU does
            lambda: all(
                one.read_text(encoding="utf-8") == name or not _alive(int(one.suffix[1:]))
                for one in processes
            ),
            f"window {name}",
        )

    def counted(self, name: str) -> dict[tuple[str, str], int]:
        """What all processes called in a window."""
        calls: dict[tuple[str, str], int] = {}
        paths = self.folder.glob(f"{name}.*.json")
        counted = [one for path in paths for one in json.loads(path.read_text(encoding="utf-8"))]
        for one in sorted(counted, key=lambda one: float(one["at"])):
            place = (one["file"], one["function"])
            calls[place] = calls.get(place, 0) + one["calls"]
        return calls

    async def journey(self, title: str, act: Callable[[], Awaitable[None]]) -> Journey:
        """Record one action, less what happens in the same time without it."""
        name = re.sub(r"\W+", "-", title)
        begun = time.monotonic()
        await self.window(name)
        await act()
        await asyncio.sleep(SETTLE_SECONDS)
        await self.window(f"{name}-idle")
        await asyncio.sleep(time.monotonic() - begun)
        await self.window("between")
        idle = self.counted(f"{name}-idle")
        acted = self.counted(name)
        own = {place: count for place, count in acted.items() if count > 2 * idle.get(place, 0)}
        return Journey(title, {place: count - idle.get(place, 0) for place, count in own.items()})

    def end(self) -> None:
        """Have every program leave."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(PATIENCE_SECONDS)


async def registry_journeys(folder: Path, source: Path) -> list[Journey]:
    """Trace a registry, with a node and a scheduler that this program plays."""
    trace, state = Trace(folder / "trace", source), folder / "state"
    state.mkdir(mode=0o700)
    try:
        await trace.window("start")
        words = ["registry", "serve", "--state-dir", str(state)]
        words += ["--node-listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"]
        environment = {f"GPU_REGISTRY_{name}": value for name, value in QUIET_REGISTRY.items()}
        trace.start(*words, environment=environment)
        listening = await _logged(trace, "registry_listening")
        token_file = state / "operator.token"
        await _until(token_file.is_file, str(token_file))
        token = (await asyncio.to_thread(token_file.read_text, encoding="utf-8")).strip()
        api = _Api(f"http://{listening['operator_listen']}", token)
        join = await api.call("POST", "/v1/tokens", {"kind": "join"})
        secret = next(value for value in join.values() if str(value).startswith("gpuj_"))
        async with _node(f"ws://{listening['node_listen']}/ws/node", str(secret)) as node:
            status_change = await trace.journey("status change", node.become_ready)
            for _ in range(HEARTBEATS_UNTIL_ORDINARY):
                await node.heartbeat()
            await asyncio.sleep(SETTLE_SECONDS)
            return [
                status_change,
                await trace.journey("heartbeat", node.heartbeat),
                await trace.journey("claim over HTTP", lambda: api.claim("job-1")),
                await trace.journey("drain", lambda: node.be_drained(api)),
            ]
    finally:
        trace.end()


async def agent_journeys(folder: Path, source: Path) -> list[Journey]:
    """Trace an agent with a fake NVML, its child, and `gpu-agent status` beside it."""
    trace, nvml = Trace(folder / "trace", source), FakeNvml(folder)
    try:
        await trace.window("start")
        async with listening_registry() as registry:
            words = ["run", "--registry", registry.url, "--state-dir", str(folder / "state")]
            environment = {**nvml.environment(), "GPU_AGENT_PROBE_INTERVAL_SECONDS": "0.5"}
            environment["GPU_AGENT_HUB_ROOTS"] = environment["GPU_AGENT_OLLAMA_ROOTS"] = str(folder)
            environment["GPU_AGENT_SOCKET"] = str(folder / "agent.sock")
            trace.start(*words, environment=environment)
            await registry.next("node_register")
            await _heartbeat_with(registry, lambda _: True)
            await trace.window("reading", str(POWER_MILLIWATTS), POWER_WATTS)
            nvml.set("power_mw", 0, POWER_MILLIWATTS)
            await _heartbeat_with(registry, _shows_the_power)
            await trace.window("between")
            reading = Journey("GPU reading to the wire", trace.counted("reading"))

            async def status() -> None:
                process = trace.start(
                    "status", environment={"GPU_AGENT_SOCKET": environment["GPU_AGENT_SOCKET"]}
                )
                await asyncio.to_thread(process.wait, PATIENCE_SECONDS)

            return [reading, await trace.journey("gpu-agent status", status)]
    finally:
        trace.end()


class _Api:
    """The operators' API, as a scheduler calls it."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token

    async def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        return await asyncio.to_thread(self._call, method, path, body)

    async def claim(self, job_id: str) -> None:
        await self.call("POST", "/v1/claims", {"job_id": job_id})

    def _call(self, method: str, path: str, body: object) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers, method=method)  # noqa: S310 - loopback, ours
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310 - as above
            document: dict[str, Any] = json.load(answer)
            return document


class _Node:
    """A node that this program plays."""

    def __init__(self, connection: ClientConnection, node_id: str) -> None:
        self._connection, self._node_id, self._sequence = connection, node_id, 0

    async def heartbeat(self) -> None:
        self._sequence += 1
        load = self._sequence % 10  # a working machine's figures differ each time
        figures = {
            "uuid": "GPU-1",
            "health": "ok",
            "utilization_percent": load,
            "memory_used_mb": 1000 * load,
        }
        message = {
            "type": "node_heartbeat",
            "node_id": self._node_id,
            "timestamp": int(time.time() * 1000),
            "resource_usage": {"cpu_percent": load, "mem_percent": 1, "gpu_percent": load, "running_jobs": 0},
            "gpus": [figures],
            "probe_age_seconds": 0.1,
            "running_jobs": [],
            "sequence": self._sequence,
        }
        await self._connection.send(json.dumps(message))

    async def become_ready(self) -> None:
        await self.heartbeat()
        await self.await_status("ready")

    async def be_drained(self, api: _Api) -> None:
        await api.call("POST", f"/v1/nodes/{self._node_id}/drain", {"reason": "maintenance"})
        await self.await_status("draining")

    async def await_status(self, status: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while json.loads(await self._connection.recv()).get("status") != status:
                pass


@asynccontextmanager
async def _node(url: str, token: str) -> AsyncIterator[_Node]:
    """Register, and send all heartbeats but the one that makes a node ready."""
    async with connect(
        url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None
    ) as connection:
        await connection.send(json.dumps(REGISTER))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (ack := json.loads(await connection.recv()))["type"] != "node_register_ack":
                pass
        node = _Node(connection, ack["node_id"])
        await node.heartbeat()
        await node.heartbeat()
        await asyncio.sleep(SETTLE_SECONDS)
        yield node


async def _heartbeat_with(registry: BareRegistry, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not wanted(await registry.next("node_heartbeat")):
            pass


def _shows_the_power(heartbeat: Mapping[str, Any]) -> bool:
    return POWER_WATTS in str(heartbeat["gpus"])


def _entry_point(checkout: Path) -> str:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    return str(project["project"]["scripts"]["gpu-agent"])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _logged(trace: Trace, event: str) -> dict[str, Any]:
    """Wait for a log line of a traced program."""
    found: list[dict[str, Any]] = []
    marked = f'"event": "{event}"'

    def look() -> bool:
        lines = (trace.folder / "stderr").read_text(encoding="utf-8").splitlines()
        found.extend(json.loads(line) for line in lines if marked in line)
        return bool(found)

    await _until(look, event)
    return found[0]


async def _until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS:g} s: {what}")
        await asyncio.sleep(0.01)


async def traced(source: Path) -> list[Journey]:
    """Trace all six journeys through the package below `source`."""
    with tempfile.TemporaryDirectory(prefix="journeys-") as folder:
        (Path(folder) / "registry").mkdir()
        (Path(folder) / "agent").mkdir()
        registry = await registry_journeys(Path(folder) / "registry", source)
        return [*registry, *await agent_journeys(Path(folder) / "agent", source)]


def table(journeys: Iterable[Journey], *, with_files: bool) -> str:
    """Write the figures, and the files below each journey."""
    lines = [f"{'journey':<28} {'files':>6} {'functions':>10} {'calls':>8}"]
    for journey in journeys:
        lines.append(journey.row())
        if with_files:
            lines += [f"    {file}" for file in journey.files]
    return "\n".join(lines)


def _longer(journeys: Iterable[Journey]) -> list[Journey]:
    return [one for one in journeys if len(one.files) > MOST_FILES[one.name]]


def main() -> int:
    """Trace, and print the table."""
    parser = argparse.ArgumentParser(description="Trace six journeys through the program.")
    parser.add_argument("--source", type=Path, default=ROOT / "agent", help="the folder that holds gpu_agent")
    parser.add_argument("--files", action="store_true", help="list the files of each journey")
    arguments = parser.parse_args()
    journeys = asyncio.run(traced(arguments.source.resolve()))
    print(table(journeys, with_files=arguments.files))
    if arguments.source.resolve() != (ROOT / "agent").resolve():
        return 0
    longer = _longer(journeys)
    if longer:  # a timer may have fired meanwhile: what is longer twice is longer
        again = {one.name for one in _longer(asyncio.run(traced(arguments.source.resolve())))}
        longer = [one for one in longer if one.name in again]
    for one in longer:
        allowed = MOST_FILES[one.name]
        print(f"{one.name} passes {len(one.files)} files, {allowed} are allowed: --files lists them")
    return 1 if longer else 0


if __name__ == "__main__":
    sys.exit(main())
