"""The `gpu-agent` program: how its words find a command, and how failures become exit codes.

`gpu-agent probe` with plain options goes its own way: it needs no click, and answers sooner.
"""

import gc
import os
import sys
from collections.abc import Sequence

from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.probe.nvml.forked_child import ForkedChild

_COMPLETE_VARIABLE = "_GPU_AGENT_COMPLETE"
_PLAIN = {"--json": "json", "--register-preview": "register_preview"}
"""The options of `probe` that need no parser."""
_NO_THREAD = "can't start new thread"
"""How Python reports it; a class of its own for it there is none."""
_NO_THREAD_SENTENCE = (
    "no thread or process can be started: this user, service or container has as many as it may. End some, "
    "or raise the limit: `ulimit -u`, TasksMax of the unit, or pids.max of the container"
)


def main(argv: Sequence[str] | None = None, *, child: ForkedChild | None = None) -> int:
    """Run one command; the only place where an unexpected exception ends.

    `child` reads the GPUs for it already, if it is given.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words, child)
    except Failure as failure:
        print_stderr(str(failure))
        return failure.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as fault:
        if os.environ.get("GPU_AGENT_DEBUG"):
            raise
        if _NO_THREAD in str(fault):
            print_stderr(_NO_THREAD_SENTENCE)
            return ExitCode.FAILED
        print_stderr(
            f"unexpected fault: {type(fault).__name__}: {fault}\n"
            "This is a bug. Run again with GPU_AGENT_DEBUG=1 and report what it prints."
        )
        return ExitCode.FAILED


def _run(words: Sequence[str], child: ForkedChild | None) -> int:
    probe = _plain_probe(words, child)
    if probe is not None:
        from gpu_agent.cli.agent.probe import main as run_probe

        gc.enable()
        return run_probe(probe)
    from gpu_agent.cli import groups
    from gpu_agent.cli.declaration import run

    instruction = os.environ.get(_COMPLETE_VARIABLE)
    if instruction:
        return groups.complete(instruction)
    return run(groups.ROOT, words, child)


def _plain_probe(words: Sequence[str], child: ForkedChild | None) -> Arguments | None:
    """Read the words of a `probe` with options that take no value; None for any others."""
    if words[:1] != ["probe"] or not _PLAIN.keys() >= set(words[1:]) or _COMPLETE_VARIABLE in os.environ:
        return None
    given = {name: option in words for option, name in _PLAIN.items()}
    return Arguments(child=child, watch=False, simulate=None, config=None, state_dir=None, **given)
