"""Odd trees of models, made from a seed, and what must hold for each.

    python -m tests.probe.models.random_trees [--trees 1000] [--seed 0]

Broken links, loops, folders closed to the reader, files of a terabyte that take no room, names that are no
text, half manifests, and in one of three a writer at work. A scanner that rests while the kernel reports
nothing must find what one finds that always looks. A failure is printed with the seed that repeats it.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

from gpu_agent.probe.models.declared import ModelDeclaration
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.probe.models.inotify import InotifyWatcher
from gpu_agent.probe.models.ollama import OllamaStore
from gpu_agent.probe.models.scanner import ModelScanner, Scan
from gpu_agent.probe.models.source import Listing, ModelSource, Reading, Unit
from gpu_agent.probe.models.source_state import SourceState
from gpu_agent.probe.snapshot import FeaturePolicy, supported_features
from gpu_agent.wire.codec import decode_from_node, encode
from gpu_agent.wire.declaration import Owner, declare, registration
from gpu_agent.wire.inventory import GpuReport, Host, Inventory, Outcome
from tests.probe.models.caches import unprivileged
from tests.probe.models.odd_trees import MARK, SECRET, Tree, hide, writer

MOST_PARTIAL_SCANS = 20
STEPS = 12
SOURCES = (HubCache, OllamaStore, ModelFolders)
HOST = Host(
    cpu_logical_cores=1,
    cpu_physical_cores=None,
    memory_total_mb=1024,
    memory_used_mb=None,
    memory_available_mb=None,
    platform="linux",
)


class Metered:
    """A source that counts what is read of it, on a clock that moves by one with each unit."""

    def __init__(self, source: ModelSource) -> None:
        self.name = source.name
        self.paths = source.paths
        self.source = source
        self.reads = 0
        self.listings = 0

    def units(self) -> Listing:
        self.listings += 1
        return self.source.units()

    def read(self, unit: Unit) -> Reading:
        self.reads += 1
        return self.source.read(unit)


def judge(seed: int) -> None:
    """Make the tree of a seed and hold the scanner to what must be true of any; raises `AssertionError`."""
    dice = random.Random(seed)
    busy = seed % 3 == 0
    with tempfile.TemporaryDirectory(prefix=MARK, ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        tree = grown(Path(folder), dice)
        sources = [Metered(source([tree.root])) for source in SOURCES]
        before = open_files()
        with writer(tree) if busy else unprivileged() if seed % 3 == 1 else nullcontext():
            scans = list(scanned(sources, dice))
        assert open_files() <= before + 1, "a file was left open"
        if not busy:
            one, other = (replace(scan, disks=()) for scan in scans[-2:])  # others use the disk too
            assert one == other, "two looks at the same tree differ"
        for scan in {(scan.models, *scan.problems.items()): scan for scan in scans}.values():
            assert_reportable(scan, folder)


def grown(folder: Path, dice: random.Random) -> Tree:
    """Make a tree in a folder, beside a file that no scan may reach."""
    root = folder / "root"
    root.mkdir()
    hide(f"{folder}/outside", 0)
    tree = Tree(root, dice)
    tree.grow(str(root))
    return tree


def scanned(sources: Sequence[Metered], dice: random.Random) -> Iterator[Scan]:
    """A scanner within a budget of some units at a time, to the end; then whole, twice."""
    scanner = ModelScanner(
        sources, [ModelDeclaration(model_id="a/b", kind="asr")], monotonic=lambda: clock(sources)
    )
    budget, complete = dice.randint(0, 3), False
    for _ in range(MOST_PARTIAL_SCANS):
        if complete:
            break
        began = clock(sources)
        scan = scanner.scan(budget)
        assert clock(sources) - began <= max(1, budget), "a scan went beyond its budget"
        complete = scan.complete
        yield scan
    watcher = InotifyWatcher.open()
    if watcher is not None:
        watcher.follow([path for state in scanner.states for path in state.watched_paths])
        watcher.drain()
        watcher.close()
    yield scanner.scan(1e9)
    yield scanner.scan(1e9)


def judge_rest(seed: int) -> int:
    """Change the tree of a seed step by step, and scan it with and without the kernel's notifications.

    How often a source was left alone; raises `AssertionError` where that made a difference.
    """
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix=MARK, ignore_cleanup_errors=True) as folder, ExitStack() as open_:
        tree = grown(Path(folder), dice)
        sources = [Metered(source([tree.root])) for source in SOURCES]
        resting = ModelScanner(sources, wall_ns=in_ten_seconds)
        looking = ModelScanner([source([tree.root]) for source in SOURCES], wall_ns=in_ten_seconds)
        watchers = {state: watch(state, open_) for state in resting.states}

        def follow(state: SourceState) -> None:
            watchers[state].follow(state.watched_paths)

        for step in range(STEPS):
            for _ in range(dice.choice((0, 0, 0, 1, 2))):
                tree.change_somewhere()
            for watcher in watchers.values():
                watcher.drain()
            found = resting.scan(1e9, after_read=follow)
            there = looking.scan(1e9)
            assert replace(found, disks=()) == replace(there, disks=()), f"step {step}: a change was missed"
    return STEPS * len(sources) - sum(source.listings for source in sources)


def watch(state: SourceState, open_: ExitStack) -> InotifyWatcher:
    """Let a source rest while nothing is reported."""
    watcher = InotifyWatcher.open()
    assert watcher is not None
    open_.callback(watcher.close)
    state.quiet_since = watcher.quiet_since
    return watcher


def in_ten_seconds() -> int:
    """A clock that is fast, so that what was just written is old enough."""
    return time.time_ns() + 10_000_000_000


def clock(sources: Sequence[Metered]) -> float:
    """As many seconds as units were read."""
    return float(sum(source.reads for source in sources))


def assert_reportable(scan: Scan, folder: str) -> None:
    """The scan fits a message that its reader accepts, and holds no path of this machine."""
    inventory = Inventory(
        host=HOST,
        gpu=GpuReport(outcome=Outcome.NO_DRIVER),
        models=scan.models,
        features_supported=supported_features(FeaturePolicy(), scan.models),
    )
    frame = encode(registration(declare(inventory, Owner()), node_id=None))
    decode_from_node(frame)
    assert MARK not in frame, "a path was reported"
    assert SECRET not in frame, "a link was followed out of the root"
    for text in (*scan.problems.values(), *(model.detail or "" for model in scan.models)):
        assert folder not in text, "a reason holds a path"
        text.encode()


def open_files() -> int:
    """How many files this process holds open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a count


def play(seeds: Sequence[int], report: Callable[[str], object]) -> int:
    """Judge the trees of these seeds; how many faults there were."""
    faults = 0
    for seed in seeds:
        try:
            judge(seed)
            judge_rest(seed)
        except Exception as fault:  # noqa: BLE001  whatever it is, its seed is wanted
            faults += 1
            report(f"seed {seed}: {type(fault).__name__}: {fault}")
    return faults


def main() -> int:
    """Play and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trees", type=int, default=1000, help="how many trees")
    parser.add_argument("--seed", type=int, default=0, help="the first tree's seed")
    arguments = parser.parse_args()
    began = time.monotonic()
    faults = play(range(arguments.seed, arguments.seed + arguments.trees), print)
    seconds = time.monotonic() - began
    print(f"{arguments.trees} trees from seed {arguments.seed}, {faults} faults, {seconds:.0f} s")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
