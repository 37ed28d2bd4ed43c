"""The control socket's answer to `explain`, beside `wire.control`: `status` needs no model of the API."""

from typing import Any, Literal

from pydantic import Field

from gpu_agent.wire.api import NodeExclusionView
from gpu_agent.wire.probe_document import Document, json_schema


class ExplainDocument(Document):
    """What `gpu-agent explain --json` prints: for which jobs this node is excluded, as far as it knows."""

    schema_id: Literal["gpu-agent.explain/1"] = Field(alias="schema")
    node_id: str | None = Field(description="null until a registry has issued one")
    connected: bool = Field(description="whether the registry receives this node's heartbeats")
    refuses_every_job: bool = Field(description="whether one of them is against every job")
    exclusions: tuple[NodeExclusionView, ...]
    only_the_registry_knows: tuple[str, ...]
    ask: str = Field(description="the command that asks the registry the same")


def explain_schema() -> dict[str, Any]:
    """Return the JSON Schema of `gpu-agent explain --json`."""
    description = (
        "What `gpu-agent explain --json` prints (gpu-agent.explain/1): for which jobs this node is excluded "
        "now, as far as the node itself knows."
    )
    return json_schema("explain", description, ExplainDocument)
