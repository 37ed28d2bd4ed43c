"""The fleet page of a large fleet: how long a page takes, how soon it shows a change, what viewers cost.

    python benchmarks/fleet_page.py [--nodes 10000] [--viewers 50] [--seconds 30] [--check]

Starts `gpu-agent registry serve`, with tokens and SQLite as it runs by default, and processes full of nodes
(`benchmarks/load/`) that send heartbeats with new figures in the agent's rhythm. Viewers sign in as people do
and hold the stream of a page open, in a process of their own. Measured are the seconds until the first and
the second answer of each page are read whole; from the answer to a cordon until a viewer of the row has it;
the bytes a second of one viewer; and the registry's CPU time with all viewers, half of them on different
pages of the list, against the same fleet with none in the same run.

Everything runs on this machine and disturbs what is measured: watch the load, which is printed.
`--check` ends with 1 when anything is missed. Linux only.
"""

import argparse
import asyncio
import http.client
import json
import os
import re
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a file

from benchmarks.load.processes import Generators, RegistryProcess
from benchmarks.load.sockets import allow_sockets
from benchmarks.load.verdicts import Table

PAGE_SECONDS = CHANGE_SECONDS = 1.0
VIEWER_KB_PER_SECOND, VIEWERS_CORE = 100.0, 0.20
READY_SECONDS = 400.0
PAGES = ("/nodes", "/", "/jobs", "/events")
CHANGES = 10
_SETTLE_SECONDS = 5.0


