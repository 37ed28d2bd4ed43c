"""All readings of one machine as one report: NVML's own, and what collectors found beside it.

GPUs are told apart by uuid and by their place on the PCI bus, and the first to list one has it. A
reading that failed takes nothing from the others: its sentence stands in `detail`. Judges no GPU.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome


def merged(own: GpuReport, others: Mapping[str, GpuReport]) -> GpuReport:
    """Join NVML's report and the collectors', in their order; without others it is `own` itself."""
    if not others:
        return own
    everyone = (own, *others.values())
    outcome = _outcome(own, everyone)
    return replace(
        own,
        outcome=outcome,
        detail=" ".join(dict.fromkeys(_sentences(own, others.values(), outcome))) or None,
        gpus=tuple(_numbered(_distinct(everyone))),
        driver_version=next((one.driver_version for one in everyone if one.driver_version), None),
        took_ms=max(one.took_ms for one in everyone),
    )


def _outcome(own: GpuReport, everyone: Iterable[GpuReport]) -> Outcome:
    """`ok` where any reading gave GPUs; else what is broken goes before what is merely not there."""
    if any(one.outcome is Outcome.OK and one.gpus for one in everyone):
        return Outcome.OK
    broken = any(one.outcome is Outcome.DRIVER_BROKEN for one in everyone)
    return Outcome.DRIVER_BROKEN if broken else own.outcome


def _sentences(own: GpuReport, others: Iterable[GpuReport], outcome: Outcome) -> Iterator[str]:
    """A failure is always told; that somebody's driver is not there, only where nothing else is."""
    found = outcome is Outcome.OK and own.outcome is not Outcome.OK
    if own.detail and not (found and own.outcome is Outcome.NO_DRIVER):
        yield own.detail
    for one in others:
        if one.detail and (one.outcome is Outcome.DRIVER_BROKEN or outcome is not Outcome.OK):
            yield one.detail


def _distinct(reports: Iterable[GpuReport]) -> Iterator[tuple[int, Gpu]]:
    """Each GPU once, with the number of the report that it is from."""
    uuids: set[str] = set()
    places: set[str] = set()
    for number, report in enumerate(reports):
        listed = [gpu for gpu in report.gpus if gpu.uuid not in uuids and _place(gpu) not in places]
        uuids.update(gpu.uuid for gpu in listed)
        places.update(place for gpu in listed if (place := _place(gpu)))
        yield from ((number, gpu) for gpu in listed)


def _place(gpu: Gpu) -> str | None:
    """Where a GPU sits, with the domain as short as it is; slices share their parent's place."""
    if gpu.pci_bus_id is None or gpu.parent_uuid is not None:
        return None
    domain, _, rest = gpu.pci_bus_id.lower().partition(":")
    return f"{domain.lstrip('0')}:{rest}"


def _numbered(gpus: Iterable[tuple[int, Gpu]]) -> Iterator[Gpu]:
    """Go on counting where the report before ended: an index is one GPU's."""
    current, first, following = 0, 0, 0
    for number, gpu in gpus:
        if number != current:
            current, first = number, following
        index = None if gpu.index is None else gpu.index + first
        following = max(following, 0 if index is None else index + 1)
        yield gpu if index == gpu.index else replace(gpu, index=index)
