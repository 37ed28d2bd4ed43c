"""Help that teaches: what a command does, an example that can be typed, and how it may end."""

import argparse
import textwrap
from collections.abc import Iterator, Mapping

from gpu_agent.cli.outcome import MEANINGS, ExitCode

_COLUMNS = 79
ASKING = (ExitCode.OK, ExitCode.CONFIGURATION, ExitCode.UNREACHABLE, ExitCode.REFUSED)
"""How every command may end that asks a registry or an agent."""
OF_THE_REGISTRY: Mapping[ExitCode, str] = {
    ExitCode.UNREACHABLE: "the registry could not be reached",
    ExitCode.REFUSED: "the registry refused the request",
}
OF_THE_AGENT: Mapping[ExitCode, str] = {
    ExitCode.UNREACHABLE: "no agent answers on this machine",
    ExitCode.REFUSED: "the agent refused the request",
}


def teach(
    parser: argparse.ArgumentParser,
    description: str,
    *,
    example: str,
    exits: Mapping[ExitCode, str] | None = None,
    asks: bool = True,
) -> None:
    """Say what a command does; `exits`: what is special about its end, `asks`: whether it asks anybody."""
    special = exits or {}
    of_whom = OF_THE_REGISTRY if parser.prog.startswith("gpu-agent registry ") else OF_THE_AGENT
    meanings = {**MEANINGS, ExitCode.OK: "done", **of_whom, **special}
    usual = ASKING if asks else (ExitCode.OK, ExitCode.CONFIGURATION)
    codes = {code: meanings[code] for code in sorted({*usual, *special})}
    parser.description = filled(description)
    parser.epilog = "\n".join(["example:", f"  {example}", "", "exit codes:", *codes_in_words(codes)])


def filled(words: str) -> str:
    """Fill paragraphs, which blank lines part, to the width of an old terminal."""
    paragraphs = (textwrap.fill(part, _COLUMNS, break_on_hyphens=False) for part in words.split("\n\n"))
    return "\n\n".join(paragraphs)


def codes_in_words(meanings: Mapping[ExitCode, str]) -> Iterator[str]:
    """One line for each exit code."""
    return (f"  {int(code):>3}  {meaning}" for code, meaning in meanings.items())
