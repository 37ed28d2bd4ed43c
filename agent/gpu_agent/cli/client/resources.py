"""Nodes and claims of a registry by id; an unknown id is answered with the nearest known ones."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from gpu_agent.cli.client.http import ANYTHING, CLAIMS, NODES, Api, Refused, Shape, get_all_pages, quote_id
from gpu_agent.cli.command import ExitCode, Failure

MOST_SUGGESTED = 3
_LEAST_SIMILARITY = 0.75
"""Ids that a registry gave begin alike, so less likeness than this says nothing."""
_LEAST_LETTERS = 3
"""From so many letters on, a part of an id is taken for the whole."""


def nearest_ids(meant: str, known: Iterable[str]) -> list[str]:
    """Return up to three known ids: those that hold what was written first, then those that look like it."""
    ids = list(known)
    word = meant.casefold()
    holding = [one for one in ids if len(word) >= _LEAST_LETTERS and word in one.casefold()]
    folded = {one.casefold(): one for one in ids}
    like = [folded[one] for one in difflib.get_close_matches(word, folded, MOST_SUGGESTED, _LEAST_SIMILARITY)]
    return list(dict.fromkeys([*holding, *like]))[:MOST_SUGGESTED]


def did_you_mean(meant: str, known: Iterable[str]) -> str:
    """Say it as the end of a sentence; empty when nothing is near."""
    found = nearest_ids(meant, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


_UNKNOWN = "UNKNOWN_NODE"


class Node:
    """One node, as its registry's operator API knows it; every method raises `Failure`."""

    def __init__(self, api: Api, node_id: str) -> None:
        self.node_id = node_id
        self._api = api
        self._path = f"/v1/nodes/{quote_id(node_id)}"

    def get(self, part: str = "", *, shape: Shape) -> dict[str, Any]:
        """Read the node, or a part of what is known of it."""
        return self._asked("GET", part, body=None, shape=shape)

    def post(
        self, action: str, body: Mapping[str, object] | None = None, *, shape: Shape = ANYTHING
    ) -> dict[str, Any]:
        """Ask for something to be done to it."""
        return self._asked("POST", f"/{action}", body=body or {}, shape=shape)

    def delete(self) -> None:
        """Ask for it to be forgotten."""
        self._asked("DELETE", "", body=None, shape=ANYTHING)

    def _asked(
        self, method: str, part: str, *, body: Mapping[str, object] | None, shape: Shape
    ) -> dict[str, Any]:
        try:
            return self._api.ask(method, f"{self._path}{part}", body=body, shape=shape)
        except Refused as refused:
            if refused.problem.code != _UNKNOWN:
                raise
            raise Failure(f"{refused}{self._near()}", code=ExitCode.REFUSED) from None

    def _near(self) -> str:
        nodes = get_all_pages(self._api, "/v1/nodes", NODES, key="nodes")["nodes"]
        return did_you_mean(self.node_id, (str(node["node_id"]) for node in nodes))


_NOT_FOUND = "CLAIM_NOT_FOUND"


class JobClaim:
    """The claim of one job; every method raises `Failure`."""

    def __init__(self, api: Api, job_id: str) -> None:
        self.job_id = job_id
        self._api = api
        self._path = f"/v1/claims/{quote_id(job_id)}"

    def renew(self, shape: Shape) -> dict[str, Any]:
        """Keep the place for one more TTL."""
        return self._asked("POST", "/renew", shape)

    def release(self) -> None:
        """Give the place back."""
        self._asked("DELETE", "", ANYTHING)

    def _asked(self, method: str, part: str, shape: Shape) -> dict[str, Any]:
        body: dict[str, object] | None = None if method == "DELETE" else {}
        try:
            return self._api.ask(method, f"{self._path}{part}", body=body, shape=shape)
        except Refused as refused:
            if refused.problem.code != _NOT_FOUND:
                raise
            claims = get_all_pages(self._api, "/v1/claims", CLAIMS, key="claims")["claims"]
            hint = did_you_mean(self.job_id, (str(claim["job_id"]) for claim in claims))
            raise Failure(f"{refused}{hint}", code=ExitCode.REFUSED) from None
