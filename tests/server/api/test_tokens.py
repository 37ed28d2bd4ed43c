"""Tokens over HTTP, on a real registry."""

from typing import Any

import httpx
import pytest

from tests.server.api_harness import problem
from tests.server.harness import Node


async def made(api: httpx.AsyncClient, **asked: object) -> dict[str, Any]:
    answer = await api.post("/v1/tokens", json=asked)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    return document


async def listed(api: httpx.AsyncClient) -> list[dict[str, Any]]:
    document = (await api.get("/v1/tokens")).json()
    assert document["count"] == len(document["tokens"])
    tokens: list[dict[str, Any]] = document["tokens"]
    return tokens


async def test_a_join_token_is_shown_once_and_listed_without_its_secret(api: httpx.AsyncClient) -> None:
    new = await made(api, kind="join", ttl_seconds=60, uses=3, labels={"zone": "a"}, note="rack 7")
    assert new["token"].startswith(f"gpuj_{new['token_id']}_")
    (shown,) = await listed(api)
    assert (shown["token_id"], shown["kind"], shown["state"]) == (new["token_id"], "join", "live")
    assert (shown["uses"], shown["spent"], shown["labels"], shown["note"]) == (3, 0, {"zone": "a"}, "rack 7")
    answer = await api.get("/v1/tokens")
    assert new["token"].split("_", 2)[2] not in answer.text
    assert "digest" not in answer.text


async def test_an_operator_token_has_its_role_and_need_not_expire(api: httpx.AsyncClient) -> None:
    new = await made(api, kind="operator", role="operate", name="scheduler")
    assert new["token"].startswith("gpuo_")
    assert new["expires_at"] is None
    (shown,) = await listed(api)
    assert (shown["role"], shown["name"]) == ("operate", "scheduler")


async def test_a_revoked_token_stays_in_the_list_as_revoked(api: httpx.AsyncClient) -> None:
    new = await made(api, kind="join")
    assert (await api.delete(f"/v1/tokens/{new['token_id']}")).status_code == 204
    assert [token["state"] for token in await listed(api)] == ["revoked"]


async def test_an_unknown_token_cannot_be_revoked(api: httpx.AsyncClient) -> None:
    refused = problem(await api.delete("/v1/tokens/00000000"))
    assert (refused["status"], refused["code"]) == (404, "UNKNOWN_TOKEN")


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({}, "$"),
        ({"kind": "node"}, "$"),
        ({"kind": "operator"}, "$.role"),
        ({"kind": "operator", "role": "root"}, "$.role"),
        ({"kind": "join", "ttl_seconds": 0}, "$.ttl_seconds"),
        ({"kind": "join", "uses": 0}, "$.uses"),
        ({"kind": "join", "node_id": "node 7"}, "$.node_id"),
        ({"kind": "join", "role": "admin"}, "$.role"),
    ],
)
async def test_a_token_request_with_a_wrong_field_is_refused(
    api: httpx.AsyncClient, wrong: dict[str, object], path: str
) -> None:
    refused = problem(await api.post("/v1/tokens", json=wrong))
    assert (refused["status"], refused["errors"][0]["path"]) == (422, path)
    assert await listed(api) == []


@pytest.mark.parametrize(
    ("kind", "wrong", "near"), [("join", "usess", "uses"), ("operator", "nam", "name"), ("join", "nam", None)]
)
async def test_an_unknown_field_of_a_token_is_refused_with_the_nearest_one_of_its_kind(
    api: httpx.AsyncClient, kind: str, wrong: str, near: str | None
) -> None:
    refused = problem(await api.post("/v1/tokens", json={"kind": kind, "role": "read", wrong: "x"}))
    (error,) = (one for one in refused["errors"] if one["path"] == f"$.{wrong}")
    hint = "" if near is None else f"; did you mean `{near}`?"
    assert error["problem"] == f"there is no such field{hint}"


async def test_a_node_that_lost_its_state_can_reclaim_its_id(api: httpx.AsyncClient, ready: Node) -> None:
    answer = await api.post(f"/v1/nodes/{ready.node_id}/reclaim", json={"ttl_seconds": 60})
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    (shown,) = await listed(api)
    assert (shown["token_id"], shown["node_id"]) == (answer.json()["token_id"], ready.node_id)


async def test_a_node_without_a_token_has_nothing_to_rotate(api: httpx.AsyncClient, ready: Node) -> None:
    refused = problem(await api.post(f"/v1/nodes/{ready.node_id}/rotate", json={}))
    assert (refused["status"], refused["code"]) == (409, "NOTHING_TO_ROTATE")
    assert problem(await api.post("/v1/nodes/node-x/rotate", json={}))["status"] == 404


async def test_a_join_token_may_be_for_one_node_alone(api: httpx.AsyncClient) -> None:
    asked = {"kind": "join", "uses": None, "ttl_seconds": None, "node_id": "node-7"}
    assert (await api.post("/v1/tokens", json=asked)).status_code == 201
    (shown,) = await listed(api)
    assert (shown["node_id"], shown["uses"], shown["reserved"]) == ("node-7", None, 0)
