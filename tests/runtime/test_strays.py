import io
import json
from typing import Annotated

import pytest
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gpu_agent.node.settings import AgentSettings
from gpu_agent.runtime import logs
from gpu_agent.runtime.strays import BESIDES, Stray, strays, tell
from gpu_agent.server.settings import RegistrySettings


class Table(BaseModel):
    limit: int = 3


class Sample(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="STRAYS_TEST_", env_nested_delimiter="__")

    number: int = 1
    names: tuple[str, ...] = ()
    table: Table = Table()
    tables: tuple[Table, ...] = ()
    free: dict[str, int] = Field(default_factory=dict)
    whole: Annotated[dict[str, int], NoDecode] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("STRAYS_TEST_NUMMBER", "STRAYS_TEST_NUMBER"),
        ("strays_test_nummber", "STRAYS_TEST_NUMBER"),
        ("STRAYS_TEST_TABLE__LIMMIT", "STRAYS_TEST_TABLE__LIMIT"),
        ("STRAYS_TEST_NAMES__0", "STRAYS_TEST_NAMES"),
        ("STRAYS_TEST_TABLES__0__LIMIT", "STRAYS_TEST_TABLES"),
        ("STRAYS_TEST_WHOLE__ANY", "STRAYS_TEST_WHOLE"),
        ("STRAYS_TEST_ZZZZZZ", None),
        ("STRAYS_TEST_", None),
    ],
)
def test_a_variable_that_is_no_settings_is_told_with_the_nearest(variable: str, nearest: str | None) -> None:
    assert strays(Sample, [variable]) == [Stray(variable, nearest)]


@pytest.mark.parametrize(
    "variable",
    [
        *("STRAYS_TEST_NUMBER", "strays_test_number", "STRAYS_TEST_TABLE", "STRAYS_TEST_TABLE__LIMIT"),
        *("STRAYS_TEST_FREE__ANY", "PATH"),
    ],
)
def test_a_settings_own_variable_is_none(variable: str) -> None:
    assert strays(Sample, [variable]) == []


@pytest.mark.parametrize(
    "variable",
    [
        "STRAYS_TEST_PORT",
        "STRAYS_TEST_SERVICE_HOST",
        "STRAYS_TEST_SERVICE_PORT",
        "STRAYS_TEST_SERVICE_PORT_METRICS",
        "STRAYS_TEST_PORT_8080_TCP",
        "STRAYS_TEST_PORT_8080_TCP_ADDR",
        "STRAYS_TEST_METRICS_SERVICE_HOST",
    ],
)
def test_what_kubernetes_sets_for_a_service_of_that_name_is_none(variable: str) -> None:
    assert strays(Sample, [variable]) == []


@pytest.mark.parametrize("kind", [AgentSettings, RegistrySettings])
def test_what_commands_read_besides_is_none(kind: type[BaseSettings]) -> None:
    assert strays(kind, BESIDES) == []


@pytest.mark.usefixtures("logging_restored")
def test_each_is_logged_by_its_name_alone() -> None:
    stream = io.StringIO()
    logs.configure("info", stream=stream, human=False)
    tell(Sample, {"STRAYS_TEST_NUMMBER": "s3cret"})
    said = json.loads(stream.getvalue())
    assert (said["event"], said["variable"], said["nearest"]) == (
        "variable_unknown",
        "STRAYS_TEST_NUMMBER",
        "STRAYS_TEST_NUMBER",
    )
    assert "s3cret" not in stream.getvalue()


def test_it_is_said_as_a_sentence() -> None:
    assert str(Stray("GPU_AGENT_REGSITRY_URL", "GPU_AGENT_REGISTRY_URL")) == (
        "variable GPU_AGENT_REGSITRY_URL is ignored: no setting has that name; "
        "did you mean GPU_AGENT_REGISTRY_URL?"
    )
