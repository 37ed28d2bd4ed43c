from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpu_agent.runtime.layers import SettingsError, read


class Sample(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="LAYERS_TEST_")

    number: int = 1
    names: tuple[str, ...] = ()


def load(folder: Path, flags: Mapping[str, object] | None = None, *, config: Path | None = None) -> Sample:
    def sentence(error: ErrorDetails, path: Path) -> str:
        return f"{path.name}: {error['loc'][0]}: {error['msg']}"

    return read(Sample, flags or {}, default=folder / "default.toml", config=config, sentence=sentence)


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(tmp_path).number == 1
    (tmp_path / "default.toml").write_text("number = 2")
    assert load(tmp_path).number == 2
    monkeypatch.setenv("LAYERS_TEST_NUMBER", "3")
    assert load(tmp_path).number == 3
    assert load(tmp_path, {"number": 4}).number == 4
    assert load(tmp_path, {"number": None}).number == 3


def test_a_named_file_replaces_the_default_and_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text("number = 2")
    (tmp_path / "mine.toml").write_text("number = 5")
    assert load(tmp_path, config=tmp_path / "mine.toml").number == 5
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load(tmp_path, config=tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"number = ", "not valid TOML"),
        (b"\xff\xfe\x00a", "UTF-8"),
        (b"x = " + b"[" * 5000, "not valid TOML"),
        (b'number = "many"', "default.toml: number"),
        (b"unheard_of = 1", "default.toml: unheard_of"),
    ],
    ids=["torn", "not UTF-8", "too deep", "wrong", "unknown"],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "default.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        load(tmp_path)


def test_a_variable_that_should_hold_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERS_TEST_NAMES", "a,b")
    with pytest.raises(SettingsError, match=r"names.*JSON"):
        load(tmp_path)
