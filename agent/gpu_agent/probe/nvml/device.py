"""One GPU in the driver's list: its handle while that is good, its identity, and its MIG devices.

Runs inside the NVML child. A GPU that the driver reported lost is never queried again through the same
handle, and a suspended GPU is not queried at all: that would wake it. Both are reported with their last known
identity.
"""

from collections.abc import Callable, Mapping
from types import ModuleType

from gpu_agent.probe import pci
from gpu_agent.probe.nvml import device_nodes, links, mig, readings
from gpu_agent.probe.nvml.errors import GpuGoneError, Values, is_driver_wide, raise_if_gone
from gpu_agent.probe.nvml.events import EventSets
from gpu_agent.probe.stand_in import UNIDENTIFIED

_SIZE = ("memory_mb", "memory_kind")
"""Figures that are part of the identity: reported for a lost GPU too, and where a later value is nonsense."""
_IDENTITY = ("uuid", "name", "compute_capability", "pci_bus_id")
_OF_A_MIG_DEVICE = (*_IDENTITY, *_SIZE, "index", "parent_uuid", "gpu_instance")
_OF_A_QUARANTINE = ("index", "why")

_ASLEEP = "the GPU is suspended and was not queried, so as not to wake it"

_STATUS_CHARS = 32


class Device:
    """One GPU at one index of the driver's list, read again and again."""

    __slots__ = (
        "_lacking",
        "_link_counts",
        "_mig_devices",
        "_mig_enabled",
        "_nvml",
        "_root",
        "_slow",
        "_slow_in",
        "_suspended",
        "_watched",
        "gone",
        "handle",
        "identity",
        "index",
    )

    def __init__(
        self, nvml: ModuleType, index: int, *, root: str = "/", quarantined: Values | None = None
    ) -> None:
        """`quarantined` is what `quarantine` returned for this GPU, where it must not be queried."""
        self.index = index
        self.identity: Values = {}
        self.handle: object = None
        self.gone: GpuGoneError | None = None
        self._nvml = nvml
        self._root = root
        self._mig_devices: list[Values] = []
        self._mig_enabled: object = None
        self._lacking: readings.Lacking = {}
        self._link_counts: links.LinkCounts = {}
        self._slow: Values = {}
        """Values that change slowly, as last read, with the reasons for those that are unknown."""
        self._slow_in = 0
        """In how many readings and looks they are read again; 0 is the next reading."""
        self._suspended = False
        """Whether it was suspended at the last reading."""
        self._watched = 0
        """How many readings in a row still read them, after something has happened."""
        if quarantined is not None:
            self.identity = {
                name: value for name, value in quarantined.items() if name not in _OF_A_QUARANTINE
            }
            self.gone = GpuGoneError("gpu_silent", str(quarantined.get("why")))

    @property
    def key(self) -> str:
        """The UUID, or its stand-in while that is not known."""
        return str(self.identity.get("uuid") or f"{UNIDENTIFIED}{self.index}")

    def quarantine(self, why: str) -> Values:
        """The identity, and why this GPU must not be queried: for a `Device` in another process."""
        return {**self.identity, "index": self.index, "why": why}

    def read(
        self, driver_version: object, events: EventSets | None = None, *, whole: bool = False
    ) -> list[Values]:
        """Read this GPU and its MIG devices, and its events where `events` is given.

        `whole`: also the values that change slowly, which are read only now and then otherwise.

        Raises:
            NVMLError: the whole driver has failed.
        """
        if whole:
            self._slow_in = 0
        gpus = self._read_or_explain(driver_version, events)
        if events is not None and (why := events.failure(self.key)):
            gpus[0]["unknowns"] = {**_mapping(gpus[0]["unknowns"]), "events": why}
        return gpus

    def is_as_before(self, events: EventSets) -> bool:
        """Look at this GPU: False where it had events, is lost, fell asleep or awoke since its reading.

        Raises:
            NVMLError: the whole driver has failed.
        """
        self._slow_in = max(0, self._slow_in - 1)
        if self.gone is not None:
            return True
        if is_suspended(self.identity.get("pci_bus_id"), root=self._root) is not self._suspended:
            return False
        if self._suspended:
            return True
        if self.handle is None:
            return False
        try:
            events.read(self.key, self.handle)
            readings.check_answers(self._nvml, self.handle)
        except GpuGoneError as gone:
            self._set_gone(gone, events)
            return False
        return not events.has_news

    def _set_gone(self, gone: GpuGoneError, events: EventSets | None) -> None:
        self.gone, self.handle = gone, None
        if events is not None:
            events.drop(self.key)

    def _read_or_explain(self, driver_version: object, events: EventSets | None) -> list[Values]:
        if self.gone is not None:
            return self._without_figures(self.gone.code, self.gone.detail)
        self._suspended = is_suspended(self.identity.get("pci_bus_id"), root=self._root)
        if self._suspended:
            return self._without_query()
        try:
            return self._read(driver_version, events)
        except GpuGoneError as gone:
            self._set_gone(gone, events)
            return self._without_figures(gone.code, gone.detail)
        except _InaccessibleError as error:
            return self._without_figures("gpu_inaccessible", str(error))

    def _read(self, driver_version: object, events: EventSets | None) -> list[Values]:
        nvml = self._nvml
        if self.handle is None:
            self.handle = self._open()
        if not self.identity.get("uuid"):
            stand_in = self.key
            self.identity = self._keeping_identity(lambda: readings.read_identity(nvml, self.handle))
            if events is not None and self.key != stand_in:
                events.drop(stand_in)  # or it would give each event once more, whenever it is closed
        if events is not None:
            events.read(self.key, self.handle)
            if events.had_events(self.key):
                self._slow_in, self._watched = 0, readings.SLOW_READINGS
        figures = self._read_figures(driver_version)
        self.identity |= {name: figures[name] for name in _SIZE if name in figures}
        mig_enabled = figures.get("mig_enabled")
        if not mig_enabled and (mig_enabled is False or not self._mig_devices):  # unknown removes none
            self._mig_devices = []
            return [self._describe(figures, [])]
        return self._read_with_mig(figures, driver_version)

    def _read_figures(self, driver_version: object) -> Values:
        """Read the figures; those that change slowly only now and then.

        After an event, and once one of them has changed, they are read at each reading for a while: what
        clears a fault must be as fresh as what showed it.
        """
        with_slow = self._slow_in == 0
        getters = readings.figure_getters(
            identity=self.identity,
            driver_version=driver_version,
            meminfo=f"{self._root.rstrip('/')}/proc/meminfo",
            with_slow=with_slow,
        )
        figures = self._keeping_identity(
            lambda: readings.read_figures(self._nvml, self.handle, getters, lacking=self._lacking)
        )
        if with_slow:
            by_link = figures.pop(links.BY_LINK, None)
            if isinstance(by_link, dict) and by_link:
                figures["nvlink_errors"] = links.sum_of_links(self._link_counts, by_link)
            slow = readings.slow_part(figures)
            if self._slow and slow != self._slow:
                self._watched = readings.SLOW_READINGS
            self._slow = slow
            self._slow_in = 1 if self._watched else readings.SLOW_READINGS
            self._watched = max(0, self._watched - 1)
        self._slow_in -= 1
        self._notice_mig_mode(figures.get("mig_enabled"))
        unknowns = {**_mapping(self._slow.get("unknowns")), **_mapping(figures["unknowns"])}
        return {**self._slow, **figures, "unknowns": unknowns}

    def _notice_mig_mode(self, mig_enabled: object) -> None:
        """Ask every getter again once MIG was turned on or off: that changes what the driver has."""
        if mig_enabled is not None and mig_enabled is not self._mig_enabled:
            if self._mig_enabled is not None:
                self._lacking.clear()
                self._slow_in = 0
            self._mig_enabled = mig_enabled

    def _open(self) -> object:
        nvml = self._nvml
        try:
            return nvml.nvmlDeviceGetHandleByIndex(self.index)
        except nvml.NVMLError as error:
            if is_driver_wide(nvml, error):
                raise
            raise_if_gone(nvml, error, "opening the GPU")
            problems = (
                device_nodes.node_problems(self._root) if device_nodes.is_module_loaded(self._root) else []
            )
            raise _InaccessibleError("; ".join([f"opening the GPU: {error}", *problems])) from error

    def _keeping_identity(self, read: Callable[[], Values]) -> Values:
        """Run a reading; where the GPU is lost meanwhile, keep the identity that it gave before that."""
        try:
            return read()
        except GpuGoneError as gone:
            self.identity |= {name: gone.known[name] for name in (*_IDENTITY, *_SIZE) if name in gone.known}
            raise

    def _read_with_mig(self, figures: Values, driver_version: object) -> list[Values]:
        """Read the MIG devices; one that was there before and cannot be read now is not gone."""
        parent = {**self.identity, "index": self.index}
        found, unread = mig.read_mig_devices(
            self._nvml, self.handle, parent=parent, driver_version=driver_version
        )
        if unread:
            listed = {one["uuid"] for one in found}
            reasons = [_reason("gpu_inaccessible", unread["mig_devices"])]
            missing = [_identity_of(one) for one in self._mig_devices if one["uuid"] not in listed]
            found = [*found, *({**one, "reasons": reasons, "unknowns": {}} for one in missing)]
        self._mig_devices = found
        empty = figures.get("mig_enabled") and not found and not unread
        reasons = [_reason("mig_without_slices", "no slot holds one")] if empty else []
        return [self._describe(figures, reasons, unread), *found]

    def _without_figures(self, code: str, detail: str) -> list[Values]:
        reasons = [_reason(code, detail)]
        devices = [_identity_of(one) | {"reasons": reasons, "unknowns": {}} for one in self._mig_devices]
        return [self._describe({}, reasons), *devices]

    def _without_query(self) -> list[Values]:
        """Report a suspended GPU, without waking it."""
        self._slow_in = 0
        devices = [_asleep(_identity_of(one), one) | {"reasons": []} for one in self._mig_devices]
        whole = _asleep(self.identity, self.identity)
        return [self._describe({"asleep": True}, [], _mapping(whole["unknowns"])), *devices]

    def _describe(
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
    """The driver lists a GPU and does not open it, though it is not lost."""


def is_suspended(bus_id: object, *, root: str = "/") -> bool:
    """Whether the kernel has suspended the device at a PCI address, as NVML writes it (`00000000:1A:00.0`).

    The device is not touched: a query through the driver wakes a laptop's GPU, and one every few seconds
    keeps it awake. What the kernel does not call suspended counts as awake.
    """
    folder = pci.device_folder(f"{root.rstrip('/')}/sys", bus_id)
    if folder is None:
        return False
    try:
        with open(f"{folder}/power/runtime_status", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - pathlib weighs
            return file.read(_STATUS_CHARS).strip() == "suspended"
    except OSError:
        return False


def _identity_of(mig_device: Values) -> Values:
    return {name: mig_device[name] for name in _OF_A_MIG_DEVICE if name in mig_device}


def _asleep(identity: Values, awake: Values) -> Values:
    """Report a suspended GPU or MIG device by its identity; other figures are unknown."""
    figures = dict.fromkeys((name for name in readings.FIGURES if name not in identity), _ASLEEP)
    return {**identity, "asleep": True, "unknowns": {**_mapping(awake.get("unknowns")), **figures}}


def _reason(code: str, detail: str) -> dict[str, str]:
    return {"code": code, "detail": detail}


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
