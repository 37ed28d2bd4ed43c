"""The manual pages of commands and settings files: `python -m tools.man_pages DIR`.

They are generated from the commands' own help and from the settings' fields. SOURCE_DATE_EPOCH dates them, so
that the same source makes the same pages.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gpu_agent.cli.command import MEANINGS, Group, Parser
from gpu_agent.cli.main import ROOT
from gpu_agent.version import __version__
from tools import settings_docs
from tools.cli_reference import commands, shown, taught
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
    written = {f"{name_of(words)}.1": _group(group, words, date) for words, group in _groups()}
    for _, parser in commands():
        written[f"{name_of(tuple(parser.prog.split()))}.1"] = _command(parser, date)
    for name, component in settings_docs.COMPONENTS.items():
        written[f"{name}.toml.5"] = settings_docs.manual_page(component, date=date, source=SOURCE)
    return written


def name_of(words: tuple[str, ...]) -> str:
    """The page of a command, as `man` finds it."""
    return "-".join(words)


def _groups(
    group: Group = ROOT, words: tuple[str, ...] = ("gpu-agent",)
) -> Iterator[tuple[tuple[str, ...], Group]]:
    yield words, group
    for name, one in group.commands.items():
        if isinstance(one, Group):
            yield from _groups(one, (*words, name))


def _group(group: Group, words: tuple[str, ...], date: str) -> str:
    about = (
        "says what each GPU machine has, and whether it may take a job" if group is ROOT else group.summary
    )
    typed = " ".join(words)
    subjects = (
        subtitled(subject, *(_listed((*words, name), one.summary) for name, one in entries.items()))
        for subject, entries in group.subjects.items()
    )
    above = () if group is ROOT else (titled("SEE ALSO", f"{bold(name_of(words[:-1]))}(1)"),)
    return _page(
        heading(name_of(words), 1, date=date, source=SOURCE),
        titled("NAME", f"{escaped(name_of(words))} \\- {escaped(about)}"),
        titled("SYNOPSIS", f"{bold(typed)} {escaped(group.what.upper())} ..."),
        titled("DESCRIPTION", paragraphs(group.description), *subjects),
        *(_of_the_whole() if group is ROOT else ()),
        *above,
    )


def _listed(words: tuple[str, ...], summary: str) -> str:
    return entry(f"{bold(name_of(words))}(1)", words_of(summary))


def _of_the_whole() -> Iterator[str]:
    yield titled("EXIT STATUS", *_codes((str(int(code)), words) for code, words in MEANINGS.items()))
    files = {
        "/etc/gpu-agent/agent.toml": "settings of the agent, `agent.toml`(5)",
        "/etc/gpu-agent/registry.toml": "settings of the registry, `registry.toml`(5)",
    }
    yield titled("FILES", *(entry(bold(path), words_of(about)) for path, about in files.items()))
    yield titled("SEE ALSO", f"{bold('agent.toml')}(5), {bold('registry.toml')}(5)")


def _command(parser: Parser, date: str) -> str:
    name = name_of(tuple(parser.prog.split()))
    sample, exits = taught(parser)
    description = parser.description or ""
    *above, _ = parser.prog.split()
    return _page(
        heading(name, 1, date=date, source=SOURCE),
        titled("NAME", f"{escaped(name)} \\- {escaped(_summary(parser))}"),
        titled("SYNOPSIS", _synopsis(parser)),
        titled("DESCRIPTION", paragraphs(description)),
        titled("OPTIONS", *_options(parser)),
        titled("EXAMPLES", example(sample.splitlines())),
        titled("EXIT STATUS", *_codes(exits)),
        titled("SEE ALSO", f"{bold(name_of(tuple(above)))}(1)"),
    )


def _summary(parser: Parser) -> str:
    """The line about a command in the list that it stands in."""
    group: Group = ROOT
    *above, last = parser.prog.split()[1:]
    for word in above:
        inner = group.commands[word]
        assert isinstance(inner, Group)  # noqa: S101 - a command's own words lead to it
        group = inner
    return group.commands[last].summary


def _synopsis(parser: Parser) -> str:
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    return f"{bold(parser.prog)}{escaped(usage.removeprefix(parser.prog))}"


def _options(parser: Parser) -> Iterator[str]:
    for group in parser._action_groups:  # noqa: SLF001 - argparse lists its options nowhere else
        entries = [entry(_term(action), words_of(action.help or "")) for action in group._group_actions]  # noqa: SLF001 - as above
        usual = group.title in ("options", "positional arguments")
        if entries:
            yield "\n".join(entries) if usual else subtitled(group.title or "", *entries)


def _term(action: argparse.Action) -> str:
    *short, last = action.option_strings or ("",)
    value = shown(action).removeprefix(last).strip()
    named = " ".join([*([bold(last)] if last else []), *([italic(value)] if value else [])])
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
