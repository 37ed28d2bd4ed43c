"""Nodes and claims of a registry by id; an unknown id is answered with the nearest known ones."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from gpu_agent.cli.client.answers import Answer, Model
from gpu_agent.cli.client.http import Api, Query, Refused, quote_id, without_none
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.text import printable
from gpu_agent.wire.api import ClaimDetail, ClaimList, ClaimView, NodeDetail, NodeList, TokenList

MOST_SUGGESTED = 3
_LEAST_SIMILARITY = 0.75
"""Ids that a registry makes begin alike, so less similarity than this says nothing."""
_LEAST_LETTERS = 3
"""From so many letters on, a part of an id may stand for the whole."""
Result = TypeVar("Result")


class Node:
    """One node of a registry; every method raises `Failure`."""

    def __init__(self, api: Api, node_id: str) -> None:
        self.node_id = node_id
        self._api = api
        self._path = f"/v1/nodes/{quote_id(node_id)}"

    def detail(self) -> Answer[NodeDetail]:
        """Read the node in full."""
        return self.get("", NodeDetail)

    def get(self, part: str, model: type[Model], *, query: Query = ()) -> Answer[Model]:
        """Read a part of what the registry knows of the node, such as `/events`."""
        return _with_suggestion(
            lambda: self._api.get(f"{self._path}{part}", model, query=query), "UNKNOWN_NODE", self._near
        )

    def act(self, action: str, model: type[Model], body: Mapping[str, object] | None = None) -> Answer[Model]:
        """Request an action on the node, such as `drain`."""
        return _with_suggestion(
            lambda: self._api.post(f"{self._path}/{action}", body or {}, model), "UNKNOWN_NODE", self._near
        )

    def remove(self, reason: str | None = None) -> None:
        """Remove the node's record."""
        _with_suggestion(lambda: self._api.delete(self._path, reason=reason), "UNKNOWN_NODE", self._near)

    def _near(self) -> str:
        nodes = self._api.get_pages("/v1/nodes", NodeList, members="nodes").model.nodes
        named = [node.node_id for node in nodes if node.hostname == self.node_id]
        if named:
            ids = " or ".join(map(printable, named[:MOST_SUGGESTED]))
            return f"; that is the hostname of {ids}: name the id"
        return did_you_mean(self.node_id, (node.node_id for node in nodes))


def read_claim(api: Api, job_id: str) -> Answer[ClaimDetail]:
    """Read a job's claim with its history, also for an hour after its end; raises `Failure`."""
    path = f"/v1/claims/{quote_id(job_id)}"
    return _with_suggestion(
        lambda: api.get(path, ClaimDetail), "CLAIM_NOT_FOUND", lambda: _near_claims(api, job_id)
    )


def renew_claim(
    api: Api, job_id: str, claim_id: str | None = None, *, ttl_seconds: float | None = None
) -> Answer[ClaimView]:
    """Renew a job's claim for one more TTL, or another one; raises `Failure`."""
    path = f"/v1/claims/{quote_id(job_id)}/renew"
    request = without_none(claim_id=claim_id, ttl_seconds=ttl_seconds)
    return _with_suggestion(
        lambda: api.post(path, request, ClaimView), "CLAIM_NOT_FOUND", lambda: _near_claims(api, job_id)
    )


def release_claim(api: Api, job_id: str, claim_id: str | None = None, *, reason: str | None = None) -> None:
    """Release a job's claim; raises `Failure`."""
    path = f"/v1/claims/{quote_id(job_id)}"
    _with_suggestion(
        lambda: api.delete(path, claim_id=claim_id, reason=reason),
        "CLAIM_NOT_FOUND",
        lambda: _near_claims(api, job_id),
    )


def revoke_token(api: Api, token_id: str) -> None:
    """Revoke a join or operator token; raises `Failure`."""
    path = f"/v1/tokens/{quote_id(token_id)}"
    _with_suggestion(lambda: api.delete(path), "UNKNOWN_TOKEN", lambda: _near_tokens(api, token_id))


def did_you_mean(meant: str, known: Iterable[str]) -> str:
    """Suggest ids as the end of a sentence; empty when none is near."""
    found = nearest_ids(meant, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def nearest_ids(meant: str, known: Iterable[str]) -> list[str]:
    """Return up to three known ids: those that contain what was written first, then similar ones."""
    ids = list(known)
    word = meant.casefold()
    holding = [one for one in ids if len(word) >= _LEAST_LETTERS and word in one.casefold()]
    folded = {one.casefold(): one for one in ids}
    like = [folded[one] for one in difflib.get_close_matches(word, folded, MOST_SUGGESTED, _LEAST_SIMILARITY)]
    return list(dict.fromkeys([*holding, *like]))[:MOST_SUGGESTED]


def _near_claims(api: Api, job_id: str) -> str:
    claims = api.get_pages("/v1/claims", ClaimList, members="claims").model.claims
    return did_you_mean(job_id, (claim.job_id for claim in claims))


def _near_tokens(api: Api, token_id: str) -> str:
    tokens = api.get_pages("/v1/tokens", TokenList, members="tokens").model.tokens
    return did_you_mean(token_id, (token.token_id for token in tokens))


def _with_suggestion(request: Callable[[], Result], unknown: str, near: Callable[[], str]) -> Result:
    """Make a request; where the registry answers that the id is unknown, add the nearest ones."""
    try:
        return request()
    except Refused as refused:
        if refused.problem_code != unknown:
            raise
        raise Failure(f"{refused}{near()}", code=ExitCode.REFUSED) from None