class Browser:
    """What a browser does, without drawing: it signs in, loads pages, and follows a page's stream."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        answer = self._ask("POST", "/signin", body=urllib.parse.urlencode({"token": token, "next": "/"}))
        self._cookie = answer.headers["Set-Cookie"].partition(";")[0]

    def load(self, path: str) -> tuple[float, str]:
        """Return the seconds until a page was read whole, and the page."""
        began = time.monotonic()
        answer = self._ask("GET", path)
        text = answer.read().decode()
        if answer.status != http.client.OK:
            raise SystemExit(f"{path} answers {answer.status}")
        return time.monotonic() - began, text

    def stream_request(self, path: str) -> bytes:
        """Return the request for the stream of a page, which is loaded for it; built as `fleet.js` does."""
        _, page = self.load(path)
        found = dict(re.findall(r'data-(live|since|order|node)="([^"]*)"', page))
        if "live" not in found:
            raise SystemExit(f"{path} has no stream")
        query = urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query)
        query += [("page", found["live"]), ("since", found["since"]), ("order", found["order"])]
        target = f"/web/stream?{urllib.parse.urlencode(query)}"
        head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nCookie: {self._cookie}\r\n\r\n"
        return head.encode()

    def _ask(self, method: str, path: str, *, body: str | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Origin": f"http://127.0.0.1:{self._port}"}
        if body is None:
            headers["Cookie"] = self._cookie
        else:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, body=body, headers=headers)
        return connection.getresponse()


def main() -> int:
    """Measure, and print what was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=8, help="figures in each heartbeat")
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement of CPU time")
    parser.add_argument("--check", action="store_true", help="exit 1 when anything is missed")
    arguments = parser.parse_args()
    allow_sockets(arguments.nodes)
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{arguments.nodes} nodes, {arguments.gpus} GPUs each, {os.cpu_count()} cores, load before {load}")
    table = Table()
    with (
        tempfile.TemporaryDirectory() as folder,
        RegistryProcess([], state_dir=Path(folder), measured_every_seconds=10.0) as registry,
        Generators(registry, gpus=arguments.gpus, startup_seconds=arguments.nodes / 200) as nodes,
    ):
        for _ in range(2):
            nodes.start(arguments.nodes // 2)
        nodes.await_ready(arguments.nodes // 2 * 2, within_seconds=READY_SECONDS)
        token = (Path(folder) / "operator.token").read_text().strip()
        time.sleep(_SETTLE_SECONDS)
        browser = Browser(registry.operator_port, token)
        _load_pages(browser, table)
        _await_changes(registry, browser, token, table=table)
        _view(registry, browser, arguments, table=table)
    return 0 if table.met or not arguments.check else 1


def _load_pages(browser: Browser, table: Table) -> None:
    table.begin("a page is loaded")
    for path in PAGES:
        (first, page), (second, _) = browser.load(path), browser.load(path)
        size = f"{first:.2f} s, again {second:.2f} s, {len(page) / 1000:.0f} kB"
        table.check(path, first <= PAGE_SECONDS, size)


def _await_changes(registry: RegistryProcess, browser: Browser, token: str, *, table: Table) -> None:
    """Cordon a node whose row is shown, and wait until the stream brings the row."""
    table.begin("a node is cordoned while its row is shown")
    node_id = _first_nodes(registry, token)[0]
    took = asyncio.run(
        _times_to_see(registry, browser.stream_request(f"/nodes?q={node_id}"), token=token, node_id=node_id)
    )
    figure = f"{median(took):.2f} s, {max(took):.2f} at most of {len(took)}"
    table.check("until the viewer has it", max(took) <= CHANGE_SECONDS, figure)


async def _times_to_see(
    registry: RegistryProcess, request: bytes, *, token: str, node_id: str
) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", registry.operator_port)
    writer.write(request)
    await reader.readuntil(b"\r\n\r\n")
    took = []
    for number in range(CHANGES):
        verb = "uncordon" if number % 2 else "cordon"
        reason = f"measured-{number}"
        await asyncio.to_thread(
            _api,
            registry,
            token,
            f"/v1/nodes/{node_id}/{verb}",
            body={} if number % 2 else {"reason": reason},
        )
        began, seen = time.monotonic(), b""
        wanted = b"cordon"
        while (wanted in seen) is bool(number % 2) or b"event: parts" not in seen:
            async with asyncio.timeout(10):
                seen = (seen if b"\n\n" not in seen else b"") + await reader.read(65536)
        took.append(time.monotonic() - began)
    writer.close()
    return took


def _view(
    registry: RegistryProcess, browser: Browser, arguments: argparse.Namespace, *, table: Table
) -> None:
    """Compare the registry's CPU time with all viewers with that of none."""
    table.begin(f"{arguments.viewers} viewers")
    paths = [
        "/nodes"
        if number % 2
        else f"/nodes?sort={('host', 'status', 'free', 'slots', 'load')[number // 2 % 5]}"
        for number in range(arguments.viewers)
    ]
    requests = [browser.stream_request(path) for path in paths]
    none = _core(registry, arguments.seconds)
    context = get_context("spawn")
    received: Queue[list[int]] = context.Queue()
    viewers = context.Process(
        target=_follow,
        args=(registry.operator_port, requests, arguments.seconds + 2 * _SETTLE_SECONDS),
        kwargs={"received": received},
    )
    viewers.start()
    time.sleep(_SETTLE_SECONDS)
    some = _core(registry, arguments.seconds)
    sizes = received.get(timeout=60)
    viewers.join()
    each = max(sizes) / (arguments.seconds + 2 * _SETTLE_SECONDS) / 1000
    table.fact("the registry's CPU without viewers", f"{none:.3f} of a core")
    table.check("of all viewers", some - none <= VIEWERS_CORE, f"{some - none:.3f} of a core")
    table.check("of one viewer", each <= VIEWER_KB_PER_SECOND, f"{each:.1f} kB/s at most")


def _core(registry: RegistryProcess, seconds: float) -> float:
    before, began = registry.cpu_seconds, time.monotonic()
    time.sleep(seconds)
    return (registry.cpu_seconds - before) / (time.monotonic() - began)


def _follow(port: int, requests: list[bytes], seconds: float, *, received: "Queue[list[int]]") -> None:
    received.put(asyncio.run(_read_all(port, requests, seconds)))


async def _read_all(port: int, requests: list[bytes], seconds: float) -> list[int]:
    async with asyncio.TaskGroup() as reading:
        tasks = [reading.create_task(_read_for(port, one, seconds), name="viewer") for one in requests]
    return [one.result() for one in tasks]


async def _read_for(port: int, request: bytes, seconds: float) -> int:
    """Read a stream for so long, and return its bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    size, head = 0, await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise SystemExit(f"a stream answers {head[:60]!r}")
    try:
        async with asyncio.timeout(seconds):
            while piece := await reader.read(65536):
                size += len(piece)
    except TimeoutError:
        pass
    writer.close()
    return size


def _first_nodes(registry: RegistryProcess, token: str) -> list[str]:
    return [str(one["node_id"]) for one in _api(registry, token, "/v1/nodes?limit=1")["nodes"]]  # type: ignore[attr-defined]


def _api(registry: RegistryProcess, token: str, path: str, *, body: object = None) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{registry.operator_port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - ours
        document: dict[str, object] = json.load(answer)
        return document


if __name__ == "__main__":
    sys.exit(main())
