"""How many files this process may have open, and how many of them are left for nodes.

Every node is a socket, and a registry that has run out of files can open neither its store nor its
log. Decides no limit itself: the system has the last word.
"""

import sys

if sys.platform != "win32":
    import resource

KEPT_BACK = 512
"""For the store, operators, and peers that are told that there is no room."""


def connections_for(wanted: int) -> int:
    """Raise the limit of open files as far as we may, and return how many connections it leaves room for.

    Often it is 1 024 at first, and more may be had for the asking.
    """
    if sys.platform == "win32":
        return wanted
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return wanted if hard == resource.RLIM_INFINITY else max(1, min(wanted, hard - KEPT_BACK))
