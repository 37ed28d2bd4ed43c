"""One GPU in the driver's list: its handle while that is good, its identity, and its MIG devices.

Runs inside the NVML child. A GPU that the driver reported lost is never queried again through the same
handle; a GPU that is suspended is not queried at all, because that would wake it. Both are reported with
their last known identity.
"""

import re
from collections.abc import Callable, Mapping
from types import ModuleType

from gpu_agent.probe.nvml import device_nodes
from gpu_agent.probe.nvml import mig as nvml_slices
from gpu_agent.probe.nvml import readings as nvml_readings
from gpu_agent.probe.nvml.errors import GpuGoneError, Values, is_driver_wide, raise_if_gone
from gpu_agent.probe.nvml.events import EventSets
from gpu_agent.probe.stand_in import UNIDENTIFIED

# One place in the driver's list: a handle while it is good, who the GPU was, and the slices it is cut
# into.
#
# Runs inside the NVML child. A GPU that the driver gave up is never asked again through the same
# handle, and one that sleeps is not asked at all; both are shown by what was last known of them.


_KEPT = ("memory_mb", "memory_kind")
"""Figures that belong to who a GPU is: known for a lost one as well, and when a later answer is nonsense."""

_IDENTITY = ("uuid", "name", "compute_capability", "pci_bus_id")
_OF_A_PLACE = ("index", "why")
_OF_A_SLICE = (*_IDENTITY, *_KEPT, "index", "parent_uuid")

_ASLEEP = "the GPU sleeps and was not asked, so as not to wake it"


class Device:
    """One place in the driver's list, read again and again."""

    __slots__ = ("_nvml", "_root", "_slices", "gone", "handle", "identity", "index")

    def __init__(
        self, nvml: ModuleType, index: int, *, root: str = "/", silent: Values | None = None
    ) -> None:
        """`silent` tells who is in this place where it must not be asked, as `told_of` told it before."""
        self.index = index
        self.identity: Values = {}
        self.handle: object = None
        self.gone: GpuGoneError | None = None
        self._nvml = nvml
        self._root = root
        self._slices: list[Values] = []
        if silent is not None:
            self.identity = {name: value for name, value in silent.items() if name not in _OF_A_PLACE}
            self.gone = GpuGoneError("gpu_silent", str(silent.get("why")))

    @property
    def key(self) -> str:
        """The UUID, or its stand-in while that is not known."""
        return str(self.identity.get("uuid") or f"{UNIDENTIFIED}{self.index}")

    def told_of(self, why: str) -> Values:
        """Tell who is here and why it must not be asked, for a slot in another process."""
        return {**self.identity, "index": self.index, "why": why}

    def read(self, driver_version: object, listener: EventSets | None = None) -> list[Values]:
        """Read this GPU and its slices, and let the listener hear of it.

        Raises:
            NVMLError: the whole driver has failed.
        """
        if self.gone is not None:
            return self._without_figures(self.gone.code, self.gone.detail)
        if self.identity and is_asleep(self.identity.get("pci_bus_id"), root=self._root):
            return self._asleep()
        try:
            return self._read(driver_version, listener)
        except GpuGoneError as gone:
            self.gone, self.handle = gone, None
            if listener is not None:
                listener.let_go(self.key)
            return self._without_figures(gone.code, gone.detail)
        except _InaccessibleError as refused:
            return self._without_figures("gpu_inaccessible", str(refused))

    def _read(self, driver_version: object, listener: EventSets | None) -> list[Values]:
        nvml = self._nvml
        if self.handle is None:
            self.handle = self._acquire()
        if not self.identity.get("uuid"):
            self.identity = self._told(lambda: nvml_readings.read_identity(nvml, self.handle))
        if listener is not None:
            listener.listen(self.key, self.handle)
        figures = self._told(
            lambda: nvml_readings.read_figures(
                nvml,
                self.handle,
                who=self.identity,
                driver_version=driver_version,
                meminfo=f"{self._root.rstrip('/')}/proc/meminfo",
            )
        )
        self.identity |= {name: figures[name] for name in _KEPT if name in figures}
        mig = figures.get("mig_enabled")
        if not mig and (mig is False or not self._slices):  # a mode that is not told takes no slice away
            self._slices = []
            return [self._described(figures, [])]
        return self._cut(figures, driver_version)

    def _told(self, asked: Callable[[], Values]) -> Values:
        """Ask; a GPU that is lost meanwhile is known by what it had told before that."""
        try:
            return asked()
        except GpuGoneError as gone:
            self.identity |= {name: gone.known[name] for name in (*_IDENTITY, *_KEPT) if name in gone.known}
            raise

    def _cut(self, figures: Values, driver_version: object) -> list[Values]:
        """Read the slices; one that was there and cannot be read now is not gone."""
        who = {**self.identity, "index": self.index}
        found, unread = nvml_slices.read_mig_devices(
            self._nvml, self.handle, parent=who, driver_version=driver_version
        )
        if unread:
            listed = {one["uuid"] for one in found}
            reasons = [_reason("gpu_inaccessible", unread["slices"])]
            missing = [_identity_of(one) for one in self._slices if one["uuid"] not in listed]
            found = [*found, *({**one, "reasons": reasons, "unknowns": {}} for one in missing)]
        self._slices = found
        empty = figures.get("mig_enabled") and not found and not unread
        reasons = [_reason("mig_without_slices", "no slot holds one")] if empty else []
        return [self._described(figures, reasons, unread), *found]

    def _acquire(self) -> object:
        nvml = self._nvml
        try:
            return nvml.nvmlDeviceGetHandleByIndex(self.index)
        except nvml.NVMLError as error:
            if is_driver_wide(nvml, error):
                raise
            raise_if_gone(nvml, error, "opening the GPU")
            raise _InaccessibleError(
                "; ".join([f"opening the GPU: {error}", *self._node_troubles()])
            ) from error

    def _node_troubles(self) -> list[str]:
        return device_nodes.node_problems(self._root) if device_nodes.is_module_loaded(self._root) else []

    def _without_figures(self, code: str, detail: str) -> list[Values]:
        reasons = [_reason(code, detail)]
        slices = [_identity_of(one) | {"reasons": reasons, "unknowns": {}} for one in self._slices]
        return [self._described({}, reasons), *slices]

    def _asleep(self) -> list[Values]:
        slices = [_asleep(_identity_of(one), one) | {"reasons": []} for one in self._slices]
        asleep = _asleep(self.identity, self.identity)
        return [self._described({"asleep": True}, [], _mapping(asleep["unknowns"])), *slices]

    def _described(
        self,
        figures: Values,
        reasons: list[dict[str, str]],
        more_unknowns: Mapping[str, object] | None = None,
    ) -> Values:
        known = {**self.identity, **figures, "index": self.index, "reasons": reasons}
        unknowns = {
            **_mapping(self.identity.get("unknowns")),
            **_mapping(figures.get("unknowns")),
            **(more_unknowns or {}),
        }
        return {**known, "unknowns": {name: why for name, why in unknowns.items() if name not in known}}


