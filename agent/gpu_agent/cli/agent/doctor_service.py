"""The doctor's look at the agent that runs, and how the doctor becomes the service's user.

Run by root the doctor checks the service of the machine as the service is: with its user, its groups and its
environment. What that user may not read then fails here, too.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import gpu_agent
from gpu_agent.cli.agent.status_page import activity_in_words
from gpu_agent.cli.client.answers import parse_answer
from gpu_agent.local.connection import LocalError, RefusedError, ask
from gpu_agent.runtime.check_results import CheckResult, fail, ok, skipped, warn
from gpu_agent.runtime.systemd.install import find_user, first_inaccessible
from gpu_agent.runtime.systemd.units import COMPONENTS
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.control import StatusDocument

if sys.platform != "win32":
    import grp
    import pwd

AGENT = COMPONENTS["agent"]
_CHECK = "agent"
_DRIVERS_GROUP = "video"
"""The unit's SupplementaryGroups."""
_OF_THE_TERMINAL = ("PATH", "LANG", "LC_ALL", "TERM", "COLUMNS", "LINES", "NO_COLOR", "GPU_AGENT_DEBUG")
_OF_THE_PROGRAM = ("PYTHON", "GPU_AGENT_CALLERS_PYTHON")
"""By these variables the processes that it starts find the same libraries."""
_SETGID_AND_SETUID = 1 << 6 | 1 << 7
_MORE = "see `gpu-agent status`: it shows the whole state and the next step"


def running_agent(socket: Path | None = None, *, service_runs: bool = False) -> StatusDocument | CheckResult:
    """Ask the agent of this machine for its state; returns a result where it does not answer.

    An agent that does not answer although its service runs has stalled.
    """
    try:
        return parse_answer(ask("status", path=socket), StatusDocument).model
    except (LocalError, ValueError) as error:
        words = str(error).partition(": ")[0]
        if service_runs and not isinstance(error, RefusedError):
            return fail(_CHECK, words, "run `systemctl restart gpu-agent`; its log says what it did last")
        return skipped(_CHECK, words if not isinstance(error, RefusedError) else str(error))


def agent_checks(answer: StatusDocument) -> Iterator[CheckResult]:
    """Yield what the agent of this machine reports itself: its session, its state directory, its settings."""
    yield _session_check(answer)
    if answer.agent.state_problem is not None and answer.agent.state_problem not in (
        answer.session.why or ""
    ):
        what, _, fix = answer.agent.state_problem.rpartition(": ")
        yield fail(_CHECK, what or fix, fix if what else _MORE)
    if answer.agent.settings_problem is not None:
        waits = answer.agent.settings_problem.startswith("settings wait")
        fix = (
            "run `systemctl restart gpu-agent`"
            if waits
            else "correct it and run `systemctl reload gpu-agent`"
        )
        yield warn(_CHECK, answer.agent.settings_problem, fix)


def other_options(answer: StatusDocument, *, registry_named: bool, simulates: bool) -> list[str]:
    """Return the options that the agent was started with, and the doctor was not."""
    simulated = answer.machine is not None and answer.machine.simulated
    return [
        *([] if registry_named else [f"--registry {answer.session.registry}"]),
        *(["--simulate"] if simulated and not simulates else []),
    ]


def _session_check(answer: StatusDocument) -> CheckResult:
    status, name = answer.status, answer.node_id or "this machine, which has no id yet,"
    if answer.drain is not None:
        words = f"{name} is drained by its owner: {answer.drain.reason}"
        return warn(_CHECK, words, "run `gpu-agent resume` to put the machine back into service")
    if not answer.connected:
        apart = f"{name} is not connected to {answer.session.registry}"
        if answer.session.token_problem is not None:
            what, _, step = answer.session.token_problem.partition(". ")
            return fail(_CHECK, f"{apart}: {what}", step or _MORE)
        return fail(_CHECK, f"{apart}: {activity_in_words(answer.session)}", _MORE)
    if status is None:
        return ok(_CHECK, f"{name} is connected, and has no status yet")
    words = f"{name} is {status.status}: {status.reason}" if status.reason else f"{name} is {status.status}"
    if status.status == NodeStatus.READY:
        return ok(_CHECK, words)
    return warn(_CHECK, words, status.clears_when or _MORE)


def why_not_as_service() -> str | None:
    """Say why the doctor cannot become the service's user; None where it can."""
    user = find_user(AGENT.service)
    if user.uid is None:
        return f"there is no user {AGENT.service}"
    if not _may_change_user():
        return "this container lets root become no other user"
    needed = [Path(sys.executable), Path(os.__file__), Path(gpu_agent.__file__)]
    closed = first_inaccessible(needed, user, unit="")
    return (
        None if closed is None else f"user {AGENT.service} cannot run this program: closed to it is {closed}"
    )


def _may_change_user() -> bool:
    """Whether this process has CAP_SETGID and CAP_SETUID, as root has outside of containers."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    effective = next((row.split()[1] for row in status.splitlines() if row.startswith("CapEff:")), None)
    return effective is None or int(effective, 16) & _SETGID_AND_SETUID == _SETGID_AND_SETUID


def become_service(environment: Iterable[str]) -> None:
    """Take the user, the groups and the environment of the service; there is no way back.

    Raises `OSError` where the system refuses.
    """
    entry = pwd.getpwnam(AGENT.service)
    groups = {*os.getgrouplist(entry.pw_name, entry.pw_gid)}
    groups |= {group.gr_gid for group in grp.getgrall() if group.gr_name == _DRIVERS_GROUP}
    terminal = {
        name: value
        for name, value in os.environ.items()
        if name in _OF_THE_TERMINAL or name.lstrip("_").startswith(_OF_THE_PROGRAM)
    }
    os.setgroups([*groups])  # the ids first: where the system refuses them nothing else has changed
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    os.environ.clear()
    os.environ.update({**terminal, "HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name})
    for variable in environment:
        name, _, value = variable.partition("=")
        os.environ[name] = value
    os.chdir("/")
