"""The store in a real etcd: the contract, lost answers, lost leases, large commits, members that die."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store import memory as memory_store
from gpu_agent.store.backup import read_backup
from gpu_agent.store.base import Batch, Loaded, Store, StoreError, UnusableError
from gpu_agent.store.etcd import client as etcd_client
from gpu_agent.store.etcd import events as etcd_events
from gpu_agent.store.etcd import redo
from gpu_agent.store.etcd import store as etcd_store
from gpu_agent.store.etcd.client import (
    Access,
    Delete,
    EtcdClient,
    Put,
    RefusedError,
    UnreachableError,
    Watched,
)
from gpu_agent.store.etcd.lease import TTL_SECONDS, Lease
from gpu_agent.store.etcd.store import EtcdStore
from gpu_agent.store.memory import MemoryStore
from gpu_agent.store.sqlite import SqliteStore
from tests.authority import Authority
from tests.store.contract import DOCUMENT, StoreContract, event, numbers, save, stored
from tests.store.etcd_cluster import Cluster, Proxy, cluster, free_ports, hand_over, shared_folder
from tests.waiting import patience


@pytest.fixture(scope="module")
def one_member() -> Iterator[Cluster]:
    with cluster(1) as running:
        yield running


@pytest.fixture(scope="module")
def three_members() -> Iterator[Cluster]:
    with cluster(3) as running:
        yield running


class TestEtcdStoreWithOneMember(StoreContract):
    @pytest.fixture(autouse=True)
    def _cluster(self, one_member: Cluster) -> None:
        self.access = one_member.access

    def open(self, folder: Path) -> Store:
        return EtcdStore(self.access, folder.name)


class TestEtcdStoreWithThreeMembers(StoreContract):
    @pytest.fixture(autouse=True)
    def _cluster(self, three_members: Cluster) -> None:
        self.access = three_members.access

    def open(self, folder: Path) -> Store:
        return EtcdStore(self.access, folder.name)


@pytest.fixture
def access(one_member: Cluster) -> Access:
    return one_member.access


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return tmp_path.name


@pytest.fixture
def store(access: Access, prefix: str) -> Iterator[EtcdStore]:
    with closing(EtcdStore(access, prefix)) as store:
        yield store


@pytest.fixture
def client(access: Access) -> Iterator[EtcdClient]:
    with closing(EtcdClient(access)) as client:
        yield client


def claims(*keys: str, document: object = None) -> Batch:
    return Batch([Change(DocumentKind.CLAIM, key, {"document": document}) for key in keys])


def keys(store: Store) -> list[str]:
    return sorted(change.key for change in store.load().changes)


def below(client: EtcdClient, *names: str) -> list[bytes]:
    key = "/".join(names).encode()
    return [one.key for one in client.read(key + b"/", key + b"0")]


def commit_number(client: EtcdClient, prefix: str) -> int:
    stored_commit = client.get(f"{prefix}/commit".encode())
    return 0 if stored_commit is None else int(json.loads(stored_commit.value)["number"])


# What is there


def test_what_was_saved_is_there_when_another_registry_opens_it(access: Access, prefix: str) -> None:
    with closing(EtcdStore(access, prefix)) as first:
        save(first, [Change(DocumentKind.NODE, "node-1", DOCUMENT)], [event(1), event(2, None)])
        before = first.load()
    with closing(EtcdStore(access, prefix)) as second:
        assert second.load() == before


def test_one_prefix_holds_nothing_of_another_one(access: Access, prefix: str) -> None:
    with closing(EtcdStore(access, f"{prefix}0")) as other, closing(EtcdStore(access, prefix)) as store:
        other.save([claims("other")])
        store.save([claims("job-1")])
        assert (keys(store), keys(other)) == (["job-1"], ["other"])


def test_a_newer_version_is_refused_untouched(access: Access, client: EtcdClient, prefix: str) -> None:
    EtcdStore(access, prefix).close()
    client.transact([], [Put(f"{prefix}/version".encode(), b"2")])
    before = list(client.read(prefix.encode(), b"\xff"))
    with pytest.raises(UnusableError, match="newer release"):
        EtcdStore(access, prefix)
    assert list(client.read(prefix.encode(), b"\xff")) == before


def test_keys_of_another_program_are_refused_untouched(
    access: Access, client: EtcdClient, prefix: str
) -> None:
    client.transact([], [Put(f"{prefix}/pods/one".encode(), b"{}")])
    with pytest.raises(UnusableError, match="another program"):
        EtcdStore(access, prefix)
    assert below(client, prefix) == [f"{prefix}/pods/one".encode()]


def test_damage_is_reported_with_the_next_step(store: EtcdStore, client: EtcdClient, prefix: str) -> None:
    client.transact([], [Put(f"{prefix}/doc/claim/job-1".encode(), b"{")])
    with pytest.raises(UnusableError, match=r"damaged .* registry restore"):
        store.load()


def test_documents_of_an_unknown_kind_stay(store: EtcdStore, client: EtcdClient, prefix: str) -> None:
    client.transact([], [Put(f"{prefix}/doc/future/x".encode(), b"?")])
    store.save([claims("job-1")])
    assert keys(store) == ["job-1"]
    assert len(below(client, prefix, "doc", "future")) == 1


# One writer


def test_a_second_registry_is_refused_and_the_first_one_named(
    store: EtcdStore, access: Access, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_store, "_OPEN_SECONDS", 0.3)
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()} on .*: only one registry"):
        EtcdStore(access, prefix)
    store.save([claims("job-1")])


def test_a_writer_whose_lease_was_lost_to_another_writes_nothing_more(
    store: EtcdStore, access: Access, client: EtcdClient, prefix: str
) -> None:
    store.save([claims("job-1")])
    client.transact([], [Delete(f"{prefix}/leader".encode())])
    with closing(EtcdStore(access, prefix)) as other:
        other.save([claims("job-2")])
        with pytest.raises(StoreError, match="ended this registry's lease"):
            store.save([claims("job-3")])
        with pytest.raises(StoreError, match="in use by"):
            store.save([claims("job-3")])
        other.save([claims("job-4")])
        assert keys(other) == ["job-1", "job-2", "job-4"]
    for _ in range(2):
        with pytest.raises(StoreError, match="started again"):
            store.save([claims("job-3")])
    with closing(EtcdStore(access, prefix)) as third:
        assert keys(third) == ["job-1", "job-2", "job-4"]


def test_a_writer_that_lost_its_lease_to_no_one_goes_on(
    store: EtcdStore, client: EtcdClient, prefix: str
) -> None:
    store.save([claims("job-1")])
    client.transact([], [Delete(f"{prefix}/leader".encode())])
    with pytest.raises(StoreError, match="lease"):
        store.save([claims("job-2")])
    store.save([claims("job-2")])
    assert keys(store) == ["job-1", "job-2"]


def test_a_lease_that_is_handed_in_fences_the_store_and_stays_its_owners(
    access: Access, client: EtcdClient, prefix: str
) -> None:
    lease = Lease(client, f"{prefix}/leader".encode())
    with pytest.raises(StoreError, match="lease"):
        EtcdStore(access, prefix, lease=lease)
    lease.acquire()
    with closing(EtcdStore(access, prefix, lease=lease)) as store:
        store.save([claims("job-1")])
    assert lease.valid
    with closing(EtcdStore(access, prefix, lease=lease)) as store:
        lease.release()
        for _ in range(2):
            with pytest.raises(StoreError, match="lease"):
                store.save([claims("job-2")])
        with closing(EtcdStore(access, prefix)) as following:
            assert keys(following) == ["job-1"]


WRITER = """if True:
    import sys
    from gpu_agent.registry.actions import Change, DocumentKind
    from gpu_agent.store.base import Batch, StoreError
    from gpu_agent.store.etcd.client import Access
    from gpu_agent.store.etcd.store import EtcdStore
    store = EtcdStore(Access((("127.0.0.1", int(sys.argv[1])),)), sys.argv[2])
    for line in sys.stdin:
        try:
            store.save([Batch([Change(DocumentKind.CLAIM, line.strip(), {})])])
            print("stored", flush=True)
        except StoreError as error:
            print(error, flush=True)
