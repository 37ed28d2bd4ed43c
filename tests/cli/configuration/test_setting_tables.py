from pathlib import Path

import pytest

from gpu_agent.cli.configuration.setting_tables import DocumentedKey, documented
from gpu_agent.node.settings import AgentSettings
from gpu_agent.server.settings import RegistrySettings

PAGE = (Path(__file__).parents[3] / "docs" / "settings.md").read_text(encoding="utf-8")

SMALL = """# Settings

## The agent

| key | type | default | variable | meaning |
|---|---|---|---|---|
| `a` | `x`, `y` | `"x"` | `V_A` | this `\\|` that |
| `b` | number | none | `V_B` | so many |
| `c` | URL | required | `V_C` | where |
| `t` | table | `{}` | `V_T` | see below |

### `[t]`

What it is
about.

| key | type | default | variable | meaning |
|---|---|---|---|---|
| `d` | seconds | `60` | `V_T__D` | how long |

## The registry

Nothing.
"""


@pytest.mark.parametrize(
    ("component", "settings"), [("agent", AgentSettings), ("registry", RegistrySettings)]
)
def test_every_key_of_the_true_page_is_read(
    component: str, settings: type[AgentSettings | RegistrySettings]
) -> None:
    assert [key.key for key in documented(PAGE, component).keys] == list(settings.model_fields)


def test_a_row_is_read_with_and_without_a_default() -> None:
    a, b, c, t = documented(SMALL, "agent").keys
    assert a == DocumentedKey("a", "`x`, `y`", '"x"', required=False, variable="V_A", meaning="this `|` that")
    assert (b.default, b.required) == (None, False)
    assert (c.default, c.required) == (None, True)
    assert t.default == "{}"


def test_a_table_is_read_with_what_is_said_above_it() -> None:
    (table,) = documented(SMALL, "agent").tables
    assert (table.name, table.about) == ("t", "What it is about.")
    assert [key.variable for key in table.keys] == ["V_T__D"]


def test_each_half_has_its_own() -> None:
    registry = documented(SMALL, "registry")
    assert (registry.keys, registry.tables) == ((), ())
