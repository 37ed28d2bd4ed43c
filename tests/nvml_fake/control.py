"""Control of the fake NVML: states what its GPUs are and which calls fail, hang, crash or lie.

The control file holds one statement a line; DEV is a device index, `3/1` for the MIG device in slot 1
of device 3, or `*` for every one.

    count 8                                    how many devices there are
    counted_once 1                             a change of `count` is seen once the library is opened again
    driver_version 570.124.06                  and cuda_version 12080, nvml_version: facts of the machine
    log PATH                                   every call is noted there: `PID CALL [DEV]`
    name DEV NVIDIA H100 80GB HBM3             and uuid, memory_total, temperature …: facts of a device
    process DEV PID BYTES                      one line for each process on a device
    xid DEV NUMBER                             the driver gives that Xid, once for each such line;
                                               `happen` adds one. `double_bit_error DEV 1` likewise
    delivered_to DEV OTHER                     events of DEV go to the event set of OTHER, and name DEV
    fabric DEV STATE STATUS MASK               the place in the NVSwitch fabric, as nvml.h numbers it
    mig_device DEV/SLOT GPU_INSTANCE COMPUTE_INSTANCE
                                               that slot of `mig_slots DEV` holds a MIG device
    error CALL DEV GPU_IS_LOST                 the call answers NVML_ERROR_GPU_IS_LOST; or a number
    delay CALL DEV MILLISECONDS                the call takes that long
    hang CALL DEV                              the call blocks, deaf to SIGTERM, until this line is gone;
                                               its process goes by another name meanwhile
    crash CALL DEV                             the process dies of SIGSEGV
    exit CALL DEV STATUS                       the process exits, as some third-party builds of NVML do
    print CALL DEV TEXT                        text on stdout; `complain` for stderr

A fact that no line states is answered with NOT_SUPPORTED. Calls are named by their C symbols
(`nvmlDeviceGetMemoryInfo_v2`); `*` means every call.
"""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.nvml_fake.build import build

_WORDS_OF_KEY = {
    **dict.fromkeys(("count", "counted_once", "driver_version", "nvml_version", "cuda_version", "log"), 1),
    **dict.fromkeys(("error", "delay", "hang", "crash", "exit", "print", "complain", "process"), 3),
}
"""How many leading words identify a statement; for facts of a device it is 2."""

H100_BYTES = 85_520_809_984
HEALTHY_FABRIC = 0x11AA
"""A health mask in which every part says that all is well."""
HELD = "nvml-fake-held"
"""What a process goes by while a call of the fake holds it: tests beside it look for stuck children."""