"""


@pytest.fixture
def writer(access: Access, prefix: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that saves a claim for each line that it is sent."""
    command = [sys.executable, "-c", WRITER, str(access.endpoints[0][1]), prefix]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def ask(writer: "subprocess.Popen[str]", claim: str) -> str:
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(f"{claim}\n")
    writer.stdin.flush()
    return writer.stdout.readline()


def test_a_writer_that_was_frozen_while_another_wrote_awakes_and_writes_nothing(
    writer: "subprocess.Popen[str]", access: Access, prefix: str
) -> None:
    assert ask(writer, "job-1") == "stored\n"
    writer.send_signal(signal.SIGSTOP)
    with closing(EtcdStore(access, prefix)) as other:
        other.save([claims("job-2")])
        writer.send_signal(signal.SIGCONT)
        for claim in ("job-3", "job-4"):
            assert "stored" not in ask(writer, claim).split()[:1]
        assert keys(other) == ["job-1", "job-2"]


def test_a_registry_that_was_killed_is_followed_by_the_next_one_within_the_lease(
    writer: "subprocess.Popen[str]", access: Access, prefix: str
) -> None:
    assert ask(writer, "job-1") == "stored\n"
    writer.kill()
    began = time.monotonic()
    with closing(EtcdStore(access, prefix)) as store:
        assert keys(store) == ["job-1"]
    assert time.monotonic() - began < patience(TTL_SECONDS + 2)


