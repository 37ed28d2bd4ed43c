"""Free and total space of the file systems that model caches are on.

A cache that does not exist yet counts where it would be made. Every call blocks as long as the disk hangs:
call in a thread that can be left behind.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.probe.host.host import disk_usage
from gpu_agent.wire.inventory import CacheDisk


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """What one file system has left."""

    device: int
    """Which one it is."""
    disk: CacheDisk


def disk_space_at(cache: Path) -> DiskSpace | str:
    """The room at a cache; a reason where it cannot be told."""
    for place in (cache, *cache.parents):
        try:
            device = place.stat().st_dev
            free_bytes, total_bytes = disk_usage(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return DiskSpace(device, CacheDisk(path=str(cache), free_bytes=free_bytes, total_bytes=total_bytes))
    return "no folder above it is there"


def distinct_disks(rooms: Iterable[DiskSpace]) -> tuple[CacheDisk, ...]:
    """Each file system once, under the name of the first cache on it."""
    first: dict[int, CacheDisk] = {}
    for room in rooms:
        first.setdefault(room.device, room.disk)
    return tuple(first.values())
