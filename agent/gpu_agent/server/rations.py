"""How much whoever shows a token may say besides beats, over however many connections.

What a node says of itself is kept, logged and told to all who follow. So one node that connects again and
again must not be heard oftener than one that stays, or it fills the disk and pushes everybody else's past
out of what is kept. Knows no clock, as an allowance knows none.
"""

from gpu_agent.registry.credentials import Credential
from gpu_agent.server.allowance import Allowance, Rate
from gpu_agent.server.limits import Limits

MOST_REMEMBERED = 65_536
"""Beyond so many, the one that was asked for longest ago is forgotten, and full again."""


class Rations:
    """One allowance for each node, and for each join token as many as it has uses."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_holder: dict[str, Allowance] = {}

    def of(self, credential: Credential, *, uses: int | None) -> Allowance | None:
        """Return what the holder of a credential has left; None where any number may hold it.

        A credential that stands for one node is that node's, whichever of its tokens it is.
        """
        node_id = credential.node_id
        if node_id is None and uses is None:
            return None
        holder, holders = (credential.token_id, uses or 1) if node_id is None else (f"node {node_id}", 1)
        allowance = self._by_holder.pop(holder, None) or self._full(holders)
        self._by_holder[holder] = allowance
        if len(self._by_holder) > MOST_REMEMBERED:
            del self._by_holder[next(iter(self._by_holder))]
        return allowance

    def _full(self, holders: int) -> Allowance:
        limits = self._limits
        per_second, at_once = limits.errands_per_minute / 60 * holders, limits.errands_at_once * holders
        return Allowance(Rate.of(per_second=per_second, at_once=at_once))