# Answers that are lost


@pytest.fixture
def proxy(access: Access) -> Iterator[Proxy]:
    with closing(Proxy(access.endpoints[0])) as proxy:
        yield proxy


@pytest.fixture
def cut_off(proxy: Proxy, prefix: str) -> Iterator[EtcdStore]:
    """A store behind the proxy, without patience: each lost answer is reported."""
    with closing(EtcdStore(Access((proxy.endpoint,)), prefix)) as store:
        yield store


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_store, "_SEND_SECONDS", 0.0)


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_commit_whose_answer_is_lost_is_sent_again_and_applied_once(
    cut: str, cut_off: EtcdStore, proxy: Proxy, client: EtcdClient, prefix: str
) -> None:
    before = commit_number(client, prefix)
    proxy.plan({0: cut})
    cut_off.save([claims("job-1")])
    assert commit_number(client, prefix) == before + 1
    assert proxy.transactions == 2
    assert keys(cut_off) == ["job-1"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("cut", ["before", "after", "delay"])
def test_a_commit_of_unknown_outcome_is_reported_and_its_retry_repeats_its_number(
    cut: str, cut_off: EtcdStore, proxy: Proxy, client: EtcdClient, prefix: str
) -> None:
    cut_off.save([claims("job-1", document=1)])
    before = commit_number(client, prefix)
    proxy.plan({0: cut})
    with pytest.raises(StoreError, match="has not answered"):
        cut_off.save([claims("job-1", "job-2", document=2)])
    cut_off.save([claims("job-1", "job-2", document=3)])
    assert commit_number(client, prefix) == before + 2
    proxy.deliver()  # it comes after its retry: it must not be applied any more
    assert commit_number(client, prefix) == before + 2
    assert stored(cut_off) == {(DocumentKind.CLAIM, f"job-{one}"): {"document": 3} for one in (1, 2)}


@pytest.mark.usefixtures("impatient")
def test_a_commit_that_arrives_after_the_lease_went_to_another_is_not_applied(
    cut_off: EtcdStore, proxy: Proxy, access: Access, client: EtcdClient, prefix: str
) -> None:
    proxy.plan({0: "delay"})
    with pytest.raises(StoreError):
        cut_off.save([claims("job-1")])
    client.transact([], [Delete(f"{prefix}/leader".encode())])
    with closing(EtcdStore(access, prefix)) as other:
        (answer,) = proxy.deliver()
        assert b'"succeeded":true' not in answer
        assert keys(other) == []


@pytest.mark.usefixtures("impatient")
def test_random_cuts_lose_nothing_acknowledged_and_apply_nothing_twice(
    cut_off: EtcdStore, proxy: Proxy
) -> None:
    dice = random.Random(7)  # noqa: S311 - dice that must fall alike
    expected: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for number in range(150):
        waiting[f"job-{dice.randrange(20)}"] = number
        proxy.plan({at: dice.choice(["before", "after", "delay"]) for at in range(3) if dice.random() < 0.3})
        try:
            cut_off.save([claims(key, document=value) for key, value in waiting.items()])
        except StoreError:
            pass
        else:
            expected |= waiting
            waiting = {}
        if dice.random() < 0.3:
            proxy.deliver()
    proxy.plan({})
    proxy.deliver()
    cut_off.save([claims(key, document=value) for key, value in waiting.items()])
    expected |= waiting
    assert stored(cut_off) == {
        (DocumentKind.CLAIM, key): {"document": value} for key, value in expected.items()
    }


# Commits that are too large for one transaction


def large(version: int, *, count: int = 24, size: int = 100) -> Batch:
    names = [f"node-{one}" for one in range(count)]
    nodes = [Change(DocumentKind.NODE, name, {"v": version, "x": "x" * size}) for name in names]
    return Batch(nodes, [event(count * version + at, name) for at, name in enumerate(names)])


def is_whole(loaded: Loaded, version: int, *, count: int = 24) -> bool:
    found = {change.document["v"] for change in loaded.changes if change.document is not None}
    newest = [one.id for one in loaded.recent[-count:]]
    expected = list(range(count * version, count * version + count))
    return (len(loaded.changes), found, newest) == (count, {version}, expected)


@pytest.fixture
def small_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redo, "MOST_OPERATIONS", 12)
    monkeypatch.setattr(redo, "MOST_BYTES", 2000)
    monkeypatch.setattr(redo, "_PART_BYTES", 1000)


