from gpu_agent.registry.job import Claim
from gpu_agent.server.claim_pages import page


def claim(job_id: str, node_id: str = "node-1") -> Claim:
    return Claim(job_id=job_id, node_id=node_id, gpu_uuids=(), endpoint=None, granted_at=0.0, expires_at=1.0)


CLAIMS = [claim("c"), claim("a"), claim("d", "node-2"), claim("b", "node-2")]


def jobs(claims: list[Claim]) -> list[str]:
    return [one.job_id for one in claims]


def test_claims_come_by_job() -> None:
    assert jobs(page(CLAIMS)) == ["a", "b", "c", "d"]


def test_a_page_begins_behind_a_job_and_has_an_end() -> None:
    assert jobs(page(CLAIMS, after="a", limit=2)) == ["b", "c"]
    assert jobs(page(CLAIMS, after="d", limit=2)) == []


def test_a_page_may_be_of_one_node() -> None:
    assert jobs(page(CLAIMS, node_id="node-2")) == ["b", "d"]
