from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpu_agent.runtime.origins import DEFAULT, Layer, Origin, Origins, variable_of


class Table(BaseModel):
    limit: int = 3
    free: int = 0


class Sample(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ORIGINS_TEST_")

    number: int = 1
    table: Table = Table()
    labels: dict[str, str] = {}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sample.toml"
    path.write_text("number = 2\n[table]\nlimit = 1\n")
    return path


def test_what_nobody_states_is_a_default(tmp_path: Path) -> None:
    origins = Origins(Sample, (), tmp_path / "absent.toml")
    assert origins.of(("number",)) is DEFAULT
    assert str(DEFAULT) == "default"


def test_a_value_of_the_file_has_its_line(file: Path) -> None:
    origins = Origins(Sample, (), file)
    assert str(origins.of(("number",))) == f"{file}:1"
    assert str(origins.of(("table", "limit"))) == f"{file}:3"
    assert origins.of(("table", "free")) is DEFAULT


def test_a_variable_stands_over_the_file_and_an_option_over_both(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORIGINS_TEST_NUMBER", "3")
    assert str(Origins(Sample, (), file).of(("number",))) == "variable ORIGINS_TEST_NUMBER"
    assert Origins(Sample, ("number",), file).of(("number",)) == Origin(Layer.OPTION)


def test_a_table_in_one_variable_states_only_the_keys_that_it_has(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORIGINS_TEST_TABLE", '{"free": 1}')
    origins = Origins(Sample, (), file)
    assert str(origins.of(("table", "free"))) == "variable ORIGINS_TEST_TABLE"
    assert origins.of(("table", "limit")).line == 3


def test_a_variable_of_a_key_in_a_table_is_found_however_it_is_cased(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("Origins_Test_table__Limit", "9")
    assert str(Origins(Sample, (), file).of(("table", "limit"))) == "variable Origins_Test_table__Limit"
    assert variable_of("ORIGINS_TEST_", ("table", "limit")) == "ORIGINS_TEST_TABLE__LIMIT"


def test_a_variable_that_is_no_json_stands_for_the_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORIGINS_TEST_LABELS", "zone=a")
    assert Origins(Sample, (), file).of(("labels", "zone")).layer is Layer.VARIABLE


def test_a_key_that_is_lacking_is_placed_by_its_table(file: Path) -> None:
    assert Origins(Sample, (), file).nearest(("table", "lacking", "deeper")).line == 2
    assert Origins(Sample, (), file).nearest(("lacking",)) is DEFAULT


def test_a_file_that_cannot_be_read_states_nothing(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"= 1", b"x = " + b"[" * 5000):
        path = tmp_path / "broken.toml"
        path.write_bytes(content)
        assert Origins(Sample, (), path).of(("number",)) is DEFAULT
