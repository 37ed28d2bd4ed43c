"""What the driver tells of its GPUs as it happens: Xids and uncorrected ECC errors, counted since last asked.

Runs inside the NVML child, with the binding handed in. Each GPU has an event set of its own, because
waiting on one that holds a lost GPU fails for all in it. It never waits: what has come is taken, up to
a bound, and the rest is left for the next time. A driver that tells of no events is no fault of the
GPU's: only a plain GPU_IS_LOST is, as event calls are known to answer Unknown Error where events do
not exist (WSL, some containers). What it has taken it tells at once: the question to the driver that
follows may be the last of this process, and nobody hears an event twice. It judges none, with one
exception: a GPU whose own processor failed must not be asked any more, because each question would
hang, and every other GPU with it.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType

from gpu_agent.probe.nvml.errors import GpuGoneError, Values, unknown_reason
from gpu_agent.probe.stand_in import UNIDENTIFIED

MOST_AT_ONCE = 256
"""So many events of one GPU are taken at a time: a storm must not hold the reading up."""

AGAIN_AFTER_READINGS = 12
"""A GPU that was heard once and then no more is listened to anew so often: one failure is not for good."""

OnEvents = Callable[[str, dict[str, int]], None]
"""Told of a GPU's UUID and of how often each event came: event code → count."""

_AT_ONCE_MS = 0
_QUARANTINING = frozenset({"xid_119", "xid_120"})


def quarantining_event(counts: Mapping[str, int]) -> str | None:
    """Name the event after which a GPU must not be asked any more, where it is among these."""
    return min(_QUARANTINING & counts.keys(), default=None)


class EventSets:
    """One event set for each GPU that is listened to, by the GPU's UUID."""

    def __init__(self, nvml: ModuleType, tell: OnEvents) -> None:
        self._nvml = nvml
        self._tell = tell
        self._sets: dict[str, object] = {}
        self._silenced: dict[str, str] = {}
        self._deaf: dict[str, str] = {}
        self._was_heard: set[str] = set()
        self._readings_deaf: dict[str, int] = {}

    def listen(self, uuid: str, handle: object) -> None:
        """Take what came since the last time; the first time for a GPU, begin to listen to it.

        Raises:
            GpuGoneError: the GPU is lost, or must not be asked any more; call `let_go`.
        """
        nvml = self._nvml
        if uuid in self._deaf and not self._is_to_be_tried_again(uuid):
            return
        try:
            if uuid not in self._sets:
                self._begin(uuid, handle)
            self._drain(uuid)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) == nvml.NVML_ERROR_GPU_IS_LOST:
                raise GpuGoneError("gpu_lost", f"listening to its events: {error}") from error
            self._give_up(uuid, unknown_reason(nvml, error))
        else:
            self._deaf.pop(uuid, None)
            self._was_heard.add(uuid)
        if uuid in self._silenced:
            raise GpuGoneError("gpu_silent", self._silenced[uuid])

    def let_go(self, uuid: str) -> None:
        """Take what a GPU's last moments left, and listen to it no longer."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._drain(uuid)
        self._free(uuid)

    def close(self) -> None:
        """Take what has come for every GPU, and free all sets: before the library is closed."""
        for uuid in tuple(self._sets):
            self.let_go(uuid)
        self._deaf.clear()

    def explain(self, gpus: Iterable[Values]) -> None:
        """Say in a finished reading why nothing is heard of a GPU."""
        for gpu in gpus:
            uuid = str(gpu.get("uuid") or f"{UNIDENTIFIED}{gpu['index']}")
            unknowns = gpu["unknowns"]
            if uuid in self._deaf and isinstance(unknowns, dict):
                unknowns["events"] = self._deaf[uuid]

    def _begin(self, uuid: str, handle: object) -> None:
        nvml = self._nvml
        wanted = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
        supported = nvml.nvmlDeviceGetSupportedEventTypes(handle) & wanted
        if not supported & nvml.nvmlEventTypeXidCriticalError:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        self._sets[uuid] = nvml.nvmlEventSetCreate()
        nvml.nvmlDeviceRegisterEvents(handle, supported, self._sets[uuid])

    def _drain(self, uuid: str) -> None:
        """Take what has come, and tell it, even where the driver then fails."""
        counts: dict[str, int] = {}
        try:
            self._take(uuid, counts)
        finally:
            if counts:
                self._tell(uuid, counts)
            if why := quarantining_event(counts):
                self._silenced[uuid] = why

    def _take(self, uuid: str, counts: dict[str, int]) -> None:
        nvml = self._nvml
        for _ in range(MOST_AT_ONCE if uuid in self._sets else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(self._sets[uuid], _AT_ONCE_MS)
            except nvml.NVMLError_Timeout:
                return
            code = self._code(event.eventType, event.eventData)
            if code is not None:
                counts[code] = counts.get(code, 0) + 1

    def _code(self, kind: int, number: int) -> str | None:
        if kind == self._nvml.nvmlEventTypeXidCriticalError:
            return f"xid_{number}"
        return "ecc_uncorrected" if kind == self._nvml.nvmlEventTypeDoubleBitEccError else None

    def _is_to_be_tried_again(self, uuid: str) -> bool:
        """Count a reading without events; a GPU that was never heard has none to tell of."""
        self._readings_deaf[uuid] += 1
        return uuid in self._was_heard and self._readings_deaf[uuid] >= AGAIN_AFTER_READINGS

    def _give_up(self, uuid: str, why: str) -> None:
        self._deaf[uuid], self._readings_deaf[uuid] = why, 0
        self._free(uuid)

    def _free(self, uuid: str) -> None:
        opened = self._sets.pop(uuid, None)
        if opened is not None:
            with contextlib.suppress(self._nvml.NVMLError):  # one that stays goes with the library
                self._nvml.nvmlEventSetFree(opened)
