"""What PID 1 of a container owes: signals reach the program, and no ended orphan stays a zombie.

There the program runs as a child of a process that does nothing else, since who waits for any child takes
from the program what it awaits of its own. Elsewhere nothing of this happens. It decides nothing about
signals, and ends with whatever code the program ends with.
"""

import os
import signal
from collections.abc import Callable

from gpu_agent.runtime.signals import RELOADING, STOPPING

_FROM_THE_KERNEL = 0x80
"""`si_code` of what no process sent: a terminal's Ctrl-C, which goes to its whole foreground by itself."""
_KILLED = 128
"""Added, as shells do, to the number of the signal that killed the program."""


def run_as_first_process(work: Callable[[], int]) -> int:
    """Do the work and return its exit code; as PID 1 in a child, with the code in both processes."""
    if os.getpid() != 1:
        return work()
    watched = {*STOPPING, *RELOADING, signal.SIGCHLD}
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # whoever started us may have had it ignored: none would come
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)  # and not as it was: they may have been blocked
        return work()
    return _watch_over(child, watched)


def _watch_over(child: int, watched: set[signal.Signals]) -> int:
    code = _bury_the_dead(child)  # some may have ended before anybody listened
    while code is None:
        arrived = signal.sigwaitinfo(watched)
        if arrived.si_signo == signal.SIGCHLD:
            code = _bury_the_dead(child)
        elif arrived.si_code != _FROM_THE_KERNEL:
            os.kill(child, arrived.si_signo)
    return code


def _bury_the_dead(child: int) -> int | None:
    """Take note of every child that has ended; gives the program's code when it is among them."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else _KILLED - code
        if ended == 0:
            return None
