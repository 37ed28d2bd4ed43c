"""docs/reference/api.md names every route with its role, and its examples do what they say."""

import re
import shlex
from pathlib import Path
from string import Template

import httpx
from websockets.asyncio.client import connect

from gpu_agent.registry.tokens import Role
from gpu_agent.server.api.auth import MAX_BODY_BYTES, ROLE
from gpu_agent.server.event_log import HEARTBEAT_SECONDS, MOST_STREAMS
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.store.base import RECENT_EVENTS
from gpu_agent.store.sqlite import SqliteStore
from gpu_agent.wire.api import NewToken
from tests.server.api_harness import ROUTES as API_ROUTES
from tests.server.api_harness import serving
from tests.server.harness import Node, running, url

TEXT = (Path(__file__).parent.parent / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([A-Z]+ /\S*)` \| (\w+) \| ([^|]+) \| `(curl .*)` \|$", re.MULTILINE)
ROUTES = ROW.findall(TEXT)


def test_every_route_is_listed_with_its_role_and_meaning() -> None:
    declared = {
        (f"{method} {path}", (route.openapi_extra or {})[ROLE], route.summary)
        for (method, path), route in API_ROUTES.items()
        if route.include_in_schema
    }
    document = API_ROUTES["GET", "/openapi.json"]
    declared.add(("GET /openapi.json", (document.openapi_extra or {})[ROLE], "Show the OpenAPI document"))
    assert {(route, role, what) for route, role, what, _ in ROUTES} == declared
    assert len(ROUTES) == len(declared)


def test_every_answer_that_is_printed_ends_its_line() -> None:
    assert [command for *_, command in ROUTES if not re.match(r"curl (-sw '\\n'|-sN|.*-o) ", command)] == []


def test_the_bounds_are_the_true_ones() -> None:
    assert f"At most {MOST_STREAMS} may follow" in TEXT
    assert f"At least every {HEARTBEAT_SECONDS:g} s" in TEXT
    assert f"the last {RECENT_EVENTS:,} events".replace(",", " ") in TEXT
    assert f"at most {MAX_BODY_BYTES // 2**20} MiB" in TEXT


class Curl:
    """A curl command of the document, done by a client of our own."""

    def __init__(self, command: str, variables: dict[str, str]) -> None:
        words = iter(shlex.split(Template(command).substitute(variables)))
        self.method, self.url, self.body, self.headers = "GET", "", None, dict[str, str]()
        for word in words:
            match word:
                case "curl" | "-s" | "-sN":
                    continue
                case "-o" | "-sw":
                    next(words)
                case "-X":
                    self.method = next(words)
                case "-d":
                    self.method, self.body = "POST", next(words)
                case "-H":
                    name, _, value = next(words).partition(": ")
                    self.headers[name] = value
                case _:
                    self.url = word

    async def run(self, api: httpx.AsyncClient) -> httpx.Response:
        return await api.request(self.method, self.url, content=self.body, headers=self.headers)


async def test_every_example_does_what_it_says_in_order(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "registry.db")
    async with running(store=store, auth_on=True) as service, serving(service) as api:
        join = await service.tokens.create_join()
        admin = await service.tokens.create_operator(Role.ADMIN)
        assert isinstance(join, NewToken)
        assert isinstance(admin, NewToken)
        service.notifier.start((ReceiverSettings(name="ops", command=("true",)),))
        headers = {"Authorization": f"Bearer {join.token}"}
        async with connect(url(service), proxy=None, additional_headers=headers) as socket:
            node = Node(socket)
            gpu = {"name": "NVIDIA L4", "memory_gb": 24, "uuid": "GPU-5f2a8c1e"}
            hardware = {"cpu_cores": 8, "memory_gb": 32, "gpus": [gpu]}
            await node.become_ready(labels={"zone": "a"}, hardware=hardware, capability_schema_version="1.1")
            variables = {
                "api": str(api.base_url),
                "auth": f"Authorization: Bearer {admin.token}",
                "json": "Content-Type: application/json",
                "id": node.node_id,
                "gpu": "GPU-5f2a8c1e",
                "job": "job-1",
                "token": join.token_id,
            }
            for route, _, _, command in ROUTES:
                asked = Curl(command, variables)
                assert route.split()[0] == asked.method
                answer = await asked.run(api)
                assert answer.is_success, (command, answer.text)
                if route == "POST /v1/claims":
                    variables["claim"] = answer.json()["claim_id"]
                if route.endswith("/resume"):
                    for _ in range(3):
                        await node.heartbeat()
                    await node.receive_type("node_status", status="ready")
            assert service.node(node.node_id) is None


def test_the_examples_use_what_the_document_sets() -> None:
    shell = TEXT.split("```sh\n")[1].split("```")[0]
    assert set(re.findall(r"^(\w+)=", shell, re.MULTILINE)) == {
        name for *_, command in ROUTES for name in re.findall(r"\$(\w+)", command)
    }
