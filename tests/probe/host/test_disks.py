from pathlib import Path

from gpu_agent.probe.host.disks import DiskSpace, disk_space_at, distinct_disks


def test_a_cache_that_is_not_there_yet_counts_where_it_would_be_made(tmp_path: Path) -> None:
    cache = tmp_path / "none" / "hub"
    rooms = [room for room in (disk_space_at(cache), disk_space_at(tmp_path)) if isinstance(room, DiskSpace)]
    assert len(rooms) == 2
    (disk,) = distinct_disks(rooms)
    assert disk.path == str(cache)
    assert 0 < disk.free_bytes <= disk.total_bytes


def test_a_cache_that_cannot_be_measured_is_unknown_with_its_reason(tmp_path: Path) -> None:
    assert "too long" in str(disk_space_at(tmp_path / ("x" * 5000)))
    assert "null" in str(disk_space_at(Path("\0")))
