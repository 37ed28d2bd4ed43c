from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpu_agent.runtime.config.fields import ConfigPath
from gpu_agent.runtime.config.load import SettingsError, load_settings, setting_name, table_model
from gpu_agent.runtime.config.sources import NESTED
from gpu_agent.wire.settings import Setting


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int = 3
    free: int = Field(0, ge=0)


class Sample(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="LAYERS_TEST_", env_nested_delimiter=NESTED
    )

    number: int = 1
    names: tuple[str, ...] = ()
    table: Table = Table()
    tables: tuple[Table, ...] = ()
    gap: int = Field(0, ge=0)
    secret: SecretStr | None = None
    rare: Annotated[int, Setting("a number", advanced=True)] = 7


def load(folder: Path, flags: Mapping[str, object] | None = None, *, config: Path | None = None) -> Sample:
    return load_settings(
        Sample, flags or {}, default=folder / "default.toml", config=config, sentence=own_words
    )


def own_words(error: ErrorDetails) -> str | None:
    return "mind the gap" if setting_name(error) == "gap" else None


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "number = 1\nnames = [\n]\n\nnumber = 2\n",
            "default.toml:5: number is already set in line 1; leave one of the two out",
        ),
        (
            "[table]\nlimit = 1\n[advanced]\nrare = 1\n# appended\n[table]\nfree = 2\n",
            "default.toml:6: [table] is already set in line 1; put all its keys below line 1",
        ),
        (
            "[table]\nlimit = 1\nlimit = 2\n",
            "default.toml:3: table.limit is already set in line 2; leave one of the two out",
        ),
    ],
)
def test_what_a_snippet_sets_once_more_is_named_with_both_lines(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "default.toml").write_text(text)
    with pytest.raises(SettingsError) as refused:
        load(tmp_path)
    assert str(refused.value).endswith(words)


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
        (b"number = " + b"9" * 5000, "not valid TOML.*digits"),
        (b'\nnumber = "many"', r"default\.toml:2: number: .* unable to parse .*, got 'many'"),
        (b"gap = -1", r"default\.toml:1: mind the gap"),
        (b"unheard_of = 1", r"default\.toml:1: 'unheard_of' is no setting; there are: number, names, "),
        (b"nummber = 1", r"'nummber' is no setting; did you mean 'number'\?"),
        (b"[table]\n\nlimmit = 1", r"default\.toml:3: 'limmit' is no setting; did you mean 'limit'\?"),
        (b"[[tables]]\n[[tables]]\nlimmit = 1", r"default\.toml:3: 'limmit' .* did you mean 'limit'\?"),
        (b"limit = 1", r"default\.toml:1: 'limit' is no setting there; put it below \[table\]"),
        (
            b"[table]\nnumber = 1",
            r"default\.toml:2: 'number' is no setting there; put it above",
        ),
        (b"[table]\nlimit = 1\nfree = -1", r"default\.toml:3: table\.free: .*, got -1"),
    ],
    ids=[
        *("torn", "not UTF-8", "too deep", "too many digits", "wrong", "own words", "unknown", "misspelt"),
        *("in a table", "in one of tables", "in no table", "in a table too deep", "wrong in a table"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "default.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        load(tmp_path)


def test_a_named_file_that_cannot_even_be_looked_at_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"File name too long|there is no file"):
        load(tmp_path, config=tmp_path / ("m" * 300))


def test_a_variable_that_should_hold_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERS_TEST_NAMES", "a,b")
    with pytest.raises(SettingsError, match=r"names.*JSON"):
        load(tmp_path)


def test_a_key_of_a_table_has_a_variable_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "default.toml").write_text("[table]\nlimit = 1\nfree = 2")
    monkeypatch.setenv("LAYERS_TEST_TABLE__FREE", "5")
    assert load(tmp_path).table == Table(limit=1, free=5)


def test_a_fault_of_a_variable_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "default.toml").write_text("number = 1")
    monkeypatch.setenv("LAYERS_TEST_NUMBER", "many")
    with pytest.raises(SettingsError, match=r"^variable LAYERS_TEST_NUMBER: number: "):
        load(tmp_path)


def test_a_fault_of_an_option_needs_no_place(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text("number = 1")
    with pytest.raises(SettingsError, match=r"^number: "):
        load(tmp_path, {"number": "many"})


def test_what_is_shown_of_a_value_is_short(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load(tmp_path, {"number": "9" * 500 + "x"})
    assert len(str(refused.value)) < 300


def test_a_table_is_found_in_whatever_holds_it() -> None:
    assert table_model(Table | None) is Table
    assert table_model(tuple[Table, ...]) is Table
    assert table_model(dict[str, int]) is None


class Demanding(Sample):
    must: int


def test_what_is_lacking_is_reported_with_the_variable_that_may_have_been_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERS_TEST_MUTS", "3")
    with pytest.raises(SettingsError, match=r"LAYERS_TEST_MUTS.*did you mean LAYERS_TEST_MUST\?") as refused:
        load_settings(Demanding, {}, default=tmp_path / "a.toml", config=None, sentence=lambda _: None)
    assert refused.value.lacking == ("must",)


def test_where_more_is_wrong_nothing_counts_as_lacking(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(
            Demanding, {"gap": -1}, default=tmp_path / "a.toml", config=None, sentence=lambda _: None
        )
    assert refused.value.lacking == ()
    assert len(str(refused.value).splitlines()) == 2


def test_a_key_without_end_is_shown_short(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text(f"{'k' * 5000} = 1")
    with pytest.raises(SettingsError) as refused:
        load(tmp_path)
    assert len(str(refused.value)) < 400


PLACE: TypeAdapter[Path] = TypeAdapter(ConfigPath)


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert PLACE.validate_python("~/models") == Path("/home/ada/models")


def test_a_home_that_is_not_here_is_refused_with_the_next_step() -> None:
    with pytest.raises(ValidationError, match="write the whole path"):
        PLACE.validate_python("~nobody-of-this-name/models")


@pytest.mark.parametrize("text", ["\0", "/models/\0", "~\0/models"])
def test_a_nul_is_refused_and_never_reaches_the_disk(text: str) -> None:
    with pytest.raises(ValidationError, match="no NUL character"):
        PLACE.validate_python(text)


def test_an_advanced_setting_stands_below_its_heading(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text("number = 2\n[advanced]\nrare = 8\n")
    assert (load(tmp_path).number, load(tmp_path).rare) == (2, 8)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rare = 8", r"default\.toml:1: 'rare' is no setting there; put it below \[advanced\]"),
        (
            "[advanced]\nnumber = 2",
            r"default\.toml:2: 'number' is no setting there; put it above",
        ),
        ("[advanced]\nrar = 2", r"default\.toml:2: 'rar' is no setting; did you mean 'rare'\?"),
        ('[advanced]\nrare = "x"', r"default\.toml:2: rare: "),
        ("[table]\nrare = 8", r"default\.toml:2: 'rare' is no setting there; put it below \[advanced\]"),
    ],
)
def test_a_fault_of_an_advanced_setting_names_its_line(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "default.toml").write_text(text)
    with pytest.raises(SettingsError, match=fault):
        load(tmp_path)
