"""AMD GPUs, read from the files of the `amdgpu` kernel driver and of KFD in sysfs: the collector `amd`.

No library and no vendor tool; nothing is written, and no suspended GPU is woken. A file that is missing,
empty, refused or holds nonsense makes its own value unknown, with the reason. A GPU is a card to which KFD
gives work; one that only drives displays is none, and cards that another driver has, such as one handed to a
virtual machine, are left out. A card that is partitioned has a GPU for each part, below itself.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gpu_agent.probe import pci
from gpu_agent.probe.collectors.kfd import (
    ComputeNode,
    compute_nodes,
    compute_processes,
    topology_generation,
)
from gpu_agent.probe.collectors.protocol import INTERFACE, Surroundings
from gpu_agent.probe.collectors.sysfs import (
    ASLEEP,
    FALLEN,
    LIVE_USE,
    MICRO,
    MILLI,
    CardFolder,
    FigureFile,
    PciBus,
    drm_cards,
    files_ending,
    link_target_name,
    not_offered,
    read_failure,
    read_number,
    read_text,
    tenths,
    uuid_by_address,
)
from gpu_agent.probe.health.reasons import health_from, reason
from gpu_agent.probe.nvml.readings import OF_THE_WHOLE_GPU
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, HealthReason, MemoryKind, Outcome

DRIVER = "amdgpu"
VENDOR = pci.AMD
NAMES = Path("/usr/share/libdrm/amdgpu.ids")
"""Device ids and revisions → GPU models, as libdrm ships them; many machines have the file."""
_LONGEST_NAMES_BYTES = 1 << 20
_TINY_MB = 2048
"""No card that is worth a job has so little memory of its own."""
_WHOLE_CARD = "reported for the whole card only"

_FILES: Mapping[str, FigureFile] = {
    "utilization_percent": FigureFile(("gpu_busy_percent",)),
    "memory_utilization_percent": FigureFile(("mem_busy_percent",)),
    # the hottest place first: some cards have no sensor but that; older kernels have no labels
    "temperature_c": FigureFile(("temp1_input",), MILLI, hwmon=True, labels=("junction", "edge", "mem")),
    # the mean where the driver has one, else the moment's
    "power_w": FigureFile(("power1_average", "power1_input"), MICRO, tenths, hwmon=True),
    "power_limit_w": FigureFile(("power1_cap",), MICRO, tenths, hwmon=True),
    "clock_sm_mhz": FigureFile(("freq1_input",), MICRO, int, hwmon=True, labels=("sclk",)),
    "clock_memory_mhz": FigureFile(("freq2_input",), MICRO, int, hwmon=True, labels=("mclk",)),
    "pcie_replays": FigureFile(("pcie_replay_count",), 1, int),
}
_LIVE = (*_FILES, "ecc_uncorrected", "retirement_pending", "processes")


class AmdGpus:
    """Every GPU of AMD's. What does not change is remembered from one reading to the next."""

    interface = INTERFACE

    def __init__(self, surroundings: Surroundings, *, names: Path = NAMES) -> None:
        self._surroundings = surroundings
        self._sys_dir = surroundings.sys_dir
        self._names = names
        self._model_names: Mapping[tuple[int, int], str] | None = None
        self._nodes: tuple[ComputeNode, ...] = ()
        self._generation: int | None = None
        self._bus = PciBus(surroundings.sys_dir, VENDOR)
        self._driver_ids: dict[str, int] = {}
        """PCI address → the driver's id of the card, as last read: at a reset its file may be away."""

    def read(self, deadline_seconds: float) -> GpuReport:  # noqa: ARG002 - sysfs answers or hangs
        """Read all cards, in the order of their PCI addresses."""
        try:
            unsorted = {folder for _, folder in drm_cards(self._sys_dir, (DRIVER,))}
            folders = sorted(unsorted, key=lambda folder: folder.name)
        except OSError as error:
            return GpuReport(
                outcome=Outcome.DRIVER_BROKEN,
                detail=f"The AMD cards cannot be listed ({error}): give the agent read access to sysfs.",
            )
        nodes = self._compute_nodes() if folders else ()
        nodes_of = _by_card(nodes, folders)
        if not nodes_of:
            return self._no_gpu(folders)
        if self._model_names is None:
            self._model_names = load_names(self._names)
        processes = compute_processes(self._sys_dir, (node.gpu_id for node in nodes))
        cards = [
            Card(
                folder,
                index,
                nodes_of[folder],
                surroundings=self._surroundings,
                model_names=self._model_names,
                processes=processes,
            )
            for index, folder in enumerate(folder for folder in folders if folder in nodes_of)
        ]
        _identify(cards, self._driver_ids)
        gpus = tuple(gpu for card in cards for gpu in card.read())
        version = read_text(self._sys_dir / "module" / DRIVER / "version")
        return GpuReport(
            outcome=Outcome.OK,
            detail=not_offered(gpus),
            gpus=gpus,
            driver_version=f"{DRIVER} {version}" if version else None,
        )

    def _compute_nodes(self) -> tuple[ComputeNode, ...]:
        """The nodes, read again only where the kernel says that they changed: a server may have 64."""
        generation = topology_generation(self._sys_dir)
        if generation is None or generation != self._generation:
            self._nodes = compute_nodes(self._sys_dir)
            self._generation = generation
        return self._nodes

    def _no_gpu(self, folders: Sequence[Path]) -> GpuReport:
        """No card can compute, or the machine has one without its driver, or none."""
        bare = next((gpu.name for gpu in self._bus.gpus() if not link_target_name(gpu / "driver")), None)
        if bare is not None:
            return GpuReport(
                outcome=Outcome.NO_DRIVER,
                detail=f"The AMD GPU at {bare} has no driver: load it with `modprobe {DRIVER}`, "
                "and see `dmesg` if it will not load.",
            )
        if folders:
            return GpuReport(
                outcome=Outcome.NO_DRIVER,
                detail=f"The AMD card at {folders[0].name} takes no computing work: /sys/class/kfd does not "
                "list it; see `dmesg` for messages of kfd, and whether ROCm supports the card.",
            )
        return GpuReport(outcome=Outcome.OK)


