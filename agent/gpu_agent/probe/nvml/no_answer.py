"""Why an NVML child gives no answer, as sentences, and how long an answer is awaited."""

DEADLINE_SECONDS = 5.0
"""How long one reading of all GPUs may take."""


def hung_sentence(seconds: float) -> str:
    """Say that the driver let the deadline pass, with the next step."""
    return (
        f"NVML did not answer within {seconds:g} s (nvml_hung): the driver or a GPU is stuck; "
        "see `dmesg` for Xid or NVRM messages, and reboot if it stays. Where it is only that the GPUs start "
        "slowly for each program, run `nvidia-persistenced`."
    )


def stuck_sentence(pid: int) -> str:
    """Say that the driver still holds a child of an earlier reading, with the next step."""
    return (
        f"Process {pid}, an earlier NVML child, was asked to end and is still in the driver (nvml_hung): the "
        "driver or a GPU is stuck; see `dmesg` for Xid or NVRM messages, and reboot if it stays."
    )


def death_sentence(returncode: int, stderr: bytes = b"") -> str:
    """Say how the child ended without an answer, with the next step."""
    if returncode < 0:
        from signal import Signals  # noqa: PLC0415 - a reading that ends well does without

        names = {number.value: number.name for number in Signals}
        how = f"was ended by {names.get(-returncode, f'signal {-returncode}')}"
    else:
        how = f"left with exit status {returncode}"
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    message = f", saying {lines[-1].strip()!r}" if lines else ""
    return (
        f"The process that queries the NVIDIA driver {how}{message} (nvml_child_died): "
        "run `nvidia-smi`; if it fails too, reinstall the driver."
    )
