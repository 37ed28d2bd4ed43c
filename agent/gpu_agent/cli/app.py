"""The `gpu-agent` command: finds the command's module, parses, and turns failures into exit codes.

Loads no command but the one that runs: `gpu-agent probe` must not pay for the others.
"""

import argparse
import gc
import os
import sys
from collections.abc import Iterable, Sequence

from gpu_agent.cli.commands import ROOT
from gpu_agent.cli.grammar import Command, Formatter, Group, Parser, parser_of
from gpu_agent.cli.outcome import MEANINGS, ExitCode, Failure
from gpu_agent.cli.streams import complain
from gpu_agent.cli.teaching import codes_in_words, filled
from gpu_agent.version import __version__

_LIKE = 0.75
"""From this likeness on an option is taken for another, mistyped: all begin alike."""
_OWN_OPTIONS = ("-h", "--help", "--version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the only place where an unexpected exception ends."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except Failure as failure:
        complain(str(failure))
        return failure.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as fault:
        if os.environ.get("GPU_AGENT_DEBUG"):
            raise
        complain(
            f"unexpected fault: {type(fault).__name__}: {fault}\n"
            "This is a bug. Run again with GPU_AGENT_DEBUG=1 and report what it prints."
        )
        return ExitCode.FAILED


def _run(words: Sequence[str]) -> int:
    place: Command | Group = ROOT
    path: tuple[str, ...] = ("gpu-agent",)
    rest = list(words)
    while isinstance(place, Group):
        parser = _parser_of_group(place, path)
        name = _named(parser, place, rest[:1])
        if name is None:
            return _about_group(parser, place, rest)
        place, path, rest = place.commands[name], (*path, name), rest[1:]
    configure, run = place.load()
    arguments = _parsed(parser_of(configure, path), rest)
    gc.enable()
    return run(arguments)


def _parser_of_group(group: Group, path: Sequence[str]) -> Parser:
    prog = " ".join(path)
    parser = Parser(
        prog=prog,
        usage=f"{prog} {group.what.upper()} ...",
        description=filled(group.description),
        epilog=_listed(group, path),
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    if group is ROOT:
        parser.add_argument("--version", action="version", version=f"gpu-agent {__version__}")
    return parser


def _listed(group: Group, path: Sequence[str]) -> str:
    """The commands by subject; for the program itself its exit codes too."""
    lines = []
    width = max(map(len, group.commands), default=0)
    for subject, commands in group.subjects.items():
        lines += [f"{subject}:", *(f"  {name:<{width}}  {one.summary}" for name, one in commands.items()), ""]
    lines.append(f"`{' '.join(path)} {group.what.upper()} --help` says more, with an example.")
    if group is ROOT:
        lines += ["", "exit codes:", *codes_in_words(MEANINGS)]
    return "\n".join(lines)


def _named(parser: Parser, group: Group, word: Sequence[str]) -> str | None:
    """The name that stands where one must; an option of a command has its place behind it."""
    if not word or word[0] in _OWN_OPTIONS:
        return None
    if word[0].startswith("-"):
        hint = (
            _nearest_option(parser, word) or f"; options stand behind the {group.what}: put {word[0]} there"
        )
        parser.error(f"no {group.what} is named before {word[0]}{hint}")
    if word[0] not in group.commands:
        nearest = _nearest(word[0], group.commands)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"there are: {', '.join(group.commands)}."
        parser.error(f"no {group.what} {word[0]!r}: {hint}")
    return word[0]


def _nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    """The one that was probably meant, if any; only a mistake costs the loading of the search."""
    import difflib

    return difflib.get_close_matches(word, list(known), 1, likeness)


def _about_group(parser: Parser, group: Group, words: Sequence[str]) -> int:
    """Only the program itself may be called without a command: it says what there is."""
    _parsed(parser, words)
    if group is not ROOT:
        parser.error(f"say which {group.what}: {', '.join(group.commands)}")
    parser.print_help()
    return ExitCode.OK


def _parsed(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        options = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        shown = " ".join(options or unknown)  # what is given to an option may be a secret
        parser.error(f"unrecognized arguments: {shown}{_nearest_option(parser, unknown)}")
    return arguments


def _nearest_option(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    """A hint at the option that was meant by the first unknown one that is like any."""
    known = [option for action in parser._actions for option in action.option_strings]  # noqa: SLF001 - argparse lists its options nowhere else
    for word in unknown:
        option = word.partition("=")[0]
        nearest = _nearest(option, known, _LIKE) if option.startswith("--") else []
        if nearest:
            return f"; did you mean {nearest[0]}?"
    return ""
