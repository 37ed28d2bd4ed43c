"""Another user of this machine, for tests that root runs: a process that becomes that user first."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.waiting import patience

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")

UID, GID = 54321, 54322

_BECOME = """\
import os, sys
from importlib import import_module
import_module("json"), import_module("socket"), import_module("encodings.idna")
before = os.environ.get("ALSO_LOAD")
if before:
    import_module(before)
os.setgroups([int(one) for one in os.environ["GROUPS_"].split()])
os.setgid(int(os.environ["GID_"]))
os.setuid(int(os.environ["UID_"]))
exec(sys.argv.pop(1))
"""
"""Loads first what that user could not: this checkout may be closed to him."""


def started(
    program: str,
    *arguments: str,
    uid: int = UID,
    gid: int = GID,
    groups: Sequence[int] = (),
    also_load: str = "",
) -> "subprocess.Popen[str]":
    """Run a program as another user; its output can be read."""
    who = {"UID_": str(uid), "GID_": str(gid), "GROUPS_": " ".join(map(str, groups)), "ALSO_LOAD": also_load}
    return subprocess.Popen(
        [sys.executable, "-c", _BECOME, program, *arguments],
        env={**os.environ, **who},
        stdout=subprocess.PIPE,
        text=True,
    )


def output_of(caller: "subprocess.Popen[str]") -> str:
    """All that it printed."""
    return caller.communicate(timeout=patience(20))[0]
