"""Plays many seeds over all cores: `make simulate SEEDS=0-9999`, or one again with its trace: `TRACE=1`.

A seed that breaks an invariant prints itself, what broke, the last lines of its trace and the command that
plays it again. Ends with 1 if one did.
"""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from functools import partial

from tests.simulation.fault_profile import profile_for
from tests.simulation.harness import run_and_report, run_seed, seeds_of

_PROGRESS_EVERY_SECONDS = 10.0
_AT_ONCE = 4
_SHOWN = 10
"""So many broken seeds are reported at length."""


def main() -> int:
    """Play the seeds that the command line names."""
    asked = _asked()
    logging.disable(logging.CRITICAL)
    if asked.trace:
        return _trace(asked.seeds, asked.nodes)
    began = time.monotonic()
    broken: Counter[str] = Counter()
    failed: list[int] = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(asked.processes) as pool:
        shown = began
        seeds = asked.seeds
        for done, one in enumerate(
            pool.imap_unordered(partial(run_and_report, asked.nodes), seeds, _AT_ONCE), start=1
        ):
            if one.broken is not None:
                broken[one.broken] += 1
                failed.append(one.seed)
                if len(failed) <= _SHOWN:
                    print(one.text)
            if time.monotonic() - shown > _PROGRESS_EVERY_SECONDS:
                shown = time.monotonic()
                print(f"{done} of {len(seeds)} seeds, {len(failed)} broken", file=sys.stderr)
    took = time.monotonic() - began
    what = ", ".join(f"{name} {count}" for name, count in broken.most_common())
    print(f"{len(asked.seeds)} seeds in {took:.0f} s: {len(failed)} broken{': ' if what else ''}{what}")
    if failed:
        print(f"broken seeds: {' '.join(map(str, sorted(failed)))}")
    return 1 if failed else 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=seeds_of, default=range(500), metavar="N or N-M")
    parser.add_argument("--nodes", type=int, help="play a great fleet of so many nodes")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--trace", action="store_true", help="print every line of what happened")
    return parser.parse_args()


def _trace(seeds: range, nodes: int | None) -> int:
    failed = 0
    for seed in seeds:
        profile = profile_for(seed, nodes)
        played = run_seed(seed, profile, whole_trace=True)
        print("\n".join(played.trace.lines))
        print(f"seed {seed}: {played.broken or 'clean'}; its mark is {played.mark}; its profile: {profile}")
        failed += played.broken is not None
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
