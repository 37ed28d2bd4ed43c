"""The manual pages of the settings, agent.toml(5) and registry.toml(5), out of `docs/settings.md`."""

from collections.abc import Iterable, Iterator

from gpu_agent.cli.configuration.setting_tables import DocumentedKey, documented
from gpu_agent.cli.documents.example_files import HALVES
from gpu_agent.cli.documents.roff import (
    bold,
    entry,
    escaped,
    heading,
    paragraphs,
    subtitled,
    titled,
    words_of,
)

_LAYERS = (
    "Settings are read in layers, the later over the earlier: defaults, this file, variables of the "
    "environment, options of the command. The file is TOML. Times are seconds, fractions welcome. A key that "
    "does not exist is refused, and the nearest that does is named. Of a key in a table the variable has two "
    "underscores between the table and the key."
)


def page(document: str, component: str, *, date: str, source: str) -> str:
    """Write the page of one half's file."""
    keys = documented(document, component)
    name = f"{component}.toml"
    parts = [
        heading(name, 5, date=date, source=source),
        titled("NAME", f"{escaped(name)} \\- what {bold(HALVES[component])} is told"),
        titled("SYNOPSIS", f"{bold(f'/etc/gpu-agent/{name}')}"),
        titled("DESCRIPTION", paragraphs(_LAYERS), *_checking(component)),
        titled("KEYS", *_entries(keys.keys)),
        *(
            titled(f"KEYS in [{table.name}]", paragraphs(table.about), *_entries(table.keys))
            for table in keys.tables
        ),
        titled("SEE ALSO", _see_also(component)),
    ]
    return "\n".join(parts) + "\n"


def _checking(component: str) -> Iterator[str]:
    commands = [
        (f"gpu-agent config check {component}", "tells every fault of the file, with its line."),
        (f"gpu-agent config show {component}", "shows what holds, and where each value comes from."),
    ]
    yield subtitled("To check it", *(entry(bold(command), words_of(about)) for command, about in commands))


def _entries(keys: Iterable[DocumentedKey]) -> Iterator[str]:
    for key in keys:
        default = "required" if key.required else f"default `{key.default}`" if key.default else "no default"
        facts = f"{key.kind}; {default}; `{key.variable}`"
        yield entry(bold(key.key), words_of(f"{key.meaning}."), ".br", words_of(f"({facts})"))


def _see_also(component: str) -> str:
    command = "gpu-agent-run" if component == "agent" else "gpu-agent-registry-serve"
    return f"{bold(command)}(1), {bold('gpu-agent')}(1)"
