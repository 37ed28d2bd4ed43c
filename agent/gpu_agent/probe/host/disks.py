"""Free and total space of the file systems that model caches are on.

A cache that does not exist yet counts where it would be made. Every call blocks as long as the disk hangs:
call in a thread that can be left behind.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpu_agent.wire.inventory import CacheDisk


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """What one file system has left."""

    device: int
    """Its device number."""
    disk: CacheDisk


def disk_space_at(cache: Path) -> DiskSpace | str:
    """The space at a cache, or the reason why it is unknown."""
    for path in (cache, *cache.parents):
        try:
            device = path.stat().st_dev
            usage = psutil.disk_usage(str(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return DiskSpace(device, CacheDisk(path=str(cache), free_bytes=usage.free, total_bytes=usage.total))
    return "no folder above it is there"


def distinct_disks(spaces: Iterable[DiskSpace]) -> tuple[CacheDisk, ...]:
    """Each file system once, under the name of the first cache on it."""
    first: dict[int, CacheDisk] = {}
    for space in spaces:
        first.setdefault(space.device, space.disk)
    return tuple(first.values())
