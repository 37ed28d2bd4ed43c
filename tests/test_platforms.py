"""The agent on systems that lack calls of Linux's: each of its modules that meets the system loads there."""

import subprocess
import sys

import pytest

from tests.waiting import patience

PROGRAM = """\
import asyncio, importlib, multiprocessing, os, pkgutil, select, signal, socket, subprocess, sys, tempfile
import types, urllib.request
import psutil, pydantic_settings, websockets  # as themselves: they are not what is tested

absent = {
    "darwin": {select: "epoll", os: "sched_getaffinity", socket: "SO_PEERCRED"},
    "win32": {
        select: "epoll poll",
        os: "fork geteuid getgid getloadavg getpgid getuid killpg mkfifo pread sched_getaffinity setsid "
        "statvfs sysconf O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK ST_RDONLY WNOHANG chown fchmod",
        signal: "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 pthread_sigmask",
        socket: "AF_UNIX SO_PEERCRED",
    },
}
sys.platform = sys.argv[1]
for module, names in absent[sys.platform].items():
    for name in names.split():
        delattr(module, name)
if sys.platform == "win32":
    sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios", "tty"))  # importing one fails
    sys.modules["msvcrt"] = types.ModuleType("msvcrt")
for floor in ("local", "node", "probe", "runtime"):
    package = importlib.import_module(f"gpu_agent.{floor}")
    for module in pkgutil.walk_packages(package.__path__, f"gpu_agent.{floor}."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
"""


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_every_module_that_meets_the_system_loads_without_what_linux_alone_has(system: str) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", PROGRAM, system],
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(60),
    )
    assert loaded.returncode == 0, loaded.stderr[-2000:]