def test_a_large_commit_is_stored_whole_and_leaves_no_parts(
    store: EtcdStore, client: EtcdClient, prefix: str
) -> None:
    before = commit_number(client, prefix)
    store.save([large(1, count=250, size=9000)])
    assert is_whole(store.load(), 1, count=250)
    assert below(client, prefix, "redo") == []
    assert commit_number(client, prefix) == before + 1


@pytest.mark.usefixtures("impatient", "small_transactions")
@pytest.mark.parametrize("cut", ["before", "after", "delay"])
def test_a_large_commit_that_is_cut_at_any_transaction_is_stored_whole_or_not_at_all(
    cut: str, access: Access, proxy: Proxy, client: EtcdClient, prefix: str, tmp_path: Path
) -> None:
    seen = set()
    for at in range(40):
        place = f"{prefix}-{at}"
        with closing(EtcdStore(Access((proxy.endpoint,)), place)) as store:
            store.save([large(1)])
            proxy.plan({at: cut})
            try:
                store.save([large(2)])
            except StoreError:
                store.backup(tmp_path / f"{at}.db")  # a backup sees it whole as well, before it is finished
            else:
                assert is_whole(store.load(), 2)
                break
            proxy.plan({})
        if at % 2:
            proxy.deliver()
        with closing(EtcdStore(access, place)) as following:
            loaded = following.load()
            version = 2 if is_whole(loaded, 2) else 1
            assert is_whole(loaded, version)
            with closing(SqliteStore(tmp_path / f"{at}.db")) as copy:
                assert is_whole(copy.load(), 1) or is_whole(copy.load(), 2)
            seen.add(version)
            following.save([large(3)])
            assert is_whole(following.load(), 3)
            assert below(client, place, "redo") == []
    else:
        raise AssertionError("the commit has more transactions than were cut")
    assert seen == {1, 2}


@pytest.mark.usefixtures("impatient", "small_transactions")
@pytest.mark.parametrize("cut", ["before", "after", "delay"])
def test_a_large_commit_that_was_cut_is_finished_by_the_next_save(
    cut: str, proxy: Proxy, client: EtcdClient, prefix: str
) -> None:
    with closing(EtcdStore(Access((proxy.endpoint,)), prefix)) as store:
        store.save([large(1)])
        for version in range(2, 14):
            proxy.plan({version - 2: cut})
            with suppress(StoreError):
                store.save([large(version)])
            proxy.plan({})
            store.save([large(version), claims("job-1", document=version)])
            proxy.deliver()
            loaded = store.load()
            assert len(loaded.recent) == 24 * version
            assert {c.document["v"] for c in loaded.changes if c.document and "v" in c.document} == {version}
        assert below(client, prefix, "redo") == []


@pytest.mark.usefixtures("impatient", "small_transactions")
@pytest.mark.parametrize("moment", range(5))
def test_a_large_commit_that_counts_late_finds_all_its_parts(
    moment: int, access: Access, proxy: Proxy, client: EtcdClient, prefix: str
) -> None:
    """Its last request arrives while it is sent again, and then the registry dies."""
    place = prefix
    for at in range(40):
        place = f"{prefix}-{at}"
        with closing(EtcdStore(Access((proxy.endpoint,)), place)) as store:
            store.save([large(1)])
            before = commit_number(client, place)
            proxy.plan({at: "delay"})
            with pytest.raises(StoreError):
                store.save([large(2)])
            held = proxy.delayed[0]
            if f"{place}/commit".encode() in writes_in(held):
                proxy.plan({moment: "deliver", **dict.fromkeys(range(moment + 1, 80), "before")})
                with pytest.raises(StoreError):
                    store.save([large(2)])
                assert commit_number(client, place) == before + 1
                proxy.plan({})
                break
            proxy.plan({})
            proxy.delayed.clear()
    with closing(EtcdStore(access, place)) as following:
        assert is_whole(following.load(), 2)


