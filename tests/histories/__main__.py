"""Plays histories and prints a line for each; the first violation ends it and is written to a file.

Run it as `make histories RUNS=1000 FROM=17`.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.histories.campaign import Played, Stage, draw_fault
from tests.histories.network import enter
from tests.histories.objects import Result, check
from tests.histories.record import read, write
from tests.histories.registries import FORMS, ON_ETCD
from tests.store.etcd_cluster import NO_ETCD

HISTORIES_PER_REGISTRY = 10


def play(asked: argparse.Namespace) -> int:
    """Play the histories; returns 1 where one is not linearizable, or could not be decided."""
    began, undecided, played = time.monotonic(), 0, 0
    number, last = asked.start, asked.start + asked.runs
    while number < last and not _is_over(asked, began):
        block = number // HISTORIES_PER_REGISTRY
        form = asked.forms[block % len(asked.forms)]
        with tempfile.TemporaryDirectory(prefix="histories-") as folder, ExitStack() as running:
            stage = Stage(FORMS[form](Path(folder), running), running, seed=asked.seed + block)
            while number < last and number // HISTORIES_PER_REGISTRY == block and not _is_over(asked, began):
                one = stage.play(
                    number, seed=asked.seed, fault=partial(draw_fault, longest_seconds=asked.freeze)
                )
                print(f"history {number} on {form}: {one}", flush=True)
                played += 1
                undecided += bool(one.result.undecided)
                if one.result.violations:
                    _report(one, asked.folder / f"history-{asked.seed}-{number}.json")
                    return 1
                number += 1
    print(f"{played} histories in {time.monotonic() - began:.0f} s: 0 violations, {undecided} undecided")
    return int(undecided > 0)


def _is_over(asked: argparse.Namespace, began: float) -> bool:
    return asked.seconds is not None and time.monotonic() - began > asked.seconds


def _report(played: Played, path: Path) -> None:
    _print(played.result)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(
        path, played.history, about=[played.fault, *"\n".join(map(str, played.result.violations)).split("\n")]
    )
    print(f"written to {path}: `python -m tests.histories --check {path}` judges it again")


def _print(result: Result) -> None:
    for violation in result.violations:
        print(violation)


def main() -> int:
    """Read the options and play."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.histories", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--runs", type=int, default=1000, help="how many histories")
    parser.add_argument("--from", type=int, default=0, dest="start", help="the first history's number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--forms",
        default="one,gateways,etcd",
        type=lambda text: text.split(","),
        help=f"which registries, in turn: {', '.join(FORMS)}",
    )
    parser.add_argument(
        "--freeze", type=float, default=3.0, help="the longest SIGSTOP and the longest cut, in seconds"
    )
    parser.add_argument("--seconds", type=float, help="begin no history after so long")
    parser.add_argument("--folder", type=Path, default=Path("dist"), help="where a violation is written")
    parser.add_argument("--check", type=Path, metavar="FILE", help="judge a written history again")
    asked = parser.parse_args()
    if asked.check:
        result = check(read(asked.check))
        _print(result)
        return int(bool(result.violations))
    if "network" in asked.forms:
        enter("tests.histories", sys.argv[1:])
    if shutil.which("etcd") is None:
        without = [form for form in asked.forms if form not in ON_ETCD]
        print(f"{NO_ETCD}; played without it: {', '.join(without) or 'nothing'}")
        asked.forms = without
    return play(asked) if asked.forms else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the registries too
    sys.exit(main())
