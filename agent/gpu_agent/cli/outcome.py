"""How a command ends: exit codes, and the failure that carries one with a sentence."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command; `gpu-agent --help` lists them."""

    OK = 0
    FAILED = 1
    NO_GPU = 2
    DRIVER_BROKEN = 3
    CONFIGURATION = 4
    UNREACHABLE = 5
    REFUSED = 6
    NOBODY = 7
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done; for `probe`: this machine could register",
    ExitCode.FAILED: "failed; the last line says why",
    ExitCode.NO_GPU: "no GPU or no driver on this machine",
    ExitCode.DRIVER_BROKEN: "the GPU driver is there but does not answer properly",
    ExitCode.CONFIGURATION: "wrong arguments or configuration",
    ExitCode.UNREACHABLE: "the registry, or the agent of this machine, could not be reached",
    ExitCode.REFUSED: "the registry, or the agent of this machine, refused the request",
    ExitCode.NOBODY: "no node can take the job now",
    ExitCode.INTERRUPTED: "interrupted",
}


class Failure(Exception):  # noqa: N818 - it is an outcome, told to a person, not a fault of the program
    """A command could not do its work: a sentence with the next step, and the exit code."""

    def __init__(self, sentence: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(sentence)
        self.code = code
