"""When Python's garbage collector runs in a process that holds node connections."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

COLLECTOR_THRESHOLDS = (5_000, 10, 5_000)
"""When the garbage collector runs. A heartbeat creates some sixty objects, none of them in a cycle, and frees
as many of the heartbeat before it. Python's defaults answer that with more than a hundred collections a
second, and about once a second with a full one, which visits every object of every node: measured at 5 000
nodes, a fifth of the core, in pauses of up to 350 ms. What this program frees is in no cycle (the tests of
node connections check that), so it loses little by collecting seldom. What a whole fleet leaves behind when
it registers is visited twice while it is young, in parts of 5 000 and of 50 000 objects: parts of a million
took 150 ms each."""


def tune_the_collector() -> None:
    """Set the thresholds, and never visit again what exists now."""
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector while a fleet is loaded: it would visit all objects again and again.

    Measured with 6 000 nodes, collections take two thirds of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
