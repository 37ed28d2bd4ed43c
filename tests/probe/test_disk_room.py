from pathlib import Path

from gpu_agent.probe.disk_room import Room, disks_of, room_at


def test_a_cache_that_is_not_there_yet_counts_where_it_would_be_made(tmp_path: Path) -> None:
    cache = tmp_path / "none" / "hub"
    rooms = [room for room in (room_at(cache), room_at(tmp_path)) if isinstance(room, Room)]
    assert len(rooms) == 2
    (disk,) = disks_of(rooms)
    assert disk.path == str(cache)
    assert 0 < disk.free_bytes <= disk.total_bytes


def test_a_cache_that_cannot_be_measured_is_unknown_with_its_reason(tmp_path: Path) -> None:
    assert "too long" in str(room_at(tmp_path / ("x" * 5000)))
    assert "null" in str(room_at(Path("\0")))
