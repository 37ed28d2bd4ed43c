"""The registry about itself, over HTTP."""

import httpx

from tests.server.harness import Node


async def test_healthz_counts_nodes_and_connections(api: httpx.AsyncClient, ready: Node) -> None:
    answer = (await api.get("/healthz")).json()
    assert (answer["status"], answer["nodes"], answer["connections"]) == ("ok", 1, 1)
    assert ready.node_id


async def test_a_load_balancer_may_ask_with_head(api: httpx.AsyncClient) -> None:
    assert (await api.head("/healthz")).status_code == 200