@functools.cache
def built_library(*without: str) -> Path:
    """The folder that holds the compiled library, made once per test process and removed with it.

    `without` names symbols that it lacks, as an older driver's does.
    """
    folder = Path(tempfile.mkdtemp(prefix="nvml-fake-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build(folder, without=without)


class FakeNvml:
    """A machine with fake GPUs: what it states, every process started with `environment()` sees."""

    def __init__(self, root: Path, *, gpus: int = 1, library: Path | None = None) -> None:
        self.control = root / "nvml-fake.control"
        self.log = root / "nvml-fake.log"
        self._library = library or built_library()
        self._lines: dict[tuple[str, ...], str] = {}
        self._happened = 0
        self._state("count", gpus)
        self._state("driver_version", "570.124.06")
        self._state("cuda_version", 12080)
        self._state("log", self.log)
        for index in range(gpus):
            self._state_gpu(index)
        self._write()

    def set(self, *words: object) -> None:
        """State something, replacing an older statement about the same thing."""
        self._state(*words)
        self._write()

    def happen(self, *events: tuple[object, ...]) -> None:
        """Let the driver give events, as `("xid", 3, 79)`: each counts, also the same one again."""
        for event in events:
            self._happened += 1
            self._lines["event", str(self._happened)] = " ".join(str(word) for word in event)
        self._write()

    def unset(self, *words: object) -> None:
        """Take back every statement that begins with these words."""
        gone = tuple(str(word) for word in words)
        self._lines = {
            key: line for key, line in self._lines.items() if tuple(line.split()[: len(gone)]) != gone
        }
        self._write()

    def become(self, lines: Iterable[str]) -> None:
        """State these lines of the control file, and nothing else."""
        self._lines = {(str(number),): line for number, line in enumerate(lines)}
        self._write()

    def enable_mig(self, device: int, *slots: int, count: int = 7) -> None:
        """Turn MIG on, with a MIG device in each of these slots out of `count`."""
        self._state("mig", device, 1)
        self._state("mig_slots", device, count)
        for slot in slots:
            mig_device = f"{device}/{slot}"
            self._state("mig_device", mig_device, 7 + slot, 0)
            self._state("uuid", mig_device, f"MIG-0000000{device:x}-fa4e-4000-8000-00000000000{slot:x}")
            self._state("name", mig_device, "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
            self._state("memory_total", mig_device, H100_BYTES // 8)
            self._state("memory_used", mig_device, 64 << 20)
        self._write()

    def fact(self, key: str, device: int | str) -> str:
        """What was stated about a device."""
        line = self._lines.get((key, str(device))) or self._lines[key, "*"]
        return line.split(maxsplit=2)[2]

    def calls(self) -> list[str]:
        """The calls so far, as `CALL` or `CALL DEV`, whichever process made them."""
        return [line.partition(" ")[2] for line in self._noted()]

    def callers(self) -> list[int]:
        """The processes that made a call, in the order of their first one."""
        return list(dict.fromkeys(int(line.partition(" ")[0]) for line in self._noted()))

    def environment(self) -> dict[str, str]:
        """The environment in which a process finds this NVML and no other."""
        older = os.environ.get("LD_LIBRARY_PATH")
        path = f"{self._library}{os.pathsep}{older}" if older else str(self._library)
        return {**os.environ, "LD_LIBRARY_PATH": path, "NVML_FAKE_CONTROL": str(self.control)}

    def _state(self, *words: object) -> None:
        said = tuple(str(word) for word in words)
        self._lines[said[: _WORDS_OF_KEY.get(said[0], 2)]] = " ".join(said)

    def _state_gpu(self, index: int) -> None:
        facts = {
            "uuid": f"GPU-0000000{index:x}-fa4e-4000-8000-00000000000{index:x}",
            "name": "NVIDIA H100 80GB HBM3",
            "memory_total": H100_BYTES,
            "memory_reserved": 512 << 20,
            "memory_used": (1 + index) << 30,
            "utilization": 10 * (index % 10),
            "memory_utilization": 5 * (index % 10),
            "temperature": 40 + index,
            "power_mw": 100_000 + 1_500 * index,
            "power_limit_mw": 700_000,
            "clock_sm_mhz": 1_980 - index,
            "clock_memory_mhz": 2_619,
            "compute_capability": "9.0",
            "pci_bus_id": f"00000000:{0x1A + index:02X}:00.0",
            "ecc_uncorrected": 0,
            "retired_pages_pending": 0,
            "remapped_rows": "0 0 0 0",
            "clocks_event_reasons": 0,
            "energy_mj": 7_000_000 + index,
            "recovery_action": 0,
            "sram_threshold_exceeded": 0,
            "fabric": f"3 0 {HEALTHY_FABRIC}",
            "nvlinks": 18,
            "nvlinks_down": 0,
            "nvlink_errors_total": 0,
            "pcie_generation": 5,
            "pcie_generation_max": 5,
            "pcie_width": 16,
            "pcie_width_max": 16,
            "pcie_replays": 0,
            "mig": 0,
            "fan_percent": 30,
            "performance_state": 0,
            "compute_mode": 0,
            "persistence_mode": 1,
            "display_active": 0,
            "encoder_percent": 0,
            "decoder_percent": 0,
        }
        for key, value in facts.items():
            self._state(key, index, value)

    def _write(self) -> None:
        fresh = self.control.with_suffix(".fresh")
        text = "".join(f"{line}\n" for line in self._lines.values())
        fresh.write_text(text, encoding="utf-8", errors="surrogateescape")
        fresh.replace(self.control)

    def _noted(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
