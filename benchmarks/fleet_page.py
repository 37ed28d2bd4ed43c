"""The fleet page of a large fleet: how long a page takes, how soon it shows a change, what viewers cost.

    python benchmarks/fleet_page.py [--nodes 10000] [--viewers 50] [--seconds 30] [--http] [--check]

Starts `gpu-agent registry serve`, with tokens and SQLite as it runs by default, and processes full of nodes
(`benchmarks/load/`) that send heartbeats with new figures in the agent's rhythm. The machine's own chromium
signs in and looks: measured are the seconds from the navigation until a page is drawn with its tables, from
the answer to a cordon until the row on the screen has it, and the bytes a second that the page receives.
Other viewers hold the stream of a page open, in a process of their own: the list in four orders and
the overview. The registry's CPU time with all of them is compared with the same fleet without any in the
same run.
With `--http`, or where there is no chromium, the pages are read without drawing them.

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

from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page

from benchmarks.load.processes import Generators, RegistryProcess
from benchmarks.load.sockets import allow_sockets
from benchmarks.load.verdicts import Table
from tests.web.chromium import CHROMIUM, DESK, launched

PAGE_SECONDS = CHANGE_SECONDS = 1.0
VIEWER_KB_PER_SECOND, VIEWERS_CORE = 100.0, 0.20
READY_SECONDS = 400.0
PAGES = ("/nodes", "/", "/jobs", "/events")
CHANGES = 10
VIEWED = (
    *("/nodes", "/nodes?sort=hostname", "/nodes", "/nodes?sort=status", "/"),
    *("/nodes", "/nodes?sort=free", "/nodes", "/nodes?sort=since", "/nodes?rows=compact"),
)
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
    parser.add_argument("--http", action="store_true", help="read the pages without drawing them")
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
        if arguments.http or CHROMIUM is None:
            _load_pages(browser, table)
            _await_changes(registry, browser, token, table=table)
            _view(registry, browser, arguments, table=table)
        else:
            with launched() as chromium:
                page = _sign_in(chromium, registry, token)
                _draw_pages(page, registry, table)
                _await_on_screen(page, registry, token, table=table)
                _receive(page, registry, arguments.seconds, table=table)
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


def _sign_in(chromium: Chromium, registry: RegistryProcess, token: str) -> Page:
    page = chromium.new_context(viewport=DESK).new_page()
    page.goto(f"http://127.0.0.1:{registry.operator_port}/signin")
    page.get_by_label("Operator token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("#main[data-live]")
    return page


def _draw_pages(page: Page, registry: RegistryProcess, table: Table) -> None:
    table.begin("a page is drawn with its tables, in chromium")
    for path in PAGES:
        times = []
        for _ in range(2):
            page.goto(f"http://127.0.0.1:{registry.operator_port}{path}")
            times.append(float(page.evaluate(_DRAWN_MS)) / 1000)
        table.check(path, times[0] <= PAGE_SECONDS, f"{times[0]:.2f} s, again {times[1]:.2f} s")


_DRAWN_MS = """() => new Promise((resolve, reject) => {
    const began = performance.now(), look = () => {
        const [painted] = performance.getEntriesByName('first-contentful-paint');
        if (performance.now() - began > 20000) reject(new Error('nothing is painted'));
        else if (!painted) requestAnimationFrame(look);
        else resolve(Math.max(
            painted.startTime, performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd));
    };
    look();
})"""
"""Since the navigation began: when something was painted and the whole document was there."""
_ROW_SAYS = """([word, is_there]) => new Promise((resolve, reject) => {
    const began = performance.now(), look = () => {
        if (document.querySelector('#rows .c-w').textContent.includes(word) === is_there) resolve();
        else if (performance.now() - began > 20000) reject(new Error('the row does not change'));
        else requestAnimationFrame(look);
    };
    look();
})"""


def _await_on_screen(page: Page, registry: RegistryProcess, token: str, *, table: Table) -> None:
    """Cordon a node whose row is on the screen, and wait until the row says so."""
    table.begin("a node is cordoned while its row is on the screen")
    node_id = _first_nodes(registry, token)[0]
    page.goto(f"http://127.0.0.1:{registry.operator_port}/nodes?q={node_id}")
    page.wait_for_selector("#live:not(.still)")
    took = []
    for number in range(CHANGES):
        verb, body = ("uncordon", {}) if number % 2 else ("cordon", {"reason": "measured"})
        _api(registry, token, f"/v1/nodes/{node_id}/{verb}", body=body)
        began = time.monotonic()
        page.evaluate(_ROW_SAYS, ["measured", number % 2 == 0])
        took.append(time.monotonic() - began)
    figure = f"{median(took):.2f} s, {max(took):.2f} at most of {len(took)}"
    table.check("until the row says so", max(took) <= CHANGE_SECONDS, figure)


def _receive(page: Page, registry: RegistryProcess, seconds: float, *, table: Table) -> None:
    """Count what an open page receives."""
    table.begin(f"what an open page receives in {seconds:g} s")
    received = []
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.on("Network.dataReceived", lambda data: received.append(data["dataLength"]))
    for path in ("/nodes", "/"):
        page.goto(f"http://127.0.0.1:{registry.operator_port}{path}")
        page.wait_for_selector("#live:not(.still)")
        received.clear()
        page.wait_for_timeout(seconds * 1000)
        rate = sum(received) / seconds / 1000
        table.check(path, rate <= VIEWER_KB_PER_SECOND, f"{rate:.1f} kB/s")


def _view(
    registry: RegistryProcess, browser: Browser, arguments: argparse.Namespace, *, table: Table
) -> None:
    """Compare the registry's CPU time with all viewers with that of none."""
    table.begin(f"{arguments.viewers} viewers")
    paths = [VIEWED[number % len(VIEWED)] for number in range(arguments.viewers)]
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
