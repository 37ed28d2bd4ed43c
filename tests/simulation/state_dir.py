"""What a played machine keeps on its disk."""

from dataclasses import dataclass


@dataclass(slots=True)
class StateDir:
    """What an agent keeps on its disk."""

    node_id: str | None = None
    node_token: str | None = None
    join_token: str | None = None
