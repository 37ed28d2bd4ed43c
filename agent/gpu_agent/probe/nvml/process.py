"""The NVML child seen from outside: how it is started, asked, and what its end means.

Shared by the daemon's path (`nvml`) and the command's (`once`). It waits for
nothing, and it kills nothing: killing a process inside the driver has frozen GPUs.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

CHILD_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "gpu_agent.probe.nvml.child")
"""`-P`: a file in the working directory must never pass for a module of the child's."""

_OURS = ("GPU_AGENT_", "GPU_REGISTRY_")
_SECRET_PARTS = ("TOKEN", "SECRET", "PASSW", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "PROXY")
"""Parts of names: what no driver needs, and a child that hangs in one would hold for as long as it hangs."""

DEADLINE_SECONDS = 5.0
"""How long one reading of all GPUs may take."""


def spawn(
    command: Sequence[str], *, env: Mapping[str, str] | None, keep_stderr: bool = False
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that a Ctrl-C meant for us does not reach it.

    Raises:
        OSError: the machine would not start it.
    """
    return subprocess.Popen(  # noqa: S603 - our own interpreter, or what the caller configured
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if keep_stderr else subprocess.DEVNULL,
        env=_without_credentials(os.environ if env is None else env),
        start_new_session=True,
    )


def send_request(
    process: subprocess.Popen[bytes],
    ask_id: int,
    *,
    fresh: bool = False,
    listen: bool = False,
    silent: Mapping[str, object] | None = None,
) -> None:
    """Ask for one reading of all but the silent GPUs; a child that is gone already will say so by its end."""
    said = {"id": ask_id, "ask": "read", "fresh": fresh, "listen": listen}
    line = json.dumps({**said, "silent": silent} if silent else said)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()


def close_stdin(process: subprocess.Popen[bytes]) -> None:
    """Close the child's stdin: it ends as soon as the driver lets it."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def hung_sentence(seconds: float) -> str:
    """Say that the driver let the deadline pass, with the next step."""
    return (
        f"NVML did not answer within {seconds:g} s (nvml_hung): the driver or a GPU is stuck; "
        "see `dmesg` for Xid or NVRM messages, and reboot if it stays."
    )


def stuck_sentence(pid: int) -> str:
    """Say that the driver still holds a child of an earlier look, with the next step."""
    return (
        f"NVML still holds process {pid}, which asked it before and was told to end (nvml_hung): the driver "
        "or a GPU is stuck; see `dmesg` for Xid or NVRM messages, and reboot if it stays."
    )


def death_sentence(returncode: int, stderr: bytes = b"") -> str:
    """Say how the child ended without an answer, with the next step."""
    if returncode < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = f"was ended by {names.get(-returncode, f'signal {-returncode}')}"
    else:
        how = f"left with exit status {returncode}"
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    said = f", saying {lines[-1].strip()!r}" if lines else ""
    return (
        f"The process that asks the NVIDIA driver {how}{said} (nvml_child_died): "
        "run `nvidia-smi`; if it fails too, reinstall the driver."
    )


def _without_credentials(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not _is_secret(name.upper())}


def _is_secret(name: str) -> bool:
    return name.startswith(_OURS) or any(part in name for part in _SECRET_PARTS)
