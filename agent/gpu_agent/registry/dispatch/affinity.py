"""Which node last held an affinity key, for as long as its caches may still be warm. Scores nothing."""

WARM_SECONDS = 600.0
"""So long after a key was last held its node counts as warm."""

REMEMBERED_KEYS = 65536
"""Beyond so many keys the one held longest ago is forgotten."""


class Affinities:
    """Keys by when they were last held, the earliest first."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, float]] = {}

    def hold(self, key: str | None, node_id: str, now: float) -> None:
        """Remember that a node holds a key now."""
        if key is None:
            return
        self._held.pop(key, None)
        self._held[key] = (node_id, now)
        if len(self._held) > REMEMBERED_KEYS:
            del self._held[next(iter(self._held))]

    def warm(self, key: str | None, now: float) -> str | None:
        """Return the node that is warm for a key."""
        held = None if key is None else self._held.get(key)
        return None if held is None or now - held[1] > WARM_SECONDS else held[0]
