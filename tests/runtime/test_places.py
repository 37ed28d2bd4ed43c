import pwd
from pathlib import Path

import pytest

from gpu_agent.runtime.places import state_place


@pytest.fixture
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_number: int) -> object:
        raise KeyError

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_state_is_kept_where_the_platform_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_place("x") == tmp_path / "x"


@pytest.mark.usefixtures("_no_home")
def test_who_has_no_home_keeps_no_state_in_whatever_folder_he_is() -> None:
    assert state_place("x") == Path("/nonexistent/.local/state/x")
