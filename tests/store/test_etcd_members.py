"""Members of etcd that die, stand still, are full, or ask who comes; and what they say of changes."""

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.base import Batch, StoreError
from gpu_agent.store.etcd import client as etcd_client
from gpu_agent.store.etcd import store as etcd_store
from gpu_agent.store.etcd.client import (
    Access,
    EtcdClient,
    Put,
    RefusedError,
    UnreachableError,
    Watched,
)
from gpu_agent.store.etcd.store import EtcdStore
from tests.authority import Authority
from tests.store.etcd_cluster import (
    Cluster,
    authentication,
    claims,
    cluster,
    free_ports,
    hand_over,
    keys,
    shared_folder,
)
from tests.waiting import patience

# Members that die, stand still, are full, or ask who comes


@contextmanager
def saving(store: EtcdStore) -> Iterator[tuple[list[str], list[float]]]:
    """Save one claim after another; yields the keys whose save returned, and how long each save took."""
    acknowledged: list[str] = []
    seconds: list[float] = []
    ended = threading.Event()

    def save_claims() -> None:
        for number in count():
            if ended.is_set():
                return
            began = time.monotonic()
            with suppress(StoreError):
                store.save([claims(f"job-{number:05}")])
                acknowledged.append(f"job-{number:05}")
            seconds.append(time.monotonic() - began)

    thread = threading.Thread(target=save_claims)
    thread.start()
    try:
        yield acknowledged, seconds
    finally:
        ended.set()
        thread.join()


def save_until_refused(store: EtcdStore, batch: Batch) -> None:
    deadline = time.monotonic() + patience(30)
    while time.monotonic() < deadline:
        store.save([batch])


def wait_for(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + patience(seconds)
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_nothing_acknowledged_is_lost_when_a_member_is_killed(
    which: str, three_members: Cluster, prefix: str
) -> None:
    leader = three_members.leader()
    killed = leader if which == "leader" else next(one for one in three_members.members if one is not leader)
    order = (killed, *(one for one in three_members.members if one is not killed))  # it is asked first
    with closing(EtcdStore(Access(tuple(one.endpoint for one in order)), prefix)) as store:
        with saving(store) as (acknowledged, seconds):
            wait_for(lambda: len(acknowledged) > 20, 10)
            killed.kill()
            at = len(acknowledged)
            wait_for(lambda: len(acknowledged) > at + 20, 15)
        killed.restart()
        three_members.wait()
        assert set(acknowledged) <= set(keys(store))
        assert max(seconds) < patience(5)


def test_a_store_whose_quorum_stood_still_goes_on_by_itself(three_members: Cluster, prefix: str) -> None:
    with closing(EtcdStore(three_members.access, prefix)) as store:
        store.save([claims("job-1")])
        for one in three_members.members[:2]:
            one.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreError, match=r"not answered|not renewed"):
                store.save([claims("job-2")])
            with pytest.raises(StoreError, match="not renewed in time"):
                save_until_refused(store, claims("job-2"))
        finally:
            for one in three_members.members[:2]:
                one.process.send_signal(signal.SIGCONT)

        def saved() -> bool:
            with suppress(StoreError):
                store.save([claims("job-2")])
                return True
            return False

        wait_for(saved, 20)
        assert keys(store) == ["job-1", "job-2"]


def test_etcds_quota_is_reported_as_a_full_disk_and_the_store_goes_on_after_it(prefix: str) -> None:
    with (
        cluster(1, "--quota-backend-bytes", "2000000") as running,
        closing(EtcdStore(running.access, prefix)) as store,
        closing(EtcdClient(running.access)) as client,
    ):
        with pytest.raises(StoreError, match=r"the disk is full .*; free some space: .* by itself$"):
            save_until_refused(store, claims("job-1", document="x" * 100_000))
        with pytest.raises(StoreError, match="the disk is full"):
            store.save([claims("job-2")])
        status = client._call("/v3/maintenance/status", {})
        client.compact(int(status["header"]["revision"]))
        client._call("/v3/maintenance/defragment", {})
        client._call(
            "/v3/maintenance/alarm",
            {"action": "DEACTIVATE", "memberID": status["header"]["member_id"], "alarm": "NOSPACE"},
        )
        store.save([claims("job-2")])
        assert keys(store) == ["job-1", "job-2"]


def test_values_that_were_replaced_are_deleted_after_a_while(
    access: Access, client: EtcdClient, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_store, "_COMPACT_SECONDS", 0.0)
    with closing(EtcdStore(access, prefix)) as store:
        store.save([claims("job-1")])
        created = client.get(f"{prefix}/doc/claim/job-1".encode())
        assert created is not None
        for _ in range(4):
            store.save([claims("job-1")])
        moment = created.mod_revision
        wait_for(lambda: is_compacted(client, moment), 10)
        assert keys(store) == ["job-1"]


