import re
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpu_agent.node import settings as agent_settings
from gpu_agent.runtime.config.fields import ADVANCED, advanced_names, setting_of
from gpu_agent.runtime.config.load import table_model
from gpu_agent.server import settings as registry_settings
from gpu_agent.wire.settings import Setting
from tools.roff import bold
from tools.settings_docs import (
    COMPONENTS,
    Component,
    Key,
    example_file,
    generated,
    keys_of,
    manual_page,
    switched_on,
    tables_of,
)

ROOT = Path(__file__).parents[2]
NOT_TOGETHER = ("auth",)
"""Keys that cannot be set beside all others; they have their defaults."""
EACH = pytest.mark.parametrize("component", COMPONENTS.values(), ids=COMPONENTS)


def all_keys(component: Component) -> list[Key]:
    return [key for table in ("", *tables_of(component)) for key in keys_of(component, table)]


def loaded(component: Component, text: str, folder: Path) -> BaseSettings:
    path = folder / f"{component.name}.toml"
    path.write_text(text, encoding="utf-8")
    load = agent_settings.load if component.name == "agent" else registry_settings.load
    return load({}, config=path)


@pytest.mark.parametrize("name", ["docs/reference/settings.md", "docs/reference/statuses.md"])
def test_the_tables_of_a_document_are_those_of_the_fields(name: str) -> None:
    written = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- generated: registry" in written
    assert written == generated(written), "run `make reference`"


@EACH
def test_the_example_file_is_that_of_the_fields(component: Component) -> None:
    stored = (ROOT / "systemd" / f"{component.name}.toml.example").read_text(encoding="utf-8")
    assert stored == example_file(component), "run `make reference`"


@EACH
def test_every_setting_has_one_key_and_the_true_default(component: Component) -> None:
    fields = component.settings.model_fields
    keys = {key.name: key for table in ("", ADVANCED) for key in keys_of(component, table)}
    assert set(keys) == set(fields)
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        stated = keys[name].default
        if stated is not None and not isinstance(default, BaseModel | dict | Path):
            value = tomllib.loads(f"value = {stated}")["value"]
            assert value == (list(default) if isinstance(default, tuple) else default) or value == str(
                default
            )


@EACH
def test_a_meaning_begins_in_lower_case_and_ends_without_a_full_stop(component: Component) -> None:
    tables = [table_model(field.annotation) for field in component.settings.model_fields.values()]
    for model in (component.settings, *(table for table in tables if table is not None)):
        for name, field in model.model_fields.items():
            if model.__name__ != "DeclaredModel":
                meaning = setting_of(field).meaning
                assert not meaning.endswith("."), name
                assert not meaning[0].isupper() or meaning.split()[0] in (
                    "CPU",
                    "GPU",
                    "Hugging",
                    "Ollama's",
                ), name


@EACH
def test_an_example_sets_only_what_is_required(component: Component, tmp_path: Path) -> None:
    required = {"registry_url"} if component.name == "agent" else set()
    assert set(tomllib.loads(example_file(component))) == required
    loaded(component, example_file(component), tmp_path)


@EACH
def test_every_key_can_be_switched_on(component: Component, tmp_path: Path) -> None:
    text = switched_on(example_file(component))
    left_out = tuple(f"{key} = " for key in NOT_TOGETHER)
    together = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith(left_out))
    settings = loaded(component, together, tmp_path)
    assert settings.model_fields_set >= set(component.settings.model_fields) - set(NOT_TOGETHER)
    assert set(tomllib.loads(text)[ADVANCED]) == advanced_names(component.settings)


@EACH
def test_the_manual_page_has_every_key_with_its_variable_and_option(component: Component) -> None:
    page = manual_page(component, date="2026-01-31", source="x")
    for key in all_keys(component):
        assert f".TP\n{bold(key.name)}\n" in page
        assert bold(key.variable) in page
        assert key.option is None or bold(key.option) in page


def test_a_default_of_paths_is_written_as_toml_has_it() -> None:
    class Settings(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="X_")

        folders: Annotated[tuple[Path, ...], Setting("folders")] = (Path("/srv/a"), Path("/srv/b"))

    (key,) = keys_of(Component("x", "x", Settings))
    assert (key.kind, key.default) == ("list of paths", '["/srv/a", "/srv/b"]')


@EACH
def test_bounds_are_stated_once_in_the_annotation(component: Component) -> None:
    tables = [table_model(field.annotation) for field in component.settings.model_fields.values()]
    for model in (component.settings, *(table for table in tables if table is not None)):
        for name, field in model.model_fields.items():
            if model.__name__ != "DeclaredModel":
                assert not re.search(r"\d|at most", setting_of(field).kind or ""), name


def test_the_kind_of_a_setting_follows_from_its_type() -> None:
    agents = {key.name: key.kind for key in all_keys(COMPONENTS["agent"])}
    assert agents["probe_interval_seconds"] == "seconds, 0.1 to 30"
    assert agents["deadline_seconds"] == "seconds, at most 10"
    assert agents["labels"] == "table of texts, at most 256"
    assert agents["max_temperature_c"] == "°C, 20 to 120"
    kinds = {key.name: key.kind for key in all_keys(COMPONENTS["registry"])}
    assert kinds["claim_ttl_seconds"] == "seconds"
    assert kinds["max_connections"] == "number, 1 to 1000000"
    assert kinds["max_cpu_percent"] == "percent"
    assert kinds["tls_cert_file"] == "path"
    assert kinds["auth"] == "`on`, `off`"
    assert kinds["required_models"] == "list of names"
