import os
from pathlib import Path

import pytest

from gpu_agent.node.jobs import Jobs, Worker
from gpu_agent.node.socket.jobs import AnnouncedJobs, connected, named
from gpu_agent.node.socket.peer import House, Peer
from gpu_agent.node.socket.requests import Refusal
from gpu_agent.probe.processes import process

HOUSE = House(uid=900, group=800)
ANN, BOB, ROOT = (Peer(uid, frozenset({800}), pid=None) for uid in (5, 6, 0))
ONE, OTHER = Worker("connection-1"), Worker("process-7-70", 7, 70)


def announced(*jobs: tuple[str, Worker, Peer]) -> tuple[AnnouncedJobs, Jobs]:
    counted = Jobs()
    told = AnnouncedJobs(counted, HOUSE)
    for job_id, worker, peer in jobs:
        assert told.start(job_id, worker, peer, held_by="connection", now=100.0) is None
    return told, counted


def code(refusal: object) -> str | None:
    return refusal.code if isinstance(refusal, Refusal) else None


def test_what_is_announced_is_counted_and_told_with_whose_it_is() -> None:
    told, counted = announced(("a", ONE, ANN))
    assert counted.ids == ("a",)
    assert [job.document() for job in told.listed()] == [
        {"job_id": "a", "uid": 5, "since": 100.0, "pid": None, "held_by": "connection"}
    ]


def test_a_connection_that_ends_takes_its_jobs_and_no_others() -> None:
    told, counted = announced(("a", ONE, ANN), ("b", OTHER, ANN))
    assert told.holds(ONE)
    told.gone(ONE)
    assert counted.ids == ("b",)
    assert (told.holds(ONE), told.holds(OTHER)) == (False, True)


def test_a_job_that_ended_otherwise_is_forgotten() -> None:
    told, counted = announced(("a", OTHER, ANN))
    counted.gone(OTHER)  # its process is no more
    assert told.listed() == []
    assert told.start("a", ONE, BOB, held_by="connection", now=200.0) is None


def test_a_job_that_is_announced_again_keeps_its_beginning_and_changes_its_holder() -> None:
    told, _ = announced(("a", ONE, ANN))
    told.start("a", OTHER, ANN, held_by="process", now=200.0)
    (job,) = told.listed()
    assert (job.since, job.held_by, job.pid) == (100.0, "process", 7)
    told.gone(ONE)
    assert told.listed() == [job]


def test_nobody_ends_or_takes_over_anothers_job_but_who_may_give_orders() -> None:
    told, counted = announced(("a", ONE, ANN))
    assert code(told.finish("a", BOB)) == "forbidden"
    assert code(told.start("a", OTHER, BOB, held_by="process", now=1.0)) == "forbidden"
    assert [job.uid for job in told.listed()] == [ANN.uid]
    assert told.finish("a", ROOT) is None
    assert counted.ids == ()


def test_a_job_that_is_not_in_flight_cannot_be_finished() -> None:
    told, _ = announced(("a", ONE, ANN))
    assert told.finish("a", ANN) is None
    assert code(told.finish("a", ANN)) == "unknown_job"


def test_what_cannot_be_counted_is_refused() -> None:
    told, _ = announced()
    assert code(told.start("a\nb", ONE, ANN, held_by="connection", now=1.0)) == "not_counted"
    assert told.listed() == []


def test_a_worker_is_known_by_its_process_where_that_can_be_seen(tmp_path: Path) -> None:
    here = Peer(0, frozenset(), os.getpid())
    ours = process(os.getpid())
    assert ours is not None
    assert connected(3, here) == Worker("connection-3", os.getpid(), ours.started)
    assert connected(3, here, tmp_path) == Worker("connection-3")
    assert connected(3, ANN) == Worker("connection-3")


@pytest.mark.parametrize("uid", [os.getuid(), 900, 0])
def test_a_process_may_be_named_by_its_owner_and_by_who_gives_orders(uid: int) -> None:
    worker = named(os.getpid(), Peer(uid, frozenset(), os.getpid()), HOUSE)
    ours = process(os.getpid())
    assert ours is not None
    assert worker == Worker(f"process-{os.getpid()}-{ours.started}", os.getpid(), ours.started)


def test_a_process_of_somebody_else_or_none_is_refused(tmp_path: Path) -> None:
    stranger, root = (Peer(uid, frozenset({800}), os.getpid()) for uid in (os.getuid() + 12345, 0))
    assert code(named(os.getpid(), stranger, HOUSE)) == "forbidden"
    assert code(named(os.getpid(), root, HOUSE, root=tmp_path)) == "unknown_process"


def test_the_numbers_of_another_container_name_nobody_here() -> None:
    here = Peer(0, frozenset(), os.getpid())
    assert isinstance(named(os.getpid(), here, HOUSE, own_pid=os.getpid()), Worker)
    elsewhere = named(os.getpid(), here, HOUSE, own_pid=os.getpid() + 1)
    assert isinstance(elsewhere, Refusal)
    assert (elsewhere.code, "job run" in elsewhere.message) == ("unknown_process", True)
    assert code(named(os.getpid(), ROOT, HOUSE, own_pid=1)) == "unknown_process"
    assert code(named(os.getpid(), ROOT, HOUSE)) == "unknown_process"


def test_a_connection_that_ends_leaves_its_process_a_worker_until_that_ends_too() -> None:
    told, counted = announced(("a", Worker("connection-1", 7, 70), ANN))
    told.gone(Worker("connection-1", 7, 70))
    assert (counted.ids, counted.workers) == ((), (Worker("process-7-70", 7, 70),))
    told.gone(Worker("connection-2", 8, 80))  # has announced nothing
    assert counted.workers == (Worker("process-7-70", 7, 70),)
