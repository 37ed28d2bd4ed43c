"""The comparison with `nvidia-smi`: on a machine with GPUs; elsewhere, whether it would notice.

Here it runs whole against the fake NVML, beside a stand-in for `nvidia-smi` that can disagree.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.gpu import stand_in_smi
from tests.gpu.nvidia_smi import why_absent
from tests.gpu.recording import DATA
from tests.nvml_fake.control import FakeNvml

WHY_ABSENT = why_absent()
MINUTES = 0.02
LIES = {
    "name": ("NVIDIA H200", "name"),
    "memory.total": ("81558", "memory_mb"),
    "memory.used": ("2048", "memory_used_mb"),
    "memory.reserved": ("1024", "memory used (first call)"),
    "utilization.gpu": ("60", "utilization_percent"),
    "temperature.gpu": ("60", "temperature_c"),
    "power.draw": ("200.00", "power_w"),
    "enforced.power.limit": ("600.00", "power_limit_w"),
    "clocks.sm": ("1000", "clock_sm_mhz"),
    "ecc.errors.uncorrected.volatile.total": ("1", "ecc_uncorrected"),
    "clocks_event_reasons.hw_slowdown": ("Active", "throttle: hw_slowdown"),
    "pcie.link.gen.max": ("4", "pcie_generation_max"),
    "pcie.link.width.current": ("8", "pcie_width"),
    "compute_mode": ("Prohibited", "compute_mode"),
    "fabric.state": ("In Progress", "fabric completed"),
    "remapped_rows.pending": ("1", "retirement_pending"),
    "remapped_rows.failure": ("1", "row_remap_failed"),
    "gpu_recovery_action": ("Reset", "recovery_action"),
    "mig.mode.current": ("Enabled", "mig_enabled"),
    "process": ("4243", "processes"),
    "mig_device": ("MIG-another", "MIG devices"),
}
"""What the stand-in reports of the first GPU instead of the truth → the fact that must be noticed."""


def compared(
    folder: Path, fake: FakeNvml, *arguments: str, in_long_run: Sequence[tuple[object, ...]] = ()
) -> tuple[int, str]:
    """Run the comparison as a person does, with a `nvidia-smi` and a `dmesg` of ours.

    Returns its exit code and what it printed; the events happen once the long run has begun.
    """
    folder.mkdir()
    for name in ("nvidia-smi", "dmesg"):
        program = folder / name
        source = Path(stand_in_smi.__file__).read_text(encoding="utf-8")
        program.write_text(f"#!{sys.executable} -IS\n{source}", encoding="utf-8")
        program.chmod(0o755)
    environment = fake.environment()
    environment["PATH"] = os.pathsep.join([str(folder), environment["PATH"]])
    command = [sys.executable, "-u", "-m", "tests.gpu", "--minutes", str(MINUTES), *arguments]
    printed = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if line.startswith("long run for"):
                fake.happen(*in_long_run)
    return process.returncode, "".join(printed)


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvml:
    """Three GPUs: one with a process, one in MIG mode, and an idle one."""
    machine = FakeNvml(tmp_path, gpus=3)
    machine.set("process", 0, 4242, 1 << 30)
    machine.enable_mig(1, 0, 2)
    return machine


@pytest.mark.skipif(WHY_ABSENT is not None, reason=WHY_ABSENT or "")
@pytest.mark.timeout(3600)
def test_the_probe_agrees_with_nvidia_smi_on_this_machine() -> None:
    command = [sys.executable, "-m", "tests.gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_that_agree_have_a_table_without_differences_and_a_recording_without_serials(
    tmp_path: Path, fake: FakeNvml
) -> None:
    recorded = DATA / "recorded-by-a-test.json"
    try:
        code, printed = compared(
            tmp_path / "bin", fake, "--record", recorded.stem, in_long_run=[("xid", 0, 31), ("xid", 0, 31)]
        )
        text = recorded.read_text(encoding="utf-8")
    finally:
        recorded.unlink(missing_ok=True)
    assert code == 0, printed
    assert re.search(r"long run: [1-9]\d* readings", printed)
    rows = dict(re.findall(r"^(\S.*?)  +([1-9]\d*) +0 ", printed, re.MULTILINE))
    assert {fact for _, fact in LIES.values()} <= rows.keys()
    assert "under load: not compared" in printed
    assert "{('0:1a:00', 31): 2} | {('0:1a:00', 31): 2}" in printed
    assert fake.fact("name", 0) in text
    assert fake.fact("uuid", 0) not in text


def test_each_disagreement_is_named(tmp_path: Path, fake: FakeNvml) -> None:
    for field, (text, _) in LIES.items():
        fake.set(f"smi_{field}", 1 if field == "mig_device" else 0, text)
    fake.set("smi_uuid", 2, "GPU-another")
    code, printed = compared(tmp_path / "bin", fake)
    assert code == 1
    noticed = set(re.findall(r"^DIFFERS  (\S+) (.*): the probe has", printed, re.MULTILINE))
    first, mig, other = (fake.fact("uuid", index) for index in range(3))
    expected = {(mig if field == "mig_device" else first, fact) for field, (_, fact) in LIES.items()}
    assert expected <= noticed
    assert {("GPU-another", "listed"), (other, "listed")} <= noticed


def test_what_only_nvidia_smi_reports_differs_and_an_older_one_is_asked_for_what_it_knows(
    tmp_path: Path, fake: FakeNvml
) -> None:
    for call in ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"):
        fake.set("error", call, 0, "NO_PERMISSION")
    fake.set("smi_unknown", "gpu_recovery_action", "memory.reserved", "clocks_event_reasons.hw_slowdown")
    fake.set("smi_clocks_throttle_reasons.hw_slowdown", 2, "Active")
    _, printed = compared(tmp_path / "bin", fake)
    assert f"DIFFERS  {fake.fact('uuid', 0)} temperature_c: the probe has None" in printed
    assert f"DIFFERS  {fake.fact('uuid', 2)} throttle: hw_slowdown: the probe has False" in printed
    assert "recovery_action" not in printed