class _InaccessibleError(Exception):
    """The driver lists a GPU and will not open it, though it is not lost."""


def _identity_of(slice_: Values) -> Values:
    return {name: slice_[name] for name in _OF_A_SLICE if name in slice_}


def _asleep(who: Values, awake: Values) -> Values:
    """Show who a GPU or slice is; what was not told of that when it was awake is unknown as it was."""
    untold = dict.fromkeys((name for name in nvml_readings.FIGURES if name not in who), _ASLEEP)
    return {**who, "asleep": True, "unknowns": {**_mapping(awake.get("unknowns")), **untold}}


def _reason(code: str, detail: str) -> dict[str, str]:
    return {"code": code, "detail": detail}


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


# Whether a PCI device sleeps, by what the kernel says of it, without touching the device.
#
# Asking the driver of a laptop's GPU wakes it, and asked every few seconds it never sleeps again. It
# refuses to guess: what the kernel does not call suspended counts as awake.


_BUS_ID = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_STATUS_CHARS = 32


def is_asleep(bus_id: object, *, root: str = "/") -> bool:
    """Tell whether the device at an address, as NVML writes it (`00000000:1A:00.0`), is suspended."""
    found = _BUS_ID.fullmatch(str(bus_id or "").lower())
    if found is None:
        return False
    address = f"{int(found[1], 16):04x}:{found[2]}"
    path = f"{root.rstrip('/')}/sys/bus/pci/devices/{address}/power/runtime_status"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - pathlib weighs
            return file.read(_STATUS_CHARS).strip() == "suspended"
    except OSError:
        return False
