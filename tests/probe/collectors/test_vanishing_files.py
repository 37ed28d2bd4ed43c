"""Cards and files that vanish between two steps of one reading, as at a reset or when a card is unplugged.

Before the nth access to a recorded machine's sysfs something goes away, for each n in turn.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_agent.probe.collectors.amd import AmdGpus
from gpu_agent.probe.collectors.intel import IntelGpus
from gpu_agent.probe.collectors.protocol import Surroundings
from gpu_agent.probe.collectors.runner import merge_reports
from gpu_agent.probe.collectors.validation import validate
from gpu_agent.records import field_names
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome
from tests.probe.collectors.machines import unpack

ACCESSES = frozenset({"open", "os.listdir", "os.scandir"})
MOST_ACCESSES = 5_000


class Access:
    """Calls `before` ahead of one access to a folder, counted from when it was armed."""

    def __init__(self) -> None:
        self.root = ""
        self.left = 0
        self.before: Callable[[], object] = lambda: None
        sys.addaudithook(self._noticed)

    def _noticed(self, event: str, given: tuple[object, ...]) -> None:
        if not self.left or event not in ACCESSES or not str(given[0]).startswith(self.root):
            return
        self.left -= 1
        if not self.left:
            self.before()


ACCESS = Access()
"""One for all tests: an audit hook stays until the process ends."""


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("part", ["class/drm", "bus/pci/devices", "class/kfd", "devices", "."])
@pytest.mark.parametrize("name", ["mi300x-cpx", "rx7900", "ryzen-apu-and-rx7900", "arc-b580"])
def test_what_vanishes_at_any_moment_of_a_reading_ends_no_reading(
    name: str, part: str, tmp_path: Path, *, lasting: bool
) -> None:
    """`lasting`: collectors that have read the machine before, and know who is who."""
    sys_dir = unpack(name, tmp_path / "sys")
    around = Surroundings(sys_dir=sys_dir, machine_id=tmp_path / "machine-id")
    gone, aside = sys_dir / part, tmp_path / "aside"
    if not gone.exists():
        pytest.skip("that machine has no such part")
    collectors = AmdGpus(around), IntelGpus(around)
    whole = {gpu.uuid for gpu in reading(*collectors).gpus}
    ACCESS.root, ACCESS.before = str(sys_dir), lambda: gone.rename(aside)
    for number in range(1, MOST_ACCESSES):
        ACCESS.left = number
        found = reading(*(collectors if lasting else (AmdGpus(around), IntelGpus(around))))
        was_reached, ACCESS.left = not ACCESS.left, 0
        if not was_reached:
            break
        aside.rename(gone)
        assert not lasting or {gpu.uuid for gpu in found.gpus} <= whole
        for gpu in found.gpus:
            unknown = {each for each in field_names(Gpu) if getattr(gpu, each) is None}
            assert (
                sorted(unknown - {"parent_uuid", "gpu_instance", "asleep", "visible"} - gpu.unknowns.keys())
                == []
            )
    assert 1 < number < MOST_ACCESSES - 1


def reading(amd: AmdGpus, intel: IntelGpus) -> GpuReport:
    reports = {"amd": amd.read(5), "intel": intel.read(5)}
    absent = GpuReport(outcome=Outcome.NO_DRIVER, detail="No NVIDIA driver was found.")
    return merge_reports(absent, {name: validate(one) for name, one in reports.items()})
