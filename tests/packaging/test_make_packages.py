"""`make packages` itself: the same checkout gives the same bytes."""

from pathlib import Path

import pytest

from tests.system.packages import CURRENT, make

pytestmark = pytest.mark.timeout(900)


def test_another_build_elsewhere_under_another_clock_and_umask_gives_the_same_bytes(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.setenv("LC_ALL", "C")
    make(CURRENT, tmp_path / "dist", work=tmp_path / "work", umask=0o077)
    names = sorted(path.name for path in packages.iterdir())
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == names
    differing = [
        name for name in names if (tmp_path / "dist" / name).read_bytes() != (packages / name).read_bytes()
    ]
    assert differing == []