def is_compacted(client: EtcdClient, revision: int) -> bool:
    try:
        list(client.read(b"a", b"b", revision=revision))
    except RefusedError as error:
        return "compacted" in str(error)
    return False


def test_the_store_proves_itself_by_certificate_and_password(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_client, "CALL_SECONDS", 1.0)
    password = tmp_path / "password"
    password.write_text("secret\n")
    with shared_folder() as folder:
        authority = Authority(folder)
        server = authority.issue()
        hand_over(folder)
        options = (
            *("--cert-file", str(server.cert_file), "--key-file", str(server.key_file)),
            *("--client-cert-auth", "--trusted-ca-file", str(authority.file)),
        )
        with cluster(1, *options, tls=authority.trusting(authority.issue())) as running:
            anonymous = dataclasses.replace(running.access, tls=authority.trusting)
            stranger = dataclasses.replace(running.access, tls=Authority(tmp_path / "other").trusting)
            plain = dataclasses.replace(running.access, tls=None)
            for access, setting in (
                (anonymous, "etcd_cert_file"),
                (stranger, "certificate is refused .*etcd_ca_file"),
                (plain, "if it speaks TLS, see etcd_ca_file"),
            ):
                with pytest.raises(StoreError, match=setting):
                    EtcdStore(access, prefix)
            with closing(EtcdClient(running.access)) as client:
                for path, asked in authentication(prefix):
                    client._call(f"/v3/auth/{path}", asked)
            with pytest.raises(StoreError, match=r"etcd refuses this registry .* etcd_user"):
                EtcdStore(running.access, prefix)
            access = dataclasses.replace(running.access, user="registry", password_file=password)
            with closing(EtcdStore(access, prefix)) as store:
                store.save([claims("job-1")])
                store._client._token = "expired"
                store.save([claims("job-2")])
                assert keys(store) == ["job-1", "job-2"]
            with pytest.raises(StoreError, match=r"etcd refuses this registry .* begin with elsewhere/"):
                EtcdStore(access, "elsewhere")
            password.write_text("wrong")
            with pytest.raises(StoreError, match=r"etcd refuses this registry .* etcd_password_file"):
                EtcdStore(access, prefix)


def test_a_cluster_that_no_one_reaches_is_named_with_the_next_step(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_client, "CALL_SECONDS", 0.2)
    (port,) = free_ports(1)
    with pytest.raises(StoreError, match=rf"no member of etcd is reached \(127.0.0.1:{port}: .*check that"):
        EtcdStore(Access((("127.0.0.1", port),)), prefix)


# Those who follow


def test_what_a_commit_changes_is_followed_whole_and_in_order(
    store: EtcdStore, client: EtcdClient, prefix: str
) -> None:
    store.save([claims("job-1"), claims("job-2")])
    created = client.get(f"{prefix}/doc/claim/job-1".encode())
    assert created is not None
    store.save([Batch([Change(DocumentKind.CLAIM, "job-1", None)]), claims("job-3")])
    start, end = (f"{prefix}/doc{last}".encode() for last in "/0")
    seen: list[Watched] = []
    with closing(
        client.watch(start, end, revision=created.mod_revision, idle_seconds=patience(5))
    ) as changes:
        while len(seen) < 4:
            seen += next(changes)
    named = [(one.key.decode().rpartition("/")[2], one.value is not None) for one in seen]
    assert named == [("job-1", True), ("job-2", True), ("job-1", False), ("job-3", True)]
    assert seen[0].revision == seen[1].revision < seen[2].revision == seen[3].revision


def test_a_watch_without_changes_ends_and_one_that_is_too_old_is_refused(
    store: EtcdStore, client: EtcdClient
) -> None:
    store.save([claims("job-1")])
    with pytest.raises(UnreachableError, match="the watch has ended"):
        next(client.watch(b"none", b"nonf", revision=0, idle_seconds=0.2))
    client.compact(store._revision)
    with pytest.raises(RefusedError, match="compacted"):
        next(client.watch(b"none", b"nonf", revision=1, idle_seconds=5.0))


def test_a_watch_whose_token_its_member_does_not_know_any_more_goes_on_with_another(
    prefix: str, tmp_path: Path
) -> None:
    """A member that was started again knows none of the tokens from before."""
    password = tmp_path / "password"
    password.write_text("secret")
    with cluster(1) as running, closing(EtcdClient(running.access)) as anybody:
        for path, asked in authentication(prefix):
            anybody._call(f"/v3/auth/{path}", asked)
        access = dataclasses.replace(running.access, user="registry", password_file=password)
        with closing(EtcdClient(access)) as client:
            key = f"{prefix}/a".encode()
            revision = client.transact([], [Put(key, b"1")]).revision
            client._token = "forgotten"
            watch = client.watch(key, key + b"\0", revision=revision, idle_seconds=patience(2))
            assert [one.value for one in next(watch)] == [b"1"]
            watch.close()
