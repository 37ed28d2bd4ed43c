"""All nodes by their id, and which connection stands for which.

One connection stands for at most one node and one node has at most one connection. Decides
nothing about who may have which.
"""

from gpu_agent.registry.record import NodeRecord


class Roster:
    """The nodes that the registry knows, and the connections that speak for them."""

    def __init__(self) -> None:
        self.records: dict[str, NodeRecord] = {}
        self.bound: dict[int, NodeRecord] = {}
        """By connection; only the connection that registered a node is here."""
        self._dismissed: set[int] = set()

    def add(self, record: NodeRecord) -> None:
        """Know a node from now on."""
        self.records[record.node_id] = record

    def drop(self, record: NodeRecord) -> None:
        """Know a node no longer."""
        self.records.pop(record.node_id, None)
        if record.connection is not None:
            self.unbind(record.connection)

    def bind(self, record: NodeRecord, connection: int) -> None:
        """Let a connection stand for a node; the one before it must have been dismissed."""
        self.bound[connection] = record
        record.connection = connection

    def unbind(self, connection: int) -> NodeRecord | None:
        """Let a connection stand for nobody; returns the node it stood for."""
        record = self.bound.pop(connection, None)
        if record is not None:
            record.connection = None
        return record

    def dismiss(self, connection: int) -> None:
        """Stop listening to a connection that is about to be closed: its late frames are ignored."""
        self.unbind(connection)
        self._dismissed.add(connection)

    def dismissed(self, connection: int) -> bool:
        """Say whether a connection was told to go."""
        return connection in self._dismissed

    def recall(self, connection: int) -> bool:
        """Take a dismissal back; False when the connection is gone, or was never dismissed."""
        if connection not in self._dismissed:
            return False
        self._dismissed.discard(connection)
        return True

    def ended(self, connection: int) -> NodeRecord | None:
        """Forget a connection that is gone; returns the node it stood for."""
        self._dismissed.discard(connection)
        return self.unbind(connection)
