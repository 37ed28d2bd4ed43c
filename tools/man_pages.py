"""The manual pages of commands and settings files: `python -m tools.man_pages DIR`.

They are generated from the commands' own help and from the settings' fields. SOURCE_DATE_EPOCH dates them, so
that the same source makes the same pages.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gpu_agent.cli.command import MEANINGS
from gpu_agent.cli.declaration import OWN, Argument, Command, Group, Option, shown
from gpu_agent.cli.groups import ROOT
from gpu_agent.version import __version__
from tools import settings_docs
from tools.cli_reference import commands
from tools.roff import (
    bold,
    entry,
    escaped,
    example,
    heading,
    italic,
    paragraphs,
    subtitled,
    titled,
    words_of,
)

SOURCE = f"gpu-agent {__version__}"


def pages(*, date: str) -> Mapping[str, str]:
    """Write every page, by the name of its file."""
    written = {f"{name_of(group.path)}.1": _group(group, date) for group in _groups()}
    for _, command in commands():
        written[f"{name_of(command.path)}.1"] = _command(command, date)
    for name, component in settings_docs.COMPONENTS.items():
        written[f"{name}.toml.5"] = settings_docs.manual_page(component, date=date, source=SOURCE)
    return written


def name_of(path: str) -> str:
    """The page of a command, as `man` finds it."""
    return path.replace(" ", "-")


def _groups(group: Group = ROOT) -> Iterator[Group]:
    yield group
    for one in group.entries.values():
        if isinstance(one, Group):
            yield from _groups(one)


def _group(group: Group, date: str) -> str:
    about = (
        "says what each GPU machine has, and whether it may take a job" if group is ROOT else group.summary
    )
    name = name_of(group.path)
    subjects = (
        subtitled(subject, *(_listed(f"{group.path} {one}", entry.summary) for one, entry in entries.items()))
        for subject, entries in group.subjects.items()
    )
    above = () if group is ROOT else (_see_above(group.path),)
    return _page(
        heading(name, 1, date=date, source=SOURCE),
        titled("NAME", f"{escaped(name)} \\- {escaped(about)}"),
        titled("SYNOPSIS", f"{bold(group.path)} {escaped(group.what.upper())} ..."),
        titled("DESCRIPTION", paragraphs(group.about), *subjects),
        *(_of_the_whole() if group is ROOT else ()),
        *above,
    )


def _see_above(path: str) -> str:
    return titled("SEE ALSO", f"{bold(name_of(path.rpartition(' ')[0]))}(1)")


def _listed(path: str, summary: str) -> str:
    return entry(f"{bold(name_of(path))}(1)", words_of(summary))


def _of_the_whole() -> Iterator[str]:
    yield titled("EXIT STATUS", *_codes((str(int(code)), words) for code, words in MEANINGS.items()))
    files = {
        "/etc/gpu-agent/agent.toml": "settings of the agent, `agent.toml`(5)",
        "/etc/gpu-agent/registry.toml": "settings of the registry, `registry.toml`(5)",
    }
    yield titled("FILES", *(entry(bold(path), words_of(about)) for path, about in files.items()))
    yield titled("SEE ALSO", f"{bold('agent.toml')}(5), {bold('registry.toml')}(5)")


def _command(command: Command, date: str) -> str:
    name = name_of(command.path)
    usage = command.usage.removeprefix(command.path)
    return _page(
        heading(name, 1, date=date, source=SOURCE),
        titled("NAME", f"{escaped(name)} \\- {escaped(_summary(command))}"),
        titled("SYNOPSIS", f"{bold(command.path)}{escaped(usage)}"),
        titled("DESCRIPTION", paragraphs(command.declared.about)),
        titled("OPTIONS", *_options(command)),
        titled("EXAMPLES", example([command.declared.example])),
        titled("EXIT STATUS", *_codes((str(int(code)), words) for code, words in command.exits.items())),
        _see_above(command.path),
    )


def _summary(command: Command) -> str:
    """The line about a command in the list that it stands in."""
    group: Group = ROOT
    *above, last = command.path.split()[1:]
    for word in above:
        inner = group.entries[word]
        assert isinstance(inner, Group)  # noqa: S101 - a command's own words lead to it
        group = inner
    return group.entries[last].summary


def _options(command: Command) -> Iterator[str]:
    if command.takes:
        yield "\n".join(entry(_term(one), words_of(one.about)) for one in command.takes)
    for subject, options in command.subjects.items():
        entries = [entry(_term(one), words_of(one.help or "")) for one in options]
        yield "\n".join(entries) if subject == OWN else subtitled(subject, *entries)


def _term(param: Option | Argument) -> str:
    if isinstance(param, Argument):
        return italic(shown(param))
    *short, last = param.opts
    value = shown(param).removeprefix(last).strip()
    named = " ".join([bold(last), *([italic(value)] if value else [])])
    return ", ".join([*map(bold, short), named])


def _codes(codes: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (entry(bold(code), words_of(f"{meaning}.")) for code, meaning in codes)


def _page(*parts: str) -> str:
    return "\n".join(parts) + "\n"


def main(arguments: Iterable[str]) -> int:
    """Write the pages into the folder that is named."""
    (folder,) = map(Path, arguments)
    moment = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    date = time.strftime("%Y-%m-%d", time.gmtime(moment))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(date=date).items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
