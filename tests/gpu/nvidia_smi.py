"""What `nvidia-smi` says of the same GPUs, and where the probe says otherwise.

Facts must be equal. Figures that move between two looks may differ by as much as a moment can change them.
"""

import csv
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tests.waiting import patience

PROGRAM = "nvidia-smi"
EXACT = {
    "index": "index",
    "uuid": "uuid",
    "name": "name",
    "pci.bus_id": "pci_bus_id",
    "compute_cap": "compute_capability",
    "memory.total": "memory_mb",
}
NEAR = {
    "memory.used": ("memory_used_mb", 512.0),
    "memory.free": ("memory_free_mb", 512.0),
    "temperature.gpu": ("temperature_c", 10.0),
    "enforced.power.limit": ("power_limit_w", 1.0),
}
"""The query's name → the probe's, and how far apart they may be."""
QUERY = (*EXACT, *NEAR, "driver_version", "mig.mode.current")
_UNTOLD = frozenset({"", "[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "[GPU is lost]"})


def why_not() -> str | None:
    """Say why this machine cannot compare; None where it can."""
    if shutil.which(PROGRAM) is None:
        return f"no {PROGRAM} here: this test wants a machine with an NVIDIA GPU"
    seen = subprocess.run([PROGRAM, "-L"], capture_output=True, text=True, timeout=patience(60), check=False)
    return (
        None if seen.returncode == 0 and "GPU 0" in seen.stdout else f"{PROGRAM} finds no GPU: {seen.stdout}"
    )


def read_rows() -> list[dict[str, str]]:
    """One row for each GPU, by the query's names."""
    command = [PROGRAM, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=patience(60), check=True)
    return rows(seen.stdout)


def rows(text: str) -> list[dict[str, str]]:
    """Read the query's CSV."""
    lines = csv.reader(text.splitlines(), skipinitialspace=True)
    return [dict(zip(QUERY, (cell.strip() for cell in line), strict=True)) for line in lines if line]


def differences(document: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Say where the probe's document and the rows do not agree."""
    whole = {gpu["uuid"]: gpu for gpu in document["gpus"] if not gpu["parent_uuid"]}
    found = [f"{row['uuid']} is missing" for row in rows if row["uuid"] not in whole]
    found += [
        f"{uuid} is not known to {PROGRAM}" for uuid in whole if uuid not in {row["uuid"] for row in rows}
    ]
    for row in rows:
        if row["uuid"] in whole:
            found += _of_one(whole[row["uuid"]], row)
        if row["driver_version"] != document["driver_version"]:
            found.append(f"driver {document['driver_version']}, and {PROGRAM} has {row['driver_version']}")
    return found


def _of_one(gpu: Mapping[str, Any], row: Mapping[str, str]) -> list[str]:
    found = [
        f"{row['uuid']}: {ours} is {gpu[ours]}, and {PROGRAM} has {row[theirs]}"
        for theirs, ours in EXACT.items()
        if row[theirs] not in _UNTOLD and str(gpu[ours]).lower() != row[theirs].lower()
    ]
    for theirs, (ours, apart) in NEAR.items():
        if row[theirs] in _UNTOLD:
            continue
        if gpu[ours] is None or abs(float(gpu[ours]) - float(row[theirs])) > apart:
            found.append(f"{row['uuid']}: {ours} is {gpu[ours]}, and {PROGRAM} has {row[theirs]}")
    if gpu["mig_enabled"] is not None and row["mig.mode.current"] not in _UNTOLD:
        enabled = row["mig.mode.current"] == "Enabled"
        if gpu["mig_enabled"] is not enabled:
            found.append(
                f"{row['uuid']}: MIG is {gpu['mig_enabled']}, and {PROGRAM} has {row['mig.mode.current']}"
            )
    return found