def _by_card(nodes: Iterable[ComputeNode], folders: Sequence[Path]) -> dict[Path, list[ComputeNode]]:
    """The nodes of each card that has some."""
    by_address = {folder.name: folder for folder in folders}
    found: defaultdict[Path, list[ComputeNode]] = defaultdict(list)
    for node in nodes:
        folder = by_address.get(node.address) or by_address.get(node.address_of_card)
        if folder is not None:
            found[folder].append(node)
    return dict(found)


def _identify(cards: Sequence["Card"], driver_ids: dict[str, int]) -> None:
    """Name by their PCI addresses what has no id of its own, or shares one with another.

    `driver_ids`: those of earlier readings, by address; those of this one are added.
    """
    for card in cards:
        if card.driver_id is not None:
            driver_ids[card.address] = card.driver_id
        card.uuid = _rocm_id(card.own_id or driver_ids.get(card.address, 0)) or card.uuid_by_address
    count = Counter(card.uuid for card in cards)
    for card in cards:
        if count[card.uuid] > 1:
            card.uuid = card.uuid_by_address
    taken = Counter(node.unique_id for card in cards for node in card.nodes)
    whole = {card.uuid for card in cards}
    for card in cards:
        card.part_uuids = [
            own
            if (own := _rocm_id(node.unique_id)) and taken[node.unique_id] == 1 and own not in whole
            else f"{card.uuid}-{number}"
            for number, node in enumerate(card.nodes)
        ]


def _rocm_id(unique_id: int) -> str | None:
    return f"GPU-{unique_id:016x}" if unique_id else None


def load_names(names: Path) -> dict[tuple[int, int], str]:
    """Read libdrm's table: device id and revision → GPU model. Empty where it is not there."""
    table: dict[tuple[int, int], str] = {}
    for line in (read_text(names, longest_bytes=_LONGEST_NAMES_BYTES) or "").splitlines():
        device, _, rest = line.partition(",")
        revision, _, name = rest.partition(",")
        try:
            table[int(device, 16), int(revision, 16)] = name.strip()
        except ValueError:
            continue  # a comment, or the version of the table
    return table


