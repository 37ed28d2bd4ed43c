"""What routers and Prometheus read: where the workers of ready nodes are, and what to scrape."""

from pydantic import Field

from gpu_agent.wire.api import ApiAnswer


class EndpointView(ApiAnswer):
    """The worker of one ready node."""

    node_id: str = Field(description="The node's id.")
    hostname: str | None = Field(description="The node's hostname, for people; null where it is unknown.")
    endpoint: str = Field(description="Where the node's worker is reached, as the node states it.")
    free_slots: int = Field(description="How many more jobs the node takes now.")
    max_concurrent_jobs: int = Field(description="How many jobs the node takes at a time.")
    models: tuple[str, ...] = Field(description="Ids of the models that are ready there.")
    labels: dict[str, str] = Field(description="The node's labels.")


class EndpointList(ApiAnswer):
    """The workers of all ready nodes that match, by node id."""

    endpoints: tuple[EndpointView, ...] = Field(description="The workers; with free slots or without.")
    count: int = Field(description="How many there are.")


class ScrapeTarget(ApiAnswer):
    """One group of targets, as Prometheus reads it from `http_sd_configs`."""

    targets: tuple[str, ...] = Field(description="Host and port of the node's metrics.")
    labels: dict[str, str] = Field(
        description="`__meta_gpu_agent_…` for relabelling; `__scheme__` and `__metrics_path__` where stated."
    )