def writes_in(request: bytes) -> list[bytes]:
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    return [b64decode(one["requestPut"]["key"]) for one in body["success"] if "requestPut" in one]


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
        with pytest.raises(RefusedError, match="compacted"):
            list(client.read(b"a", b"b", revision=created.mod_revision))
        assert keys(store) == ["job-1"]


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
            anonymous = dataclasses.replace(running.access, tls=authority.trusting())
            with pytest.raises(StoreError, match=r"no member of etcd is reached|has not answered"):
                EtcdStore(anonymous, prefix)
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


def authentication(prefix: str) -> Iterator[tuple[str, dict[str, object]]]:
    """What sets a user up that may use the keys of one registry."""
    start, end = (b64encode(f"{prefix}{last}".encode()).decode() for last in "/0")
    permission = {"permType": "READWRITE", "key": start, "range_end": end}
    for user in ("root", "registry"):
        yield "user/add", {"name": user, "password": "secret"}
        yield "role/add", {"name": user}
        yield "user/grant", {"user": user, "role": user}
    yield "role/grant", {"name": "registry", "perm": permission}
    yield "enable", {}


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


# Backups


def test_a_backup_is_restored_to_sqlite_and_back_with_every_history(
    store: EtcdStore, tmp_path: Path, access: Access, prefix: str
) -> None:
    node, gone = Change(DocumentKind.NODE, "node-1", {"a": 1}), Change(DocumentKind.NODE, "node-1", None)
    save(store, [node, Change(DocumentKind.TOKEN, "t", DOCUMENT)], [event(1), event(2, None)])
    save(store, [gone], [event(3)])
    save(store, [node], [event(4), event(5, "node-2"), event(6)])
    save(
        store, [Change(DocumentKind.NODE, "node-2", {}), Change(DocumentKind.NODE, "node-3", {})], [event(7)]
    )
    store.backup(tmp_path / "backup.db")
    assert numbers(store) == {"node-1": [4, 6, 7]}
    with closing(SqliteStore(tmp_path / "backup.db")) as copy:
        assert comparable(copy.load()) == comparable(store.load())
    with closing(EtcdStore(access, f"{prefix}-copy")) as copied:
        copied.save([large(1), claims("gone")])
        copied.replace(read_backup(tmp_path / "backup.db"))
        assert comparable(copied.load()) == comparable(store.load())
        for one in (store, copied):
            save(one, [], [event(8), event(9, "node-2")])
        assert comparable(copied.load()) == comparable(store.load())


# Events and histories against the store in memory


def random_batches(dice: random.Random, first_id: int, nodes: Sequence[str]) -> tuple[list[Batch], int]:
    number, batches = first_id, []
    for _ in range(dice.randrange(1, 4)):
        changes = [
            Change(DocumentKind.NODE, dice.choice(nodes), None if dice.random() < 0.2 else {"n": number})
            for _ in range(dice.randrange(3))
        ]
        names = [dice.choice([*nodes, None]) for _ in range(dice.randrange(12))]
        batches.append(Batch(changes, [event(number + at, name) for at, name in enumerate(names)]))
        number += len(names) + (dice.randrange(100) if dice.random() < 0.1 else 0)
    return batches, number


@pytest.mark.parametrize("seed", range(4))
def test_random_saves_are_loaded_as_from_memory(
    seed: int, access: Access, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that is repeated changes nothing, the store is opened again, and old events go."""
    dice = random.Random(seed)  # noqa: S311 - dice that must fall alike for the same seed
    for module in (memory_store, etcd_events, etcd_store):
        monkeypatch.setattr(module, "RECENT_EVENTS", 200)
    for name, value in (("_TRIM_EVENTS", 20), ("_RUN_BYTES", 3000), ("_COMPACTED_BYTES", 1000)):
        monkeypatch.setattr(etcd_events, name, value)
    nodes = [f"node-{number}" for number in range(8)]
    memory, number, before = MemoryStore(), 1, list[Batch]()
    store = EtcdStore(access, prefix)
    try:
        for step in range(150):
            batches, number = random_batches(dice, number, nodes)
            memory.save(batches)
            store.save([*before, *batches] if dice.random() < 0.2 else batches)
            before = batches
            if dice.random() < 0.1:
                store.close()
                store = EtcdStore(access, prefix)
            if step % 10 == 9:
                assert comparable(store.load()) == comparable(memory.load())
        index = store._index
        assert index is not None
        old = [one for one in index.groups.values() if one.newest <= index.newest - 200]
        assert len(old) < 40  # of 8 histories with at most 50 events of 80 bytes
    finally:
        store.close()


def comparable(loaded: Loaded) -> object:
    return sorted(map(repr, loaded.changes)), loaded.recent, dict(loaded.histories)
