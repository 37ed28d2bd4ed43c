"""The probe on a machine with true GPUs, against what NVIDIA's own tool says of them there."""

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.gpu.nvidia_smi import PROGRAM, QUERY, differences, read_rows, rows, why_not
from tests.waiting import patience

SKIP = why_not()
on_a_true_machine = pytest.mark.skipif(SKIP is not None, reason=SKIP or "")
ROWS = (
    "0, GPU-aa, NVIDIA H100 80GB HBM3, 00000000:1A:00.0, 9.0, 81559, "
    "1024, 79000, 41, 700.00, 570.124.06, Disabled\n"
    "1, GPU-bb, Tesla T4, 00000000:3B:00.0, 7.5, 15360, "
    "[N/A], [N/A], [GPU is lost], 70.00, 570.124.06, [N/A]\n"
)


def document() -> dict[str, Any]:
    """A probe document that agrees with `ROWS`."""
    h100 = {
        "index": 0,
        "uuid": "GPU-aa",
        "parent_uuid": None,
        "name": "NVIDIA H100 80GB HBM3",
        "pci_bus_id": "00000000:1a:00.0",
        "compute_capability": "9.0",
        "memory_mb": 81559,
        "memory_used_mb": 1100,
        "memory_free_mb": 78900,
        "temperature_c": 43,
        "power_limit_w": 700.0,
        "mig_enabled": False,
    }
    t4 = h100 | {"index": 1, "uuid": "GPU-bb", "name": "Tesla T4", "pci_bus_id": "00000000:3B:00.0"}
    t4 |= {"compute_capability": "7.5", "memory_mb": 15360, "temperature_c": None, "power_limit_w": 70.0}
    slice_ = h100 | {"uuid": "MIG-1", "parent_uuid": "GPU-aa"}
    return {"driver_version": "570.124.06", "gpus": [h100, slice_, t4]}


def probed() -> tuple[dict[str, Any], float]:
    """This machine's document, and how long it took in seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "gpu_agent.cli", "probe", "--json"]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=patience(60), check=False)
    took = time.monotonic() - began
    found: dict[str, Any] = json.loads(seen.stdout)
    return found, took


def test_a_document_that_agrees_has_no_differences() -> None:
    assert differences(document(), rows(ROWS)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "H200"),
        ("memory_mb", 81558),
        ("memory_used_mb", None),
        ("temperature_c", 80),
        ("mig_enabled", True),
        ("compute_capability", None),
        ("uuid", "GPU-cc"),
    ],
)
def test_a_document_that_differs_is_noticed(field: str, value: object) -> None:
    otherwise = document()
    otherwise["gpus"][0][field] = value
    assert differences(otherwise, rows(ROWS))


def test_another_driver_is_noticed() -> None:
    assert differences({**document(), "driver_version": "535.1"}, rows(ROWS))


@on_a_true_machine
def test_the_probe_agrees_with_nvidia_smi() -> None:
    listed = read_rows()
    found, _ = probed()
    assert found["outcome"] == "ok"
    assert differences(found, listed) == []


@on_a_true_machine
def test_what_the_probe_does_not_know_has_a_reason() -> None:
    found, _ = probed()
    for gpu in found["gpus"]:
        assert all(gpu["unknowns"].values())
        assert gpu["memory_mb"] is not None or "memory_mb" in gpu["unknowns"]


@on_a_true_machine
def test_the_probe_takes_no_longer_than_nvidia_smi_does_by_half() -> None:
    ours = statistics.median(probed()[1] for _ in range(5))
    theirs = statistics.median(_timed() for _ in range(5))
    print(f"probe {ours * 1000:.0f} ms, {PROGRAM} {theirs * 1000:.0f} ms")  # noqa: T201 - a figure for the log
    assert ours <= max(1.5 * theirs, 0.5)


def _timed() -> float:
    began = time.monotonic()
    command = [PROGRAM, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    subprocess.run(command, capture_output=True, timeout=patience(60), check=True)
    return time.monotonic() - began
