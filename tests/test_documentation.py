"""The tables of `docs/` say what the program does: names, order and defaults are held to the source."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from gpu_agent.node import settings as agent_settings
from gpu_agent.node.settings import AgentSettings, DeclaredModel
from gpu_agent.registry.dispatch.verdict import Exclusion
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server import settings as registry_settings
from gpu_agent.server.address import Address
from gpu_agent.server.settings import RegistrySettings
from gpu_agent.wire.inventory import ModelStatus

DOCS = Path(__file__).parent.parent / "docs"
NO_DEFAULT = {"none": None, "required": "required"}


def rows(document: str, heading: str) -> list[list[str]]:
    """Read the cells of the first table under a heading, without its head."""
    written = (DOCS / document).read_text(encoding="utf-8")
    section = written.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    table = section[section.index("|") :].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table[2:]]


def quoted(cell: str) -> list[str]:
    """List what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def stated_default(cell: str) -> object:
    """Read a cell as the value that it writes, in TOML."""
    return NO_DEFAULT[cell] if cell in NO_DEFAULT else tomllib.loads(f"value = {quoted(cell)[0]}")["value"]


def true_default(settings: type[BaseModel], key: str) -> object:
    """Return a setting's default as TOML would write it."""
    field = settings.model_fields[key]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Address):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


TABLES = [
    pytest.param("The agent", AgentSettings, agent_settings.ENVIRONMENT_PREFIX, id="agent"),
    pytest.param("The registry", RegistrySettings, registry_settings.ENVIRONMENT_PREFIX, id="registry"),
]


@pytest.mark.parametrize(("heading", "settings", "prefix"), TABLES)
def test_every_setting_is_listed_in_the_order_of_the_source(
    heading: str, settings: type[BaseSettings], prefix: str
) -> None:
    table = rows("settings.md", heading)
    assert [quoted(row[0]) for row in table] == [[key] for key in settings.model_fields]
    assert [quoted(row[3]) for row in table] == [[f"{prefix}{key.upper()}"] for key in settings.model_fields]


@pytest.mark.parametrize(("heading", "settings", "prefix"), TABLES)
def test_the_defaults_shown_are_the_true_ones(
    heading: str, settings: type[BaseSettings], prefix: str
) -> None:
    assert settings.model_config["env_prefix"] == prefix
    table = rows("settings.md", heading)
    shown = {quoted(row[0])[0]: stated_default(row[2]) for row in table}
    assert shown == {key: true_default(settings, key) for key in settings.model_fields}


def test_the_example_of_the_agents_settings_can_be_used(tmp_path: Path) -> None:
    written = (DOCS / "settings.md").read_text(encoding="utf-8")
    example = tmp_path / "agent.toml"
    example.write_text(written.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    settings = agent_settings.load({}, config=example)
    assert settings.labels == {"zone": "a"}
    assert [model.model_id for model in settings.declared_models] == ["my/model", "my/experiment"]


def test_all_that_can_be_declared_of_a_model_is_named() -> None:
    written = (DOCS / "settings.md").read_text(encoding="utf-8")
    paragraph = written.split("A `[[declared_models]]` table names", 1)[1].split("\n\n", 1)[0]
    assert set(quoted(paragraph)) == {*DeclaredModel.model_fields, *(status.value for status in ModelStatus)}


def test_every_threshold_is_listed_with_its_default() -> None:
    shown: dict[str, object] = {}
    for options, defaults, _ in rows("operating.md", "Thresholds"):
        for option, default in zip(quoted(options), defaults.split(", "), strict=True):
            shown[option] = () if default == "none" else float(default)
    assert shown == {f"--{one.name.replace('_', '-')}": one.default for one in fields(Thresholds)}


def test_the_exclusions_are_listed_in_the_order_that_they_are_tried() -> None:
    table = rows("operating.md", "Why a node did not get a job")
    listed = [quoted(row[0])[0] for row in table]
    assert listed == [reason.value for reason in Exclusion]
