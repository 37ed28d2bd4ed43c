"""Reading for those outside: nobody is shown what is not kept yet (§4, *save before telling*).

What is read at once may rest on a save that is still on its way. So it is shown once all such saves
are kept, and read again where one of them had to be undone. Changes nothing.
"""

from collections.abc import Callable
from typing import TypeVar

from gpu_agent.server.operator.problems import Refused
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.codes import ErrorCode

_MOST_READINGS = 5
"""A disk that fails all the time undoes something all the time; somebody must be able to look at it."""

T = TypeVar("T")


async def kept(
    service: RegistryService, read: Callable[[], T], *, again: Callable[[T], T] | None = None
) -> T:
    """Read what is kept; `again` reads a second time what cannot be read twice in the same way."""
    undone = service.undone
    shown = read()
    for _ in range(_MOST_READINGS):
        await settled(service)
        if service.undone == undone:
            break
        undone = service.undone
        shown = read() if again is None else again(shown)
    return shown


async def settled(service: RegistryService) -> None:
    """Wait until all that was handled so far is kept; ends the request where the store takes too long."""
    if not await service.settled():
        why = service.store_problem or "the store is slow; ask again in a moment"
        raise Refused(ErrorCode.REGISTRY_BUSY.value, f"what there is to show is not kept yet: {why}")
