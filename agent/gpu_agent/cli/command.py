"""How commands end, and the values that they take. Loads nothing: `gpu-agent probe` needs it."""

from collections.abc import Mapping
from enum import IntEnum
from types import SimpleNamespace

Arguments = SimpleNamespace
"""The values that a command received, by name."""


class ExitCode(IntEnum):
    """The exit codes of every command; `gpu-agent --help` lists them."""

    OK = 0
    FAILED = 1
    NO_GPU = 2
    DRIVER_BROKEN = 3
    CONFIGURATION = 4
    UNREACHABLE = 5
    REFUSED = 6
    NO_NODE = 7
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done; for `probe`: this machine could register",
    ExitCode.FAILED: "failed; the last line says why",
    ExitCode.NO_GPU: "no GPU or no driver on this machine",
    ExitCode.DRIVER_BROKEN: "the GPU driver is there but does not answer properly",
    ExitCode.CONFIGURATION: "wrong arguments or configuration",
    ExitCode.UNREACHABLE: "the registry, or the agent of this machine, could not be reached",
    ExitCode.REFUSED: "the registry, or the agent of this machine, refused the request",
    ExitCode.NO_NODE: "no node can take the job now",
    ExitCode.INTERRUPTED: "interrupted",
}


class Failure(Exception):  # noqa: N818 - an outcome for a person, not a fault of the program
    """A command could not do its work: a sentence with the next step, and the exit code."""

    def __init__(self, sentence: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(sentence)
        self.code = code


EXITS_OF_REQUESTS = (ExitCode.OK, ExitCode.CONFIGURATION, ExitCode.UNREACHABLE, ExitCode.REFUSED)
"""The exit codes of every command that makes a request to a registry or an agent."""
REGISTRY_MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.UNREACHABLE: "the registry could not be reached",
    ExitCode.REFUSED: "the registry refused the request",
}
AGENT_MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.UNREACHABLE: "no agent answers on this machine",
    ExitCode.REFUSED: "the agent refused the request",
}


def whole_number(text: str) -> int:
    """Read a whole number; like all that follow it raises `ValueError` with what is wrong."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


def positive_number(text: str) -> int:
    """Read a whole number above zero."""
    number = whole_number(text)
    if number < 1:
        raise ValueError(f"{text} is not at least 1")
    return number


def capability(text: str) -> str:
    """Read a compute capability such as `8.0`."""
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and (minor.isdecimal() or text == major)):
        raise ValueError(f"{text!r} is no compute capability: write it like 8.0")
    return text


def label_pair(text: str) -> tuple[str, str]:
    """Read `key=value`."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"{text!r} is no label: write it like zone=a")
    return key, value