class Card:
    """A card and its parts, for one reading."""

    def __init__(
        self,
        folder: Path,
        index: int,
        nodes: Sequence[ComputeNode],
        *,
        surroundings: Surroundings,
        model_names: Mapping[tuple[int, int], str],
        processes: Mapping[int, tuple[GpuProcess, ...]] | None,
    ) -> None:
        self.nodes = nodes
        self.uuid_by_address = uuid_by_address("AMD", folder.name, surroundings)
        self._offers_integrated = surroundings.offer_integrated_gpus
        self.address = folder.name
        self.own_id = nodes[0].unique_id if len(nodes) == 1 else 0
        self.driver_id = read_number(folder / "unique_id", base=16)
        self.uuid = self.uuid_by_address
        """As ROCm has it, which follows the card from slot to slot; else its slot."""
        self.part_uuids: list[str] = []
        self._index = index
        self._model_names = model_names
        self._processes = processes
        self._folder = folder
        self._card = CardFolder(folder, _FILES, _LIVE)
        self._integrated = nodes[0].with_processor or (self._card.hwmon / "in1_label").exists()
        """Only graphics of a processor have the voltage of a northbridge, `vddnb`."""

    def read(self) -> Iterator[Gpu]:
        """Read it; of a suspended one only the files for which the driver does not wake it."""
        asleep = self._card.asleep
        reasons: tuple[HealthReason, ...] = ()
        figures: dict[str, object] = {}
        if asleep or self._card.off_the_bus:
            self._card.unread(ASLEEP if asleep else FALLEN)
            reasons = () if asleep else (reason("gpu_lost", detail=FALLEN),)
        else:
            reasons = tuple(self._bad_pages())
            figures = self._figures(reasons)
        memory = self._memory()
        name = self._name()
        yield Gpu(
            uuid=self.uuid,
            name=name,
            index=self._index,
            vendor="amd",
            pci_bus_id=self._folder.name,
            health=health_from(reasons),
            reasons=reasons,
            asleep=asleep or (None if reasons and not figures else False),
            offered=self._offers_integrated or not self._integrated,
            unknowns=self._card.unknowns,
            **memory,  # type: ignore[arg-type]  # names and types are `_memory`'s
            **figures,  # type: ignore[arg-type]  # and `_figures`'
        )
        if len(self.nodes) > 1:
            yield from self._parts(name)

    def _parts(self, name: str) -> Iterator[Gpu]:
        """The parts of a partitioned card: what is read of the whole card stands there."""
        modes = (read_text(self._folder / f"current_{kind}_partition") for kind in ("compute", "memory"))
        words = " ".join((name, "partition", *(mode for mode in modes if mode and mode.isprintable())))
        unknowns = {
            **self._card.unknowns,
            **dict.fromkeys((*OF_THE_WHOLE_GPU, *_LIVE, *LIVE_USE), _WHOLE_CARD),
        }
        for node, uuid in zip(self.nodes, self.part_uuids, strict=True):
            processes = None if self._processes is None else self._processes.get(node.gpu_id)
            own = {"processes": _NO_LIST} if processes is None else {}
            own |= {} if node.memory_mb else {"memory_mb": "mem_banks: no memory of its own"}
            yield Gpu(
                uuid=uuid,
                name=words,
                index=self._index,
                vendor="amd",
                pci_bus_id=self._folder.name,
                parent_uuid=self.uuid,
                memory_mb=node.memory_mb,
                memory_kind=MemoryKind.DEDICATED if node.memory_mb else MemoryKind.UNKNOWN,
                processes=processes,
                unknowns={name: why for name, why in unknowns.items() if name != "processes"} | own,
            )

    def _name(self) -> str:
        name = read_text(self._folder / "product_name")
        if name and name.isprintable():
            return name
        device = read_number(self._folder / "device", base=16)
        revision = read_number(self._folder / "revision", base=16)
        if device is None:
            return "AMD GPU"
        listed = self._model_names.get((device, -1 if revision is None else revision))
        return listed or f"AMD GPU 1002:{device:04x}"

    def _memory(self) -> dict[str, object]:
        """Its own memory; for a processor's graphics also what it shares with the processor (GTT)."""
        total, used = self._megabytes("vram_total"), self._megabytes("vram_used")
        shared, shared_used = self._megabytes("gtt_total"), self._megabytes("gtt_used")
        if not total:  # 0 MiB, which no card has
            why = read_failure(self._folder / "mem_info_vram_total")
            self._card.unknowns |= dict.fromkeys(("memory_mb", *LIVE_USE), why)
            return {}
        kind, unread = MemoryKind.DEDICATED, "mem_info_vram_used"
        self._integrated |= total < _TINY_MB and shared is not None and shared > total
        if self._integrated and shared is not None:
            kind, total = MemoryKind.UNIFIED, total + shared
            unread = unread if used is None else "mem_info_gtt_used"
            used = None if used is None or shared_used is None else used + shared_used
        if used is None or used > total:
            self._card.unknowns |= dict.fromkeys(LIVE_USE, read_failure(self._folder / unread))
            return {"memory_kind": kind, "memory_mb": total}
        return {
            "memory_kind": kind,
            "memory_mb": total,
            "memory_used_mb": used,
            "memory_free_mb": total - used,
        }

    def _megabytes(self, name: str) -> int | None:
        return self._card.megabytes(f"mem_info_{name}")

    def _figures(self, bad_pages: tuple[HealthReason, ...]) -> dict[str, object]:
        pages = self._folder / "ras" / "gpu_vram_bad_pages"
        known = read_text(pages) is not None
        if not known:
            self._card.unknowns["retirement_pending"] = read_failure(pages)
        return {
            **self._card.figures(),
            "processes": self._programs(),
            "ecc_uncorrected": self._uncorrected(),
            "retirement_pending": bool(bad_pages) if known else None,
        }

    def _programs(self) -> tuple[GpuProcess, ...] | None:
        """The programs of all its nodes; one that uses several parts counts once, with the memory of all."""
        if self._processes is None:
            self._card.unknowns["processes"] = _NO_LIST
            return None
        held: dict[int, list[int | None]] = {}
        for node in self.nodes:
            for process in self._processes.get(node.gpu_id, ()):
                held.setdefault(process.pid, []).append(process.memory_mb)
        return tuple(
            GpuProcess(pid=pid, memory_mb=None if None in each else sum(filter(None, each)))
            for pid, each in sorted(held.items())
        )

    def _uncorrected(self) -> int | None:
        """Uncorrected memory and block errors since the driver was loaded, over all blocks that count."""
        folder = self._folder / "ras"
        counts = [
            count
            for path in files_ending(folder, "_err_count")
            for count in _uncorrectable_errors(read_text(path))
        ]
        if counts:
            return sum(counts)
        self._card.unknowns["ecc_uncorrected"] = read_failure(folder / "umc_err_count")
        return None

    def _bad_pages(self) -> Iterator[HealthReason]:
        """Pages found bad that are still in use: `P` waits for its turn, `F` could not be set aside."""
        lines = (read_text(self._folder / "ras" / "gpu_vram_bad_pages") or "").splitlines()
        waiting = [line for line in lines if line.rpartition(":")[2].strip() in ("P", "F")]
        if waiting:
            pages = "1 bad memory page is" if len(waiting) == 1 else f"{len(waiting)} bad memory pages are"
            yield reason("retired_pages_pending", detail=f"{pages} not yet set aside")


_NO_LIST = "kfd/proc: No such file or directory"


def _uncorrectable_errors(text: str | None) -> Iterator[int]:
    """The uncorrected ones of a RAS counter: `ue: 3` among lines of other kinds."""
    for line in (text or "").splitlines():
        kind, _, count = line.partition(":")
        if kind.strip() == "ue" and count.strip().isdecimal() and count.isascii():
            yield int(count.strip()[:18])
