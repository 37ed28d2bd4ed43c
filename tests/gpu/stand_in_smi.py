"""A stand-in for `nvidia-smi` and `dmesg` beside the fake NVML: both report what its control file states.

A test copies it into programs of these names. It shares no code with the probe, so it can disagree.
`smi_FIELD DEV TEXT` in the control file has `nvidia-smi` report something else than the driver;
`smi_unknown FIELD …` makes it an older one.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

MIB = 1 << 20
_THROTTLE = {
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}
_RECOVERY = ("None", "Reset", "Reboot", "Drain P2P", "Drain and Reset")
_COMPUTE_MODES = ("Default", "Exclusive_Thread", "Prohibited", "Exclusive_Process")
_FABRIC_STATES = ("N/A", "Not Started", "In Progress", "Completed")
_Facts = Mapping[str, str]


def main() -> int:
    """Answer as the program by whose name it was called."""
    machine = _Machine(Path(os.environ["NVML_FAKE_CONTROL"]).read_text(encoding="utf-8"))
    if Path(sys.argv[0]).name == "dmesg":
        print(machine.kernel_log(), end="")
        return 0
    kind, _, fields = sys.argv[1].partition("=")
    if kind == "-L":
        print(machine.listing(), end="")
        return 0
    for field in fields.split(","):
        if field in machine.unknown_fields:
            print(f'Field "{field}" is not a valid field to query.\n')
            return 2
    rows = {
        "--query-gpu": machine.gpu_rows,
        "--query-remapped-rows": machine.remapped_rows,
        "--query-compute-apps": machine.process_rows,
    }[kind](fields.split(","))
    print("".join(f"{', '.join(row)}\n" for row in rows), end="")
    return 0


class _Machine:
    def __init__(self, control: str) -> None:
        self._lines = [line.split() for line in control.splitlines()]
        self._machine = {words[0]: words[1] for words in self._lines if len(words) == 2}
        self.unknown_fields = {
            field for words in self._lines if words[0] == "smi_unknown" for field in words[1:]
        }
        self._count = int(self._machine["count"])

    def gpu_rows(self, fields: list[str]) -> list[list[str]]:
        return [
            [self._lie(index, field) or self._answer(index, field) for field in fields]
            for index in range(self._count)
        ]

    def remapped_rows(self, fields: list[str]) -> list[list[str]]:
        rows = []
        for index in range(self._count):
            _, _, pending, failed = self._facts(index)["remapped_rows"].split()
            values = {"remapped_rows.pending": pending, "remapped_rows.failure": failed}
            values["gpu_uuid"] = self._facts(index)["uuid"]
            rows.append([self._lie(index, field) or values[field] for field in fields])
        return rows

    def process_rows(self, fields: list[str]) -> list[list[str]]:
        rows = []
        for device, pid, size in (words[1:] for words in self._lines if words[0] == "process"):
            values = {"gpu_uuid": self._facts(int(device))["uuid"], "used_memory": str(int(size) // MIB)}
            values["pid"] = self._lie(int(device), "process") or pid
            rows.append([values[field] for field in fields])
        return rows

    def listing(self) -> str:
        text = ""
        for index in range(self._count):
            facts = self._facts(index)
            text += f"GPU {index}: {facts['name']} (UUID: {facts['uuid']})\n"
            for words in self._lines:
                if words[0] == "uuid" and words[1].startswith(f"{index}/"):
                    uuid = self._lie(index, "mig_device") or words[2]
                    text += f"  MIG 1g.10gb     Device  {words[1][2:]}: (UUID: {uuid})\n"
        return text

    def kernel_log(self) -> str:
        text = ""
        for words in self._lines:
            if words[0] == "xid":
                domain, bus, device = self._facts(int(words[1]))["pci_bus_id"].partition(".")[0].split(":")
                address = f"{int(domain, 16):04x}:{bus.lower()}:{device}"
                text += (
                    f"[  100.000000] NVRM: Xid (PCI:{address}): {words[2]}, pid=1, name=x, what it means\n"
                )
        return text

    def _lie(self, index: int, field: str) -> str | None:
        return self._facts(index).get(f"smi_{field}")

    def _answer(self, index: int, field: str) -> str:
        facts = self._facts(index)
        if (throttle := field.removeprefix("clocks_event_reasons.")) in _THROTTLE:
            return _active(facts, throttle)
        if (throttle := field.removeprefix("clocks_throttle_reasons.")) in _THROTTLE:
            return _active(facts, throttle)
        answer = _ANSWERS.get(field)
        if field == "driver_version":
            return self._machine[field]
        if field == "index":
            return str(index)
        return "[N/A]" if answer is None else answer(facts)

    def _facts(self, index: int) -> dict[str, str]:
        return {
            words[0]: " ".join(words[2:])
            for words in self._lines
            if len(words) > 2 and words[1] in (str(index), "*")
        }


def _active(facts: _Facts, reason: str) -> str:
    return "Active" if int(facts["clocks_event_reasons"]) & _THROTTLE[reason] else "Not Active"


def _mib(*names: str) -> Callable[[_Facts], str]:
    return lambda facts: str((int(facts[names[0]]) - sum(int(facts[name]) for name in names[1:])) // MIB)


def _fact(name: str) -> Callable[[_Facts], str]:
    return lambda facts: facts[name]


def _watts(name: str) -> Callable[[_Facts], str]:
    return lambda facts: f"{int(facts[name]) / 1000:.2f}"


_ANSWERS: Mapping[str, Callable[[_Facts], str]] = {
    "uuid": _fact("uuid"),
    "name": _fact("name"),
    "pci.bus_id": _fact("pci_bus_id"),
    "compute_cap": _fact("compute_capability"),
    "memory.total": _mib("memory_total"),
    "memory.reserved": _mib("memory_reserved"),
    "memory.used": _mib("memory_used"),
    "memory.free": _mib("memory_total", "memory_used", "memory_reserved"),
    "utilization.gpu": _fact("utilization"),
    "utilization.memory": _fact("memory_utilization"),
    "temperature.gpu": _fact("temperature"),
    "power.draw": _watts("power_mw"),
    "enforced.power.limit": _watts("power_limit_mw"),
    "clocks.sm": _fact("clock_sm_mhz"),
    "clocks.mem": _fact("clock_memory_mhz"),
    "ecc.errors.uncorrected.volatile.total": _fact("ecc_uncorrected"),
    "pcie.link.gen.max": _fact("pcie_generation_max"),
    "pcie.link.width.current": _fact("pcie_width"),
    "pcie.link.width.max": _fact("pcie_width_max"),
    "compute_mode": lambda facts: _COMPUTE_MODES[int(facts["compute_mode"])],
    "fabric.state": lambda facts: _FABRIC_STATES[int(facts["fabric"].split()[0])],
    "mig.mode.current": lambda facts: "Enabled" if int(facts["mig"]) else "Disabled",
    "gpu_recovery_action": lambda facts: _RECOVERY[int(facts["recovery_action"])],
    "retired_pages.pending": lambda facts: "Yes" if int(facts["retired_pages_pending"]) else "No",
}


if __name__ == "__main__":
    sys.exit(main())
