"""What people read about settings, generated from the settings' own fields.

    python -m tools.settings_docs           write the tables of docs/ and systemd/*.toml.example

`Setting` at a field is the only place where its meaning is written. From it come the tables of
docs/reference/settings.md and docs/reference/statuses.md, the example files, and the manual pages
agent.toml(5) and registry.toml(5). Text between the tables is written by hand.
"""

import json
import re
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from gpu_agent.node.setting_values import FreshReading
from gpu_agent.node.settings import AgentSettings
from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.config.fields import ADVANCED, setting_of
from gpu_agent.runtime.config.load import table_model
from gpu_agent.runtime.config.sources import variable_name
from gpu_agent.server.settings import RegistrySettings
from tools import roff
from tools.page_links import linked

ROOT = Path(__file__).parent.parent
_COLUMNS = 100
_UNBOUNDED = 1e8
"""A bound beyond this only keeps arithmetic finite; people do not see it."""
_MARK = re.compile(r"(<!-- generated: (?P<what>[a-z._]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Component:
    """A program with settings."""

    name: str
    command: str
    settings: type[BaseSettings]

    @property
    def prefix(self) -> str:
        """How its variables begin."""
        return str(self.settings.model_config["env_prefix"])


COMPONENTS: Mapping[str, Component] = {
    "agent": Component("agent", "gpu-agent run", AgentSettings),
    "registry": Component("registry", "gpu-agent registry serve", RegistrySettings),
}
TABLES: Mapping[str, str] = {
    "public_jobs": (
        "Conditions that keep jobs of the public pool away for a while although `accept_public_jobs` is "
        "true. The registry learns of it at once, both ways; running jobs and private ones are not "
        "affected. A condition that is not set does not apply."
    ),
    "checks": (
        "What the admission checks expect of this machine, and a command of the owner's that checks it. "
        "`gpu-agent check` runs them all; *Return to service* in the documentation says when the agent "
        "does. A check whose expectation is not set does not run, or only reports."
    ),
    "admission": (
        "The checks that nodes must pass before they take jobs. Without names every node is admitted, "
        "whatever its checks say (see *Return to service* in the documentation)."
    ),
    ADVANCED: "Settings that few machines need. Their variables have no `ADVANCED` in the name.",
}
ARRAYS: Mapping[str, str] = {
    "notify": (
        "Receivers of alarms, each in a table `[[notify]]` of its own (see *Alarms* in the documentation). "
        "The variable `GPU_REGISTRY_NOTIFY` has all of them as a JSON list. A reload applies them."
    ),
}
"""Settings that are lists of tables, whose keys are settings too."""


@dataclass(frozen=True, slots=True)
class Key:
    """One setting as people read of it. The meaning is Markdown."""

    name: str
    kind: str
    """Its type, with unit and bounds."""
    default: str | None
    """As TOML writes it; None where there is none."""
    unset: str | None
    """What counts then. Markdown."""
    required: bool
    variable: str
    """Empty for a key that has none."""
    option: str | None
    meaning: str
    example: str | None

    @property
    def stated_default(self) -> str:
        """The default in words."""
        if self.required:
            return "required"
        return self.unset or "none" if self.default is None else f"`{self.default}`"


def keys_of(component: Component, table: str = "") -> list[Key]:
    """List a component's keys above all tables of its file, or those of one table."""
    if table in ("", ADVANCED):
        settings = component.settings.model_fields
        return [
            _key(component.prefix, (name,), field)
            for name, field in settings.items()
            if setting_of(field).advanced is (table == ADVANCED)
        ]
    inner = table_model(component.settings.model_fields[table].annotation)
    assert inner is not None  # noqa: S101 - TABLES or ARRAYS names it
    keys = [_key(component.prefix, (table, name), field) for name, field in inner.model_fields.items()]
    return [replace(key, variable="") for key in keys] if table in ARRAYS else keys


def tables_of(component: Component) -> list[str]:
    """Name the tables that a component's file may have, besides those whose keys are the owner's own."""
    return [table for table in TABLES if table == ADVANCED or table in component.settings.model_fields]


def arrays_of(component: Component) -> list[str]:
    """Name the settings of a component that are lists of documented tables."""
    return [name for name in ARRAYS if name in component.settings.model_fields]


def markdown_table(keys: Iterable[Key]) -> str:
    """Write keys as a table."""
    lines = ["| key, variable, option | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        names = "<br>".join(f"`{name}`" for name in (key.name, key.variable, key.option) if name)
        cells = (names, key.kind, key.stated_default, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def thresholds_table() -> str:
    """Write what the registry decides by, shorter than the table of all settings."""
    names = {one.name for one in fields(Thresholds)}
    registry = COMPONENTS["registry"]
    keys = [
        key
        for table in ("", ADVANCED)
        for key in keys_of(registry, table)
        if key.name in names and key.name not in TABLES
    ]
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    lines += [
        f"| `{key.name}` | {(key.default or 'none').strip('[]') or 'none'} | {key.meaning} |" for key in keys
    ]
    return "\n".join(lines) + "\n"


def generated(document: str) -> str:
    """Write the generated parts of a document again: those between its marks."""

    def part(found: re.Match[str]) -> str:
        what = found["what"]
        if what == "registry.thresholds":
            return found[1] + linked(thresholds_table()) + found[3]
        component, _, table = what.partition(".")
        return found[1] + linked(markdown_table(keys_of(COMPONENTS[component], table))) + found[3]

    return _MARK.sub(part, document)


def example_file(component: Component) -> str:
    """Write the example file: every key, off unless it is required."""
    plain = [key for key in keys_of(component) if not _is_table(component, key)]
    own = [key for key in keys_of(component) if _is_table(component, key) and key.name not in TABLES]
    parts = [_head(component), *map(_example_key, plain)]
    for table in tables_of(component):
        parts.append(f"{_comment(TABLES[table])}\n#[{table}]")
        parts += map(_example_key, keys_of(component, table))
    return "\n\n".join([*parts, *map(_example_table, own)]) + "\n"


def switched_on(example: str) -> str:
    """Set every key of an example file."""
    return re.sub(r"^#(?=[a-z\[])", "", example, flags=re.MULTILINE)


def manual_page(component: Component, *, date: str, source: str) -> str:
    """Write the manual page of a component's file."""
    name = f"{component.name}.toml"
    of_program = component.command.replace(" ", "-")
    parts = [
        roff.heading(name, 5, date=date, source=source),
        roff.titled("NAME", f"{roff.escaped(name)} \\- settings of {roff.bold(component.command)}"),
        roff.titled("SYNOPSIS", roff.bold(f"/etc/gpu-agent/{name}")),
        roff.titled("DESCRIPTION", roff.paragraphs(_LAYERS), *_checking(component)),
        roff.titled("KEYS", *_entries(keys_of(component))),
    ]
    for table in tables_of(component):
        about = roff.paragraphs(TABLES[table])
        parts.append(roff.titled(f"KEYS in [{table}]", about, *_entries(keys_of(component, table))))
    for name in arrays_of(component):
        about = roff.paragraphs(ARRAYS[name])
        parts.append(roff.titled(f"KEYS in [[{name}]]", about, *_entries(keys_of(component, name))))
    parts.append(roff.titled("SEE ALSO", f"{roff.bold(of_program)}(1), {roff.bold('gpu-agent')}(1)"))
    return "\n".join(parts) + "\n"


_LAYERS = (
    "Settings are read in layers, the later over the earlier: defaults, this file, environment variables, "
    "options of the command. The file is TOML. Times are seconds, fractions are allowed. An unknown key is "
    "refused, and the error names the nearest known one. The variable of a key in a table has two "
    "underscores between the table and the key."
)


def _checking(component: Component) -> Iterator[str]:
    commands = {
        f"gpu-agent config check {component.name}": "lists every fault of the file, with its line.",
        f"gpu-agent config show {component.name}": "shows every value, and where it comes from.",
    }
    entries = (roff.entry(roff.bold(command), roff.words_of(about)) for command, about in commands.items())
    yield roff.subtitled("To check it", *entries)


def _entries(keys: Iterable[Key]) -> Iterator[str]:
    for key in keys:
        facts = "; ".join(
            [key.kind, _default_of(key), *(f"`{name}`" for name in (key.variable, key.option) if name)]
        )
        yield roff.entry(
            roff.bold(key.name), roff.words_of(f"{key.meaning}."), ".br", roff.words_of(f"({facts})")
        )


def _default_of(key: Key) -> str:
    words = {"required": "required", "none": "no default"}
    return words.get(key.stated_default, f"default {key.stated_default}")


def _head(component: Component) -> str:
    name = component.name
    return _comment(
        f"/etc/gpu-agent/{name}.toml: settings of `{component.command}`. Every key is here. A line that "
        "begins with # and no blank is off, and shows the default where there is one. Times are seconds. A "
        "variable overrides this file, an option overrides both. "
        f"`gpu-agent config check {name}` lists all faults, "
        f"`gpu-agent config show {name}` shows every value and where it comes from."
    )


def _example_key(key: Key) -> str:
    value = key.default if key.default is not None else key.example
    assert value is not None, f"{key.name} has neither a default nor an example"  # noqa: S101 - a test writes all
    return f"{_about(key)}\n{'' if key.required else '#'}{key.name} = {value}"


def _example_table(key: Key) -> str:
    heading = f"[[{key.name}]]" if key.kind.startswith("list of tables") else f"[{key.name}]"
    return "\n".join([_about(key), *(f"#{line}" for line in (heading, *(key.example or "").splitlines()))])


def _about(key: Key) -> str:
    meaning = key.meaning.removesuffix(", see below")
    sentence = f"{meaning[0].upper()}{meaning[1:]}." if meaning[0].isalpha() else f"{meaning}."
    default = _default_of(key).replace("`", "")
    return f"{_comment(sentence)}\n{_comment(f'{key.kind}; {default}; {key.variable}')}"


def _comment(words: str) -> str:
    bare = words.replace("`", "")
    return textwrap.fill(bare, _COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _is_table(component: Component, key: Key) -> bool:
    return "table" in key.kind and key.name in component.settings.model_fields


def _key(prefix: str, path: tuple[str, ...], field: FieldInfo) -> Key:
    setting = setting_of(field)
    required = field.is_required()
    return Key(
        name=path[-1],
        kind=_kind_of(path[-1], _annotation_of(field), stated=setting.kind),
        default=None if required else _toml(field.get_default(call_default_factory=True, validated_data={})),
        unset=setting.unset,
        required=required,
        variable=variable_name(prefix, path),
        option=setting.option,
        meaning=setting.meaning,
        example=setting.example,
    )


def _annotation_of(field: FieldInfo) -> object:
    """The annotation with its bounds again, which pydantic takes apart."""
    bounds = [one for one in field.metadata if isinstance(one, Ge | Gt | Le | Lt | MaxLen | FreshReading)]
    return Annotated[(field.annotation, *bounds)] if bounds else field.annotation


def _kind_of(name: str, annotation: object, *, stated: str | None) -> str:
    """Say what kind of value a key takes: as it is stated, or as the annotation shows; and its bounds."""
    bare, bounds = _taken_apart(annotation)
    kind, range_ = stated or _shown_kind(name, bare), _range(*bounds)
    return f"{kind}, {range_}" if range_ else kind


def _shown_kind(name: str, bare: object) -> str:
    origin, inner = get_origin(bare), get_args(bare)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin is tuple:
        return "list of paths" if _taken_apart(inner[0])[0] is Path else "list of names"
    if bare is bool:
        return "true or false"
    if bare in (int, float):
        return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "number")
    return "path" if bare is Path else "text"


_UNITS = {"_seconds": "seconds", "_percent": "percent"}


def _range(low: float | None, high: float | None) -> str:
    shown_high = high if high is not None and high < _UNBOUNDED and high != 100 else None  # noqa: PLR2004 - of percent
    if low and shown_high is None:
        return f"from {low:.12g}" if low > 1 else ""
    if shown_high is None:
        return "from 0" if low == 0 and high is None else ""
    return f"at most {shown_high:.12g}" if low is None else f"{low:g} to {shown_high:.12g}"


def _taken_apart(annotation: object) -> tuple[object, tuple[float | None, float | None]]:
    """Remove `Annotated` and `| None`; returns the bare type and its bounds."""
    low: float | None = None
    high: float | None = None
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *metadata = get_args(annotation)
            for one in metadata:
                for bound in getattr(one, "metadata", [one]):
                    if isinstance(bound, Ge):
                        low = float(bound.ge)  # type: ignore[arg-type]  # a number of ours
                    elif isinstance(bound, Le):
                        high = float(bound.le)  # type: ignore[arg-type]  # as above
                    elif isinstance(bound, MaxLen):
                        high = bound.max_length
                    elif isinstance(bound, FreshReading):
                        high = bound.most_seconds
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(one for one in get_args(annotation) if one is not types.NoneType)
        else:
            return annotation, (low, high)


def _toml(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, BaseModel | Mapping):
        return "{}"
    if isinstance(value, Path | Address):
        return json.dumps(str(value))
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.12g}"
    return json.dumps(value, default=str)


def main() -> int:
    """Write the documents and the example files."""
    for path in (ROOT / "docs" / "reference" / "settings.md", ROOT / "docs" / "reference" / "statuses.md"):
        path.write_text(generated(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name, component in COMPONENTS.items():
        (ROOT / "systemd" / f"{name}.toml.example").write_text(example_file(component), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
