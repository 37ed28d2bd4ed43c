import pwd
from pathlib import Path

import pytest

from gpu_agent.runtime.own_home import home


def test_a_users_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path


def test_a_user_whom_nobody_knows_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_number: int) -> object:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert home() is None
