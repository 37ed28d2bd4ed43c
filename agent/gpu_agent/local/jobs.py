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
"""How soon a job is announced anew after the agent went away."""


@contextmanager
def job(job_id: str, *, path: Path | None = None, required: bool = False) -> Iterator["Announcement"]:
    """Announce a job in flight for as long as the block runs; it ends with the process too.

    Raises `RefusedError` where an agent does not take it. Where none is there, or it does not get to
    it, `LocalError` is raised only if one is `required`: else the job runs, and is announced as soon as
    may be. An agent that restarts is told again.
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
    keeper = threading.Thread(target=announcement.keep, name=f"gpu-agent job {job_id}", daemon=True)
    keeper.start()
    try:
        yield announcement
    finally:
        announcement.end()
        keeper.join(PATIENCE_SECONDS)


class Announcement:
    """One job, kept announced over restarts of the agent; for `job`, which see."""

    def __init__(self, job_id: str, path: Path | None) -> None:
        self.job_id = job_id
        self._path = path
        self._conversation: Connection | None = None
        self._asking: Connection | None = None
        """The one whose answer is waited for."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        _announcements.add(self)

    @property
    def announced(self) -> bool:
        """Whether an agent knows of the job at this moment."""
        return self._conversation is not None

    def begin(self) -> None:
        """Announce it; raises `LocalError`."""
        self._asking = conversation = Connection(self._path)
        if self._ended.is_set():  # before `end` could close what it did not see yet
            conversation.close()
            return
        try:
            conversation.ask("job_start", job_id=self.job_id)
        except LocalError:
            conversation.close()
            raise
        with self._lock:
            if self._ended.is_set():
                conversation.close()
            else:
                self._conversation = conversation

    def keep(self) -> None:
        """Stay until `end`; announce the job again whenever the agent went away."""
        while not self._ended.is_set():
            conversation = self._conversation
            if conversation is not None:
                conversation.wait_for_end()
                self._conversation = None
                conversation.close()
            elif not self._ended.wait(RETRY_SECONDS):
                with contextlib.suppress(LocalError):
                    self.begin()

    def end(self) -> None:
        """The job is done."""
        with self._lock:
            self._ended.set()
            conversations = self._conversation, self._asking
        for conversation in conversations:
            if conversation is not None:
                conversation.close()

    def leave_to_parent(self) -> None:
        """Have no part in it any more: in a child that was forked meanwhile the job is its parent's."""
        conversations = self._conversation, self._asking
        self._conversation = self._asking = None
        self._lock, self._ended = threading.Lock(), threading.Event()  # who held them is not in this process
        self._ended.set()
        for conversation in conversations:
            if conversation is not None:
                conversation.abandon()


_announcements: weakref.WeakSet[Announcement] = weakref.WeakSet()


def _forked() -> None:
    for announcement in list(_announcements):
        announcement.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
