"""What `nvidia-smi` reports of this machine's GPUs, as text by its own names.

It refuses a whole query for one field that it does not know, and fields come and go with the driver: such a
field is left out, and the query is sent again.
"""

import csv
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

PROGRAM = "nvidia-smi"
TIMEOUT_SECONDS = 120.0
NOT_REPORTED = frozenset(
    {"", "N/A", "[N/A]", "[Not Supported]", "[Unknown Error]", "[GPU is lost]", "[Insufficient Permissions]"}
)

_UNKNOWN_FIELD = re.compile(r'Field "(?P<name>[^"]+)" is not a valid field to query')
_LISTED_GPU = re.compile(r"GPU \d+: .*\(UUID: (?P<uuid>[^)]+)\)")
_LISTED_MIG = re.compile(r"\s+MIG .*\(UUID: (?P<uuid>[^)]+)\)")
_PROCESS_FIELDS = ("gpu_uuid", "pid", "used_memory")
_REMAP_FIELDS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What `nvidia-smi` reported at one moment; everything by GPU UUID."""

    rows: dict[str, dict[str, str]]
    """Field → text; a field that this `nvidia-smi` does not know is missing."""
    processes: dict[str, dict[int, str]] = field(default_factory=dict)
    """PID → used memory."""
    mig_devices: dict[str, frozenset[str]] = field(default_factory=dict)


def why_absent() -> str | None:
    """Say why this machine cannot be compared; None where it can."""
    if shutil.which(PROGRAM) is None:
        return f"there is no {PROGRAM} here: the comparison needs a machine with an NVIDIA GPU"
    done = _run("-L")
    return None if done.returncode == 0 and "GPU 0" in done.stdout else f"{PROGRAM} -L: {done.stdout.strip()}"


def look(fields: Sequence[str]) -> Look:
    """Ask for these fields, the remapped rows, the processes and the MIG devices."""
    rows = {row["uuid"]: row for row in _query("--query-gpu", ("uuid", *fields))}
    for remapped in _query("--query-remapped-rows", _REMAP_FIELDS):
        rows.get(remapped.get("gpu_uuid", ""), {}).update(remapped)
    processes: dict[str, dict[int, str]] = defaultdict(dict)
    for one in _query("--query-compute-apps", _PROCESS_FIELDS):
        processes[one["gpu_uuid"]][int(one["pid"])] = one["used_memory"]
    return Look(rows=rows, processes=dict(processes), mig_devices=_mig_devices(_run("-L").stdout))


def _query(kind: str, fields: Sequence[str]) -> list[dict[str, str]]:
    known = list(fields)
    while known:
        done = _run(f"{kind}={','.join(known)}", "--format=csv,noheader,nounits")
        refused = _UNKNOWN_FIELD.search(done.stdout + done.stderr)
        if refused is None:
            return _rows(known, done)
        known.remove(refused["name"])
    return []


def _rows(fields: Sequence[str], done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    """Read CSV; a kind of query that this driver does not support has no rows."""
    lines = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [
        dict(zip(fields, (cell.strip() for cell in line), strict=True))
        for line in lines
        if len(line) == len(fields)
    ]


def _mig_devices(listed: str) -> dict[str, frozenset[str]]:
    devices: dict[str, set[str]] = {}
    parent = ""
    for line in listed.splitlines():
        if gpu := _LISTED_GPU.match(line):
            parent = gpu["uuid"]
            devices[parent] = set()
        elif mig := _LISTED_MIG.match(line):
            devices[parent].add(mig["uuid"])
    return {uuid: frozenset(found) for uuid, found in devices.items()}


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
