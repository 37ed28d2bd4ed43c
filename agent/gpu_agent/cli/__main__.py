"""The program itself: `gpu-agent`, or `python -m gpu_agent.cli`.

It stands in front of everything else, so that a Ctrl-C while the rest is still loading ends the
program as quietly as a later one, and no stream can keep a command from its exit code.
"""

import gc
import sys

from gpu_agent.cli.output import streams

FAILED, INTERRUPTED = 1, 130


def main() -> int:
    """Run the command that the arguments name; returns the exit code."""
    gc.disable()  # while commands are loaded, which makes no garbage; `app` turns it on again
    try:
        streams.prepare_streams()
        return _told(_ended())
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        gc.freeze()  # what is left goes with the process: searching it for garbage frees nothing


def _ended() -> int:
    try:
        from gpu_agent.cli.main import main as run

        return run()
    except SystemExit as end:  # argparse, after --help and --version
        return end.code if isinstance(end.code, int) else 0


def _told(code: int) -> int:
    """Let go of the output; a success whose output nobody has is none."""
    fault = streams.stdout_fault()
    if fault is None:
        return code
    streams.print_stderr(f"the output could not be written ({fault}); free some space, or send it elsewhere")
    return code or FAILED


if __name__ == "__main__":
    sys.exit(main())
