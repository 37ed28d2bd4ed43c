import io
import json
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gpu_agent.node.settings import AgentSettings
from gpu_agent.runtime import logs
from gpu_agent.runtime.config.sources import (
    COMMAND_VARIABLES,
    DEFAULT,
    KeyPath,
    Layer,
    SettingSource,
    SettingSources,
    UnknownVariable,
    key_lines,
    line_of_key,
    log_unknown_variables,
    unknown_variables,
    variable_name,
)
from gpu_agent.server.settings import RegistrySettings


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


def test_what_no_layer_states_is_a_default(tmp_path: Path) -> None:
    origins = SettingSources(Sample, (), tmp_path / "absent.toml")
    assert origins.of(("number",)) is DEFAULT
    assert str(DEFAULT) == "default"


def test_a_value_of_the_file_has_its_line(file: Path) -> None:
    origins = SettingSources(Sample, (), file)
    assert str(origins.of(("number",))) == f"{file}:1"
    assert str(origins.of(("table", "limit"))) == f"{file}:3"
    assert origins.of(("table", "free")) is DEFAULT


def test_a_variable_stands_over_the_file_and_an_option_over_both(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORIGINS_TEST_NUMBER", "3")
    assert str(SettingSources(Sample, (), file).of(("number",))) == "variable ORIGINS_TEST_NUMBER"
    assert SettingSources(Sample, ("number",), file).of(("number",)) == SettingSource(Layer.OPTION)


def test_a_table_in_one_variable_states_only_the_keys_that_it_has(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORIGINS_TEST_TABLE", '{"free": 1}')
    origins = SettingSources(Sample, (), file)
    assert str(origins.of(("table", "free"))) == "variable ORIGINS_TEST_TABLE"
    assert origins.of(("table", "limit")).line == 3


def test_a_variable_of_a_key_in_a_table_is_found_however_it_is_cased(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("Origins_Test_table__Limit", "9")
    assert (
        str(SettingSources(Sample, (), file).of(("table", "limit"))) == "variable Origins_Test_table__Limit"
    )
    assert variable_name("ORIGINS_TEST_", ("table", "limit")) == "ORIGINS_TEST_TABLE__LIMIT"


def test_a_variable_that_is_no_json_stands_for_the_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORIGINS_TEST_LABELS", "zone=a")
    assert SettingSources(Sample, (), file).of(("labels", "zone")).layer is Layer.VARIABLE


def test_a_key_that_is_lacking_is_placed_by_its_table(file: Path) -> None:
    assert SettingSources(Sample, (), file).nearest(("table", "lacking", "deeper")).line == 2
    assert SettingSources(Sample, (), file).nearest(("lacking",)) is DEFAULT


def test_a_file_that_cannot_be_read_states_nothing(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"= 1", b"x = " + b"[" * 5000):
        path = tmp_path / "broken.toml"
        path.write_bytes(content)
        assert SettingSources(Sample, (), path).of(("number",)) is DEFAULT


class VariablesTable(BaseModel):
    limit: int = 3


class VariablesSample(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="VARIABLES_TEST_", env_nested_delimiter="__")

    number: int = 1
    names: tuple[str, ...] = ()
    table: VariablesTable = VariablesTable()
    tables: tuple[VariablesTable, ...] = ()
    free: dict[str, int] = Field(default_factory=dict)
    whole: Annotated[dict[str, int], NoDecode] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("VARIABLES_TEST_NUMMBER", "VARIABLES_TEST_NUMBER"),
        ("variables_test_nummber", "VARIABLES_TEST_NUMBER"),
        ("VARIABLES_TEST_TABLE__LIMMIT", "VARIABLES_TEST_TABLE__LIMIT"),
        ("VARIABLES_TEST_NAMES__0", "VARIABLES_TEST_NAMES"),
        ("VARIABLES_TEST_TABLES__0__LIMIT", "VARIABLES_TEST_TABLES"),
        ("VARIABLES_TEST_WHOLE__ANY", "VARIABLES_TEST_WHOLE"),
        ("VARIABLES_TEST_ZZZZZZ", None),
        ("VARIABLES_TEST_", None),
    ],
)
def test_a_variable_that_is_no_settings_is_reported_with_the_nearest(
    variable: str, nearest: str | None
) -> None:
    assert unknown_variables(VariablesSample, [variable]) == [UnknownVariable(variable, nearest)]


@pytest.mark.parametrize(
    "variable",
    [
        *(
            "VARIABLES_TEST_NUMBER",
            "variables_test_number",
            "VARIABLES_TEST_TABLE",
            "VARIABLES_TEST_TABLE__LIMIT",
        ),
        *("VARIABLES_TEST_FREE__ANY", "PATH"),
    ],
)
def test_a_settings_own_variable_is_none(variable: str) -> None:
    assert unknown_variables(VariablesSample, [variable]) == []


@pytest.mark.parametrize(
    "variable",
    [
        "VARIABLES_TEST_PORT",
        "VARIABLES_TEST_SERVICE_HOST",
        "VARIABLES_TEST_SERVICE_PORT",
        "VARIABLES_TEST_SERVICE_PORT_METRICS",
        "VARIABLES_TEST_PORT_8080_TCP",
        "VARIABLES_TEST_PORT_8080_TCP_ADDR",
        "VARIABLES_TEST_METRICS_SERVICE_HOST",
    ],
)
def test_what_kubernetes_sets_for_a_service_of_that_name_is_none(variable: str) -> None:
    assert unknown_variables(VariablesSample, [variable]) == []


@pytest.mark.parametrize("kind", [AgentSettings, RegistrySettings])
def test_what_commands_read_besides_is_none(kind: type[BaseSettings]) -> None:
    assert unknown_variables(kind, COMMAND_VARIABLES) == []


def test_each_is_logged_by_its_name_alone() -> None:
    stream = io.StringIO()
    logs.configure("info", stream=stream, human=False)
    log_unknown_variables(VariablesSample, {"VARIABLES_TEST_NUMMBER": "s3cret"})
    said = json.loads(stream.getvalue())
    assert (said["event"], said["variable"], said["nearest"]) == (
        "variable_unknown",
        "VARIABLES_TEST_NUMMBER",
        "VARIABLES_TEST_NUMBER",
    )
    assert "s3cret" not in stream.getvalue()


def test_it_is_said_as_a_sentence() -> None:
    assert str(UnknownVariable("GPU_AGENT_REGSITRY_URL", "GPU_AGENT_REGISTRY_URL")) == (
        "variable GPU_AGENT_REGSITRY_URL is ignored: no setting has that name; "
        "did you mean GPU_AGENT_REGISTRY_URL?"
    )


TEXT = '''\
# a = 1
a = 1
  "b" = [
  1, # c = 2
  2,
]
text = """
d = 4
[no.table]
"""
dotted.key = 1
inline = { deep = 1 }

[table]
e = 1
"f.g" = 2

[[many]]
h = 1
[many.below]
i = 1
[[many]]
h = 2
'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("a",), 2),
        (("b",), 3),
        (("text",), 7),
        (("dotted", "key"), 11),
        (("table",), 14),
        (("table", "e"), 15),
        (("table", "f.g"), 16),
        (("many", 0), 18),
        (("many", 0, "h"), 19),
        (("many", 0, "below", "i"), 21),
        (("many", 1, "h"), 23),
    ],
)
def test_a_key_is_found_where_it_stands(place: KeyPath, line: int) -> None:
    assert key_lines(TEXT)[place] == line


@pytest.mark.parametrize("place", [("c",), ("d",), ("no",), ("no", "table"), ("inline", "deep")])
def test_what_only_looks_like_a_key_is_none(place: KeyPath) -> None:
    assert place not in key_lines(TEXT)


@pytest.mark.parametrize(
    ("place", "line"), [(("inline", "deep"), 12), (("many", 1, "absent"), 22), (("absent",), None)]
)
def test_a_key_that_stands_nowhere_itself_is_found_by_what_is_above_it(place: KeyPath, line: int) -> None:
    assert line_of_key(place, key_lines(TEXT)) == line


def test_a_text_of_thousands_of_lines_is_read_through_once() -> None:
    long = "a = [\n" + '  "x",\n' * 20_000 + "]\nb = 1\n"
    assert key_lines(long) == {("a",): 1, ("b",): 20_003}
