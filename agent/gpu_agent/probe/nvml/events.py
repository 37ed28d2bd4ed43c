"""Events of the driver: Xids and uncorrected ECC errors, counted since the last reading.

Runs inside the NVML child, with the binding handed in. Each GPU has an event set of its own, because waiting
on a set that holds a lost GPU fails for every GPU in it. An event belongs to the GPU that its own handle
names, since drivers were seen to deliver events to any set. Nothing waits: events that have come are taken,
up to a bound, and the rest is left for the next reading. A driver without events is no fault of the GPU: only
a plain GPU_IS_LOST is, because event calls are known to answer Unknown Error where events do not exist (WSL,
some containers).

Taken events are sent at once: the next query to the driver may be the last of this process, and the driver
gives an event only once. Events are not judged here, with one exception: a GPU whose own processor failed
(Xid 119, 120) must not be queried any more, because each query would hang, and block every other GPU.
"""

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from types import ModuleType

from gpu_agent.probe.nvml.errors import GpuGoneError, UnknownValueError, unknown_reason
from gpu_agent.probe.nvml.readings import read_uuid

MOST_AT_ONCE = 256
"""So many events of one GPU are taken in one reading: a storm must not delay it."""

RETRY_AFTER_READINGS = 12
"""A GPU whose events worked once and then failed is registered again so many readings later."""

OnEvents = Callable[[str, dict[str, int]], None]
"""Called with a GPU's UUID and its counts: event code → how often it came."""

_NO_WAIT_MS = 0
_MIG = "MIG-"
_QUARANTINING = frozenset({"xid_119", "xid_120"})


def quarantining_event(counts: Mapping[str, int]) -> str | None:
    """Return the event among these after which a GPU must not be queried any more, if there is one."""
    return min(_QUARANTINING & counts.keys(), default=None)


class EventSets:
    """One event set for each GPU, by the GPU's UUID."""

    def __init__(self, nvml: ModuleType, on_events: OnEvents) -> None:
        self.may_identify = True
        """Whether a handle that is not known may be asked for its UUID: a quarantined GPU would hang."""
        self._nvml = nvml
        self._on_events = on_events
        self._sets: dict[str, object] = {}
        self._owners: dict[int | None, str] = {}
        """By the address of its handle: each GPU that was registered, lost ones included."""
        self._news: set[str] = set()
        self._unidentified: dict[str, dict[str, int]] = {}
        """By whose set got them in this reading: the events that name no GPU that can be identified."""
        self._quarantined: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._worked: set[str] = set()
        self._readings_since_failure: dict[str, int] = {}

    def read(self, uuid: str, handle: object) -> None:
        """Take the events since the last reading; the first call for a GPU registers it.

        Raises:
            GpuGoneError: the GPU is lost, or must not be queried any more; call `drop`.
        """
        nvml = self._nvml
        self._unidentified.pop(uuid, None)
        if uuid in self._failed and not self._should_retry(uuid):
            return
        try:
            if uuid not in self._sets:
                self._register(uuid, handle)
            self._drain(uuid)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) == nvml.NVML_ERROR_GPU_IS_LOST:
                raise GpuGoneError("gpu_lost", f"reading its events: {error}") from error
            self._failed[uuid], self._readings_since_failure[uuid] = unknown_reason(nvml, error), 0
            self._free(uuid)
        else:
            self._failed.pop(uuid, None)
            self._worked.add(uuid)
        if uuid in self._quarantined:
            raise GpuGoneError("gpu_silent", self._quarantined[uuid])

    def drop(self, uuid: str) -> None:
        """Take the last events of a GPU, and free its set."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._drain(uuid)
        self._free(uuid)

    def close(self) -> None:
        """Take what has come for every GPU, and free all sets: before the library is closed."""
        for uuid in tuple(self._sets):
            self.drop(uuid)
        self._failed.clear()
        self._owners.clear()

    @property
    def has_news(self) -> bool:
        """Whether `had_events` would be true of any GPU."""
        return bool(self._news)

    def had_events(self, uuid: str) -> bool:
        """Whether events of a GPU were taken since the last call, whichever set they came to."""
        had = uuid in self._news
        self._news.discard(uuid)
        return had

    def failure(self, uuid: str) -> str | None:
        """Why a GPU has no events, or what came for no GPU; None while all is well."""
        if uuid in self._unidentified:
            return f"the driver named no GPU that can be identified for {', '.join(self._unidentified[uuid])}"
        return self._failed.get(uuid)

    def _should_retry(self, uuid: str) -> bool:
        """Count a reading without events; a GPU whose events never worked is not retried."""
        self._readings_since_failure[uuid] += 1
        return uuid in self._worked and self._readings_since_failure[uuid] >= RETRY_AFTER_READINGS

    def _register(self, uuid: str, handle: object) -> None:
        nvml = self._nvml
        wanted = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
        supported = nvml.nvmlDeviceGetSupportedEventTypes(handle) & wanted
        if not supported & nvml.nvmlEventTypeXidCriticalError:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        self._owners[_address(handle)] = uuid
        self._sets[uuid] = nvml.nvmlEventSetCreate()
        nvml.nvmlDeviceRegisterEvents(handle, supported, self._sets[uuid])

    def _drain(self, uuid: str) -> None:
        """Take what has come, and send it, even where the driver then fails."""
        counts: dict[str, dict[str, int]] = {}
        try:
            self._take(uuid, counts)
        finally:
            for owner, owned in counts.items():
                self._news.add(owner)
                self._on_events(owner, owned)
                if why := quarantining_event(owned):
                    self._quarantined[owner] = why

    def _take(self, uuid: str, counts: dict[str, dict[str, int]]) -> None:
        nvml = self._nvml
        for _ in range(MOST_AT_ONCE if uuid in self._sets else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(self._sets[uuid], _NO_WAIT_MS)
            except nvml.NVMLError_Timeout:
                return
            code = self._code(event.eventType, event.eventData)
            if code is not None:
                owner = self._owner(event.device)
                where = self._unidentified if owner is None else counts
                owned = where.setdefault(owner or uuid, {})
                owned[code] = owned.get(code, 0) + 1

    def _owner(self, handle: object) -> str | None:
        """Return the key of the GPU that an event's handle names; None where it cannot be identified.

        A GPU that was registered is known by its handle, so that one that is lost is not queried.
        """
        nvml = self._nvml
        known = self._owners.get(_address(handle))
        if known is not None or self._quarantined or not self.may_identify:
            return known
        try:
            uuid = str(read_uuid(nvml, handle)["uuid"])
            if not uuid.startswith(_MIG):
                return uuid
            parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            return self._owners.get(_address(parent)) or str(read_uuid(nvml, parent)["uuid"])
        except (nvml.NVMLError, UnknownValueError, UnicodeDecodeError):
            return None

    def _code(self, kind: int, number: int) -> str | None:
        if kind == self._nvml.nvmlEventTypeXidCriticalError:
            return f"xid_{number}"
        return "ecc_uncorrected" if kind == self._nvml.nvmlEventTypeDoubleBitEccError else None

    def _free(self, uuid: str) -> None:
        opened = self._sets.pop(uuid, None)
        if opened is not None:
            with contextlib.suppress(self._nvml.NVMLError):  # one that stays goes with the library
                self._nvml.nvmlEventSetFree(opened)


def _address(handle: object) -> int | None:
    """Return where a handle points; the binding makes another object for the same handle at each call."""
    return ctypes.cast(handle, ctypes.c_void_p).value  # type: ignore[arg-type]  # the binding has no types
