"""The program itself: `gpu-agent`, or `python -m gpu_agent.cli`.

It is loaded before everything else, so that a Ctrl-C while the rest is still loading ends the program as
quietly as a later one, and no stream can change a command's exit code. The child that reads the GPUs is
forked before anything else is loaded: it takes longest, and the command loads while it works.
"""

import gc
import sys

from gpu_agent.probe.nvml.forked_child import ForkedChild, fork_for

FAILED, INTERRUPTED = 1, 130


def main() -> int:
    """Run the command that the arguments name; returns the exit code."""
    gc.disable()  # loading commands makes no garbage; `cli.main` enables it again
    child = None
    try:
        child = fork_for(sys.argv[1:], _run_nvml_child)
        from gpu_agent.cli.output import streams

        streams.prepare_streams()
        return _flushed(_run(child))
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if child is not None:
            child.abandon()  # where the command ended without its answer
        gc.freeze()  # the process ends: collecting garbage would free nothing


def _run_nvml_child() -> None:
    from gpu_agent.probe.nvml import child

    child.main()


def _run(child: ForkedChild | None) -> int:
    from gpu_agent.cli.main import main as run_command

    return run_command(child=child)


def _flushed(code: int) -> int:
    """Flush the output; a success whose output could not be written is a failure."""
    from gpu_agent.cli.output import streams

    fault = streams.stdout_fault()
    if fault is None:
        return code
    streams.print_stderr(f"the output could not be written ({fault}); free some space, or send it elsewhere")
    return code or FAILED


if __name__ == "__main__":
    sys.exit(main())
