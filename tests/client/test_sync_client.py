"""The client for programs without an event loop, against a registry in a program of its own."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_agent.client import JobRequest, NoAvailableNode, NotFound, RegistryError
from gpu_agent.client.sync import RegistryClient
from tests.programs import Agent, Registry, eventually
from tests.waiting import patience

ONE_GPU = JobRequest(job_id="train", gpu_count=1)
BOTH = JobRequest(job_id="other", gpu_count=2)
QUICK = (
    "--allow-simulated",
    "--warmup-heartbeat-interval-seconds=0.1",
    "--heartbeat-interval-seconds=1",
    "--max-cpu-percent=100",
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("agent")
    with Registry(*QUICK, "--claim-ttl-seconds=2") as registry, Agent(registry.node_url, folder):
        registry.await_ready(1, within_seconds=20)
        yield registry


@pytest.fixture
def client(registry: Registry) -> Iterator[RegistryClient]:
    with RegistryClient(registry.api) as client:
        yield client


def claims(registry: Registry) -> list[str]:
    return [claim["job_id"] for claim in registry.get("/v1/claims")["claims"]]


def client_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "gpu-agent client"]


def test_a_block_renews_its_claim_in_a_thread_and_releases_it(
    registry: Registry, client: RegistryClient
) -> None:
    with client.claim(ONE_GPU) as claim:
        assert len(claim.gpu_uuids) == 1
        first = claim.view.expires_at
        eventually(
            lambda: claim.view.expires_at > first + 2, within_seconds=10, what="it outlives its first TTL"
        )
        assert claims(registry) == ["train"]
        assert not claim.lost.is_set()
    assert claims(registry) == []


def test_the_thread_ends_with_the_clients_block(registry: Registry) -> None:
    before = len(client_threads())
    with RegistryClient(registry.api) as client:
        assert len(client_threads()) == before + 1
        assert [node.status for node in client.nodes()] == ["ready"]
    assert len(client_threads()) == before
    with pytest.raises(RegistryError, match="closed"):
        client.queue()
    client.close()


def test_a_thread_that_follows_events_ends_with_the_clients_block(registry: Registry) -> None:
    follows, ends = threading.Event(), list[str]()

    def follow(client: RegistryClient) -> None:
        try:
            for _ in client.events(after=0):
                follows.set()
        except RegistryError as end:
            ends.append(end.code)

    with RegistryClient(registry.api) as client:
        thread = threading.Thread(target=follow, args=(client,), daemon=True)
        thread.start()
        assert follows.wait(patience(5))
    thread.join(patience(5))
    assert ends == ["CLIENT_CLOSED"]


def test_an_exception_releases_and_passes(registry: Registry, client: RegistryClient) -> None:
    with pytest.raises(ZeroDivisionError), client.claim(ONE_GPU):
        _ = 1 / 0
    assert claims(registry) == []


def test_a_loss_is_reported_to_the_block(registry: Registry, client: RegistryClient) -> None:
    with client.claim(ONE_GPU) as claim, RegistryClient(registry.api) as other:
        other.release("train", claim.claim_id)
        assert claim.lost.wait(patience(5))
        assert claim.loss is not None
        assert "train" in claim.loss.message


def test_a_claim_without_a_block_is_the_callers_to_renew_and_release(
    registry: Registry, client: RegistryClient
) -> None:
    claim = client.create_claim(ONE_GPU)
    assert client.renew("train", claim.claim_id).claim_id == claim.claim_id
    with pytest.raises(ValueError, match="twice"):
        client.create_claim(ONE_GPU.model_copy(update={"wait_seconds": 1.0}), wait=1)
    client.release("train", claim.claim_id)
    assert claims(registry) == []


def test_a_wait_ends_with_the_reasons(client: RegistryClient) -> None:
    with client.claim(ONE_GPU), pytest.raises(NoAvailableNode) as none:
        client.claim(BOTH, wait=0.3).__enter__()
    assert none.value.counts == {"capacity_exceeded": 1}


@pytest.mark.skipif(os.name == "nt", reason="Windows interrupts no wait")
def test_an_interrupted_wait_leaves_no_claim(registry: Registry, client: RegistryClient) -> None:
    with client.claim(ONE_GPU):
        waiting = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        waiting.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client.claim(BOTH, wait=60).__enter__()
        assert time.monotonic() - began < patience(10)
        waiting.join()
    assert claims(registry) == []
    assert all(not one["open_requests"] for one in registry.get("/v1/queue")["jobs"])


def test_everything_is_read_and_done_as_with_the_other_client(client: RegistryClient) -> None:
    (node,) = client.nodes()
    assert client.node(node.node_id).node_id == node.node_id
    assert client.cordon(node.node_id, reason="a fan").cordoned == "a fan"
    assert client.explain_node(node.node_id).refuses_every_job
    assert client.uncordon(node.node_id).cordoned is None
    assert client.explain(ONE_GPU).eligible == (node.node_id,)
    assert client.select(ONE_GPU).node_id == node.node_id
    assert all(not one.open_requests for one in client.queue())
    assert list(client.claims()) == []
    assert client.refresh(node.node_id).connected
    assert client.check(node.node_id).connected
    assert client.exclusions() is not None
    assert client.thresholds()
    assert client.node_events(node.node_id, limit=1)
    with client.claim(ONE_GPU) as claim:
        assert client.claim_of("train").claim_id == claim.claim_id
        assert client.renew("train", claim.claim_id).claim_id == claim.claim_id
        assert [one.ok for one in client.renew_all([("train", claim.claim_id)])] == [True]
        assert [one.job_id for one in client.claims(node_id=node.node_id)] == ["train"]
    assert client.endpoints() == ()
    workers = client.watch_endpoints()
    assert next(workers) == ()
    workers.close()
    events = client.events(after=0)
    assert next(events).id == 1
    events.close()
    assert client.drain(node.node_id, reason="r").status in ("draining", "offline")
    client.resume(node.node_id)
    assert client.reregister(node.node_id).node_id == node.node_id
    with pytest.raises(NotFound):
        client.remove("node-none")


@pytest.mark.timeout(120)
def test_a_claim_survives_kill_9_of_the_registry(tmp_path: Path) -> None:
    """The block goes on; the same claim is renewed at the registry that is started again on its state."""
    store = ("--store", f"sqlite://{tmp_path}/registry.db", *QUICK, "--claim-ttl-seconds=60")
    with Registry(*store) as first, Agent(first.node_url, tmp_path / "agent"):
        first.await_ready(1, within_seconds=20)
        job = JobRequest(job_id="train", gpu_count=1, ttl_seconds=30)
        with RegistryClient(first.api, retry_seconds=patience(20)) as client, client.claim(job) as claim:
            first.send(signal.SIGKILL)
            first.wait(patience(5))
            again = Registry(*store, node_port=first.node_port, operator_port=first.operator_port)
            with again as second:
                before = claim.view.expires_at
                eventually(lambda: claim.view.expires_at > before, within_seconds=25, what="it is renewed")
                assert not claim.lost.is_set()
                (listed,) = second.get("/v1/claims")["claims"]
                assert (listed["claim_id"], listed["state"]) == (claim.claim_id, "active")
                claim.release()
                assert claims(second) == []
                with client.claim(BOTH, wait=patience(30)) as other:
                    assert len(other.gpu_uuids) == 2
