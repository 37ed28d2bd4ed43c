"""All commands as Markdown, from their own help: `make reference` writes docs/reference/cli.md.

What a person wrote there above the mark stays. It says nothing that `--help` does not.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpu_agent.cli.command import AGENT_MEANINGS, MEANINGS, REGISTRY_MEANINGS, ExitCode
from gpu_agent.cli.declaration import Command, Group, fill_paragraphs, shown
from gpu_agent.cli.groups import ROOT
from tools.page_links import linked

MARK = "<!-- From here on: `make reference` writes what the commands say of themselves. -->\n"
EVERYWHERE = (
    "--server",
    "--token-file",
    "--insecure-plaintext",
    "--tls-ca-file",
    "--tls-cert-file",
    "--tls-key-file",
)
"""Options of every command that asks a registry, explained once, above the mark."""
_USUAL = frozenset({MEANINGS[ExitCode.CONFIGURATION], *REGISTRY_MEANINGS.values(), *AGENT_MEANINGS.values()})


def commands(group: Group = ROOT) -> Iterator[tuple[str, Command]]:
    """Yield every command and the subject that it stands under, in the order of the help."""
    for subject, entries in group.subjects.items():
        for name in entries:
            one = group.command(name)
            if isinstance(one, Group):
                yield from commands(one)
            else:
                yield _heading(group, subject), one


def reference() -> str:
    """Write all commands, by subject."""
    parts, under = [], ""
    for subject, command in commands():
        if subject != under:
            parts.append(f"## {subject}")
            under = subject
        parts += _command(command)
    return linked("\n\n".join(parts) + "\n")


def written(document: str) -> str:
    """A document with the reference behind its mark."""
    return document.partition(MARK)[0] + MARK + "\n" + reference()


def _heading(group: Group, subject: str) -> str:
    if group is ROOT:
        return subject[0].upper() + subject[1:]
    return f"`{group.path}`: {subject}"


def _command(command: Command) -> Iterator[str]:
    yield f"### `{' '.join([command.path, *map(shown, command.takes)])}`"
    yield fill_paragraphs(command.declared.about)
    rows = list(_rows(command))
    if rows:
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows])
    yield f"```sh\n{command.declared.example}\n```"
    special = [
        f"`{int(code)}` ({meaning})" for code, meaning in command.exits.items() if meaning not in _USUAL
    ]
    yield f"Ends with {', '.join(special)}; else as always."


def _rows(command: Command) -> Iterator[str]:
    for argument in command.takes:
        yield f"| `{shown(argument)}` | {_cell(argument.about)} |"
    explained = {"--help", "--socket"}
    if any("--server" in param.opts for param in command.params):  # `run` has options of the same names
        explained |= {*EVERYWHERE}
    for options in command.subjects.values():
        for option in options:
            if not explained & set(option.opts):
                yield f"| `{shown(option)}` | {_cell(option.help or '')} |"


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


def main(arguments: Iterable[str]) -> int:
    """Write the reference into the documents that are named."""
    for name in arguments:
        path = Path(name)
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
