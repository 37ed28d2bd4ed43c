"""What the API answers is exactly what `wire.api` says: no field less, and none besides."""

import json

import httpx
import pytest
from pydantic import BaseModel

from gpu_agent.wire import api as documents
from tests.server.api_harness import problem
from tests.server.harness import Node

READS: dict[str, type[BaseModel]] = {
    "/healthz": documents.HealthAnswer,
    "/readyz": documents.Readiness,
    "/v1/thresholds": documents.ThresholdList,
    "/v1/nodes": documents.NodeList,
    "/v1/nodes/{id}": documents.NodeDetail,
    "/v1/nodes/{id}/events": documents.EventList,
    "/v1/nodes/{id}/explain?model=m": documents.NodeExplanation,
    "/v1/exclusions": documents.ExclusionsList,
    "/v1/claims": documents.ClaimList,
    "/v1/claims?ended=true": documents.ClaimList,
    "/v1/claims/job-1": documents.ClaimDetail,
    "/v1/queue": documents.QueueView,
    "/v1/tokens": documents.TokenList,
}
CHANGES: dict[str, tuple[dict[str, object], type[BaseModel]]] = {
    "/v1/dispatch/select": ({}, documents.Selection),
    "/v1/dispatch/explain": ({"labels": {"zone": "z"}}, documents.ExplanationView),
    "/v1/claims": ({"job_id": "job-2"}, documents.ClaimView),
    "/v1/claims/renew": ({"claims": [{"job_id": "job-2"}]}, documents.RenewalList),
    "/v1/tokens": ({"kind": "operator", "role": "read"}, documents.NewToken),
    "/v1/nodes/{id}/drain": ({}, documents.NodeDetail),
}


def exactly(model: type[BaseModel], document: object) -> bool:
    return bool(json.loads(model.model_validate(document).model_dump_json()) == document)


@pytest.mark.parametrize(("path", "model"), READS.items())
async def test_a_read_answers_its_document(
    api: httpx.AsyncClient, ready: Node, path: str, model: type[BaseModel]
) -> None:
    await api.post("/v1/claims", json={"job_id": "job-1"})
    await api.post("/v1/claims", json={"job_id": "job-2", "gpu_count": 9})
    await api.post("/v1/tokens", json={"kind": "join", "labels": {"zone": "a"}})
    await api.post(f"/v1/nodes/{ready.node_id}/cordon", json={"reason": "new driver"})
    assert exactly(model, (await api.get(path.format(id=ready.node_id))).json())


@pytest.mark.parametrize(("path", "body", "model"), [(path, *one) for path, one in CHANGES.items()])
async def test_a_post_answers_its_document(
    api: httpx.AsyncClient, ready: Node, path: str, body: dict[str, object], model: type[BaseModel]
) -> None:
    assert exactly(model, (await api.post(path.format(id=ready.node_id), json=body)).json())


async def test_a_refusal_answers_its_document(api: httpx.AsyncClient, ready: Node) -> None:
    assert ready.node_id
    for body in ({"job_id": "job-1", "gpu_count": 9}, {"gpu_count": "1"}):
        document = problem(await api.post("/v1/claims", json=body))
        read = documents.Problem.model_validate(document)
        assert json.loads(read.model_dump_json(exclude_none=True)) == document
        assert read.model_extra == {}
