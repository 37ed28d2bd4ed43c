"""What every action on one node shares: asking for it, and helping where the id is not known."""

from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.answers import ANYTHING, NODES, Shape
from gpu_agent.cli.asking.api import Api, Refused, quoted
from gpu_agent.cli.asking.paging import listed
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.registry.near import did_you_mean

_UNKNOWN = "UNKNOWN_NODE"


class Node:
    """One node, as its registry's operator API knows it; every method raises `Failure`."""

    def __init__(self, api: Api, node_id: str) -> None:
        self.node_id = node_id
        self._api = api
        self._path = f"/v1/nodes/{quoted(node_id)}"

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
        nodes = listed(self._api, "/v1/nodes", NODES, key="nodes")["nodes"]
        return did_you_mean(self.node_id, (str(node["node_id"]) for node in nodes))
