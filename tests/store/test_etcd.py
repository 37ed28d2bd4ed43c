"""The store in a real etcd: the contract, one writer at a time, histories, backups."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.server.storage import restore
from gpu_agent.store import memory as memory_store
from gpu_agent.store.backup import read_backup
from gpu_agent.store.base import Batch, Loaded, Store, StoreError, UnusableError
from gpu_agent.store.etcd import client as etcd_client
from gpu_agent.store.etcd import events as etcd_events
from gpu_agent.store.etcd import store as etcd_store
from gpu_agent.store.etcd.client import (
    Access,
    Delete,
    EtcdClient,
    OutcomeUnknownError,
    Put,
)
from gpu_agent.store.etcd.lease import TTL_SECONDS, Lease
from gpu_agent.store.etcd.store import EtcdStore
from gpu_agent.store.memory import MemoryStore
from gpu_agent.store.sqlite import SqliteStore
from tests.store.contract import DOCUMENT, StoreContract, event, numbers, save
from tests.store.etcd_cluster import (
    Cluster,
    below,
    claims,
    keys,
)
from tests.waiting import patience


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


def test_a_writer_writes_what_all_instances_can_read(
    access: Access, client: EtcdClient, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances are upgraded one by one: this is the newer release, of which one runs already."""

    def instance(name: str, **document: int) -> None:
        client.transact([], [Put(f"{prefix}/members/{name}".encode(), json.dumps(document).encode())])

    def written() -> tuple[int, bytes]:
        with closing(EtcdStore(access, prefix)) as store:
            found = client.get(f"{prefix}/version".encode())
            assert found is not None
            return store.version, found.value

    instance("a", reads_version=1)
    instance("b")
    assert written() == (1, b"1")
    monkeypatch.setattr(etcd_store, "VERSION", 2)
    instance("a", reads_version=2)
    assert written() == (1, b"1")
    instance("b", reads_version=3)
    assert written() == (2, b"2")
    instance("b", reads_version=1)  # which is too old by now, and cannot lead
    assert written() == (2, b"2")
    monkeypatch.setattr(etcd_store, "VERSION", 1)
    with pytest.raises(UnusableError, match="newer release"):
        EtcdStore(access, prefix)


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


def test_large_documents_among_small_ones_are_read_in_pages_that_a_member_can_answer(
    access: Access, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes_read: list[int] = []

    class SlowClient(EtcdClient):
        """Has no answer in time where it is large."""

        def _call(
            self,
            path: str,
            asked: Mapping[str, object],
            *,
            seconds: float | None = None,
            repeatable: bool = True,
        ) -> dict[str, Any]:
            answer = super()._call(path, asked, seconds=seconds, repeatable=repeatable)
            sizes_read.append(sum(len(row["value"]) for row in answer.get("kvs", ())))
            if sizes_read[-1] > 500_000:
                raise OutcomeUnknownError("no answer in time")
            return answer

    monkeypatch.setattr(etcd_client, "_PAGE_BYTES", 100_000)
    sizes = [*([10] * 300), *([30_000] * 60), *([10] * 300)]
    with closing(EtcdStore(access, prefix)) as store, closing(SlowClient(access)) as slow:
        for first in range(0, 660, 60):
            numbered = [(f"{at:05}", sizes[at]) for at in range(first, first + 60)]
            save(store, [Change(DocumentKind.CLAIM, key, {"x": "x" * size}) for key, size in numbered])
        quick, store._client = store._client, slow
        loaded = [change.document for change in store.load().changes]
        store._client = quick
    assert loaded == [{"x": "x" * size} for size in sizes]
    too_large = [size for size in sizes_read if size > 500_000]
    assert 1 <= len(too_large) <= 3
    assert len(sizes_read) < 60


# One writer
# One writer
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
        copied.save([Batch([node], [event(1)]), claims("gone")])
        copied.replace(read_backup(tmp_path / "backup.db"))
        assert comparable(copied.load()) == comparable(store.load())
        for one in (store, copied):
            save(one, [], [event(8), event(9, "node-2")])
        assert comparable(copied.load()) == comparable(store.load())


def test_nothing_is_restored_while_instances_run(
    client: EtcdClient, tmp_path: Path, access: Access, prefix: str
) -> None:
    """They have read what is there before, and would go on with that."""
    client.transact([], [Put(f"{prefix}/members/{name}".encode(), b"{}") for name in ("a", "b")])
    with closing(SqliteStore(tmp_path / "backup.db")) as backup:
        backup.save([claims("job-1")])
    members = ",".join(f"{host}:{port}" for host, port in access.endpoints)
    with pytest.raises(StoreError, match=r"in use by the instances a, b: stop all of them first"):
        restore(tmp_path / "backup.db", f"etcd://{members}/{prefix}", tmp_path, replace=True)


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
