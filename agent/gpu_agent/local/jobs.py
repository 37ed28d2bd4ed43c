"""Announces a worker's job to the agent for as long as the job runs.

A job never waits for an agent: it is announced as soon as one answers, and again after each restart of the
agent.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_agent.local.connection import PATIENCE_SECONDS, Connection, LocalError, NoAgentError, RefusedError

RETRY_SECONDS = 1.0
"""The interval of attempts to announce a job while no agent answers."""


@contextmanager
def job(job_id: str, *, path: Path | None = None, required: bool = False) -> Iterator["Announcement"]:
    """Announce a job in flight while the block runs; it ends with the process too.

    Raises `RefusedError` where the agent refuses it. Where no agent answers, or it is busy, `LocalError` is
    raised only if the agent is `required`: else the job runs, and is announced as soon as an agent answers.
    After a restart of the agent it is announced again.
    """
    announcement = Announcement(job_id, path)
    try:
        announcement.begin()
    except NoAgentError:
        if required:
            raise
    except RefusedError as refused:
        if required or not refused.not_now:
            raise
    thread = threading.Thread(target=announcement.maintain, name=f"gpu-agent job {job_id}", daemon=True)
    thread.start()
    try:
        yield announcement
    finally:
        announcement.end()
        thread.join(PATIENCE_SECONDS)


class Announcement:
    """The announcement of one job, renewed after each restart of the agent; see `job`."""

    def __init__(self, job_id: str, path: Path | None) -> None:
        self.job_id = job_id
        self._path = path
        self._connection: Connection | None = None
        """Holds the job."""
        self._attempt: Connection | None = None
        """Waits for the agent's answer."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        _announcements.add(self)

    @property
    def announced(self) -> bool:
        """Whether an agent knows of the job at this moment."""
        return self._connection is not None

    def begin(self) -> None:
        """Announce it; raises `LocalError`."""
        self._attempt = connection = Connection(self._path)
        if self._ended.is_set():  # `end` ran before it could see this connection
            connection.close()
            return
        try:
            connection.ask("job_start", job_id=self.job_id)
        except LocalError:
            connection.close()
            raise
        with self._lock:
            if self._ended.is_set():
                connection.close()
            else:
                self._connection = connection

    def maintain(self) -> None:
        """Run until `end`; announce the job again whenever the agent has gone."""
        while not self._ended.is_set():
            connection = self._connection
            if connection is not None:
                connection.wait_for_end()
                self._connection = None
                connection.close()
            elif not self._ended.wait(RETRY_SECONDS):
                with contextlib.suppress(LocalError):
                    self.begin()

    def end(self) -> None:
        """The job has ended."""
        with self._lock:
            self._ended.set()
            connections = self._connection, self._attempt
        for connection in connections:
            if connection is not None:
                connection.close()

    def leave_to_parent(self) -> None:
        """Give the announcement up in a forked child: the job is its parent's."""
        connections = self._connection, self._attempt
        self._connection = self._attempt = None
        self._lock, self._ended = (
            threading.Lock(),
            threading.Event(),
        )  # a thread that held them is not in this process
        self._ended.set()
        for connection in connections:
            if connection is not None:
                connection.abandon()


_announcements: weakref.WeakSet[Announcement] = weakref.WeakSet()


def _after_fork() -> None:
    for announcement in list(_announcements):
        announcement.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
