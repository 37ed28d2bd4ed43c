import shutil
import tomllib
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from gpu_agent.cli.config import COMPONENTS
from gpu_agent.cli.documents.example_files import main, switched_on, written

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "settings.md"
DOCUMENT = PAGE.read_text(encoding="utf-8")
TO_BE_LEFT_OUT = ("auth",)
"""Keys that cannot be set beside all others; they are what they are by default."""


def loaded(component: str, text: str, folder: Path) -> BaseSettings:
    path = folder / f"{component}.toml"
    path.write_text(text, encoding="utf-8")
    return COMPONENTS[component].load({}, path)


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_files_beside_the_units_are_those_of_the_page(component: str) -> None:
    kept = (ROOT / "systemd" / f"{component}.toml.example").read_text(encoding="utf-8")
    assert kept == written(DOCUMENT, component), "run `make reference`"


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_example_sets_no_more_than_is_needed(component: str, tmp_path: Path) -> None:
    needed = {"registry_url": "wss://registry.example:8080/ws/node"} if component == "agent" else {}
    assert tomllib.loads(written(DOCUMENT, component)) == needed
    loaded(component, written(DOCUMENT, component), tmp_path)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_key_is_there_and_can_be_switched_on(component: str, tmp_path: Path) -> None:
    on = tomllib.loads(switched_on(written(DOCUMENT, component)))
    assert set(on) == set(COMPONENTS[component].kind.model_fields)
    kept = "".join(
        f"{line}\n"
        for line in switched_on(written(DOCUMENT, component)).splitlines()
        if not line.startswith(tuple(f"{key} = " for key in TO_BE_LEFT_OUT))
    )
    settings = loaded(component, kept, tmp_path)
    assert settings.model_fields_set >= set(on) - set(TO_BE_LEFT_OUT)


def test_a_file_is_written_for_each_half(tmp_path: Path) -> None:
    shutil.copy(PAGE, tmp_path / "settings.md")
    assert main([str(tmp_path / "settings.md"), str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.example")} == {
        f"{component}.toml.example" for component in COMPONENTS
    }


def test_a_key_without_default_and_example_is_filled_by_its_type() -> None:
    row = "| `new_file` | path | none | `GPU_REGISTRY_NEW_FILE` | a file |\n"
    head, rest = DOCUMENT.split("| `store` |", 1)
    assert '\n#new_file = "/etc/gpu-agent/file"\n' in written(f"{head}{row}| `store` |{rest}", "registry")
