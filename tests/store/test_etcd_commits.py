"""Commits to etcd whose answers are lost, and those that are too large for one transaction."""

import json
import random
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.base import Batch, Loaded, StoreError, UnusableError
from gpu_agent.store.etcd import events as etcd_events
from gpu_agent.store.etcd import redo
from gpu_agent.store.etcd import store as etcd_store
from gpu_agent.store.etcd.client import (
    CALL_SECONDS,
    Access,
    Delete,
    EtcdClient,
)
from gpu_agent.store.etcd.store import EtcdStore
from gpu_agent.store.sqlite import SqliteStore
from tests.store.contract import event, stored
from tests.store.etcd_cluster import (
    Proxy,
    below,
    claims,
    commit_number,
    keys,
)

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


def test_a_commit_that_etcd_stores_while_it_reports_its_quota_is_no_commit_of_another(
    cut_off: EtcdStore, proxy: Proxy, client: EtcdClient, prefix: str
) -> None:
    """Etcd applies a transaction, and only then finds that it went over its quota."""
    before = commit_number(client, prefix)
    proxy.plan({0: "full"})
    with pytest.raises(StoreError, match="the disk is full"):
        cut_off.save([claims("job-1")])
    assert commit_number(client, prefix) == before + 1
    cut_off.save([claims("job-2")])
    assert keys(cut_off) == ["job-1", "job-2"]


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


@pytest.mark.usefixtures("small_transactions")
def test_what_a_restore_stored_survives_a_late_copy_of_any_of_its_requests(proxy: Proxy, prefix: str) -> None:
    restored = Loaded([Change(DocumentKind.CLAIM, f"job-{n}", {"n": "x" * 400}) for n in range(60)])
    with closing(EtcdStore(Access((proxy.endpoint,)), prefix)) as store:
        transactions, at = 1, 0
        while at < transactions:
            proxy.plan({at: "delay"})
            store.replace(restored)
            transactions, at = proxy.transactions, at + 1
            proxy.deliver()
            assert len(store.load().changes) == 60
        assert transactions > 4


@pytest.mark.usefixtures("impatient", "small_transactions")
def test_a_late_deletion_of_parts_that_were_given_up_spares_those_of_the_next_commit(
    proxy: Proxy, prefix: str
) -> None:
    with closing(EtcdStore(Access((proxy.endpoint,)), prefix)) as store:
        store.save([large(1)])
        transactions, at, version = 2, 1, 2
        while at < transactions:
            proxy.plan({1: "before"})  # the parts' second transaction: the commit is given up
            with pytest.raises(StoreError):
                store.save([large(version)])
            proxy.plan({0: "delay"})  # the deletion of its parts
            with pytest.raises(StoreError):
                store.save([large(version)])
            proxy.plan({at: "deliver"})
            store.save([large(version)])
            assert is_whole(store.load(), version)
            transactions, at, version = proxy.transactions, at + 1, version + 1
        assert transactions > 4


@pytest.mark.usefixtures("impatient", "small_transactions")
def test_a_part_that_is_missing_though_no_request_can_have_applied_it_is_damage(
    cut_off: EtcdStore, proxy: Proxy, client: EtcdClient, prefix: str
) -> None:
    cut_off.save([large(1)])
    cut_at_its_first_part(cut_off, proxy, client, large(2))
    second = below(client, prefix, "redo")[1]
    client.transact([], [Delete(second)])
    with pytest.raises(UnusableError, match="a part of the last commit, is missing"):
        cut_off.save([large(3)])


@pytest.mark.usefixtures("impatient", "small_transactions")
def test_parts_that_another_writer_applied_before_it_died_are_no_damage(
    cut_off: EtcdStore, proxy: Proxy, access: Access, client: EtcdClient, prefix: str
) -> None:
    cut_off.save([large(1)])
    cut_at_its_first_part(cut_off, proxy, client, large(2))
    number, parts = commit_number(client, prefix), len(below(client, prefix, "redo"))
    client.transact([], [Delete(f"{prefix}/leader".encode())])
    with closing(Proxy(access.endpoints[0])) as others:
        its_lease = 1
        others.plan({its_lease + parts: "before"})  # its own first commit
        with pytest.raises(StoreError):
            EtcdStore(Access((others.endpoint,)), prefix)
    assert (below(client, prefix, "redo"), commit_number(client, prefix)) == ([], number)
    with suppress(StoreError):
        cut_off.save([large(3)])  # it finds that its lease is lost
    cut_off.save([large(3)])
    assert is_whole(cut_off.load(), 3)


def cut_at_its_first_part(store: EtcdStore, proxy: Proxy, client: EtcdClient, batch: Batch) -> None:
    """Leave a commit stored, and each of its parts to apply."""
    before = commit_number(client, store._prefix)
    for transaction in range(40):
        proxy.plan({transaction: "before"})
        with pytest.raises(StoreError):
            store.save([batch])
        proxy.plan({})
        if commit_number(client, store._prefix) > before:
            return
    raise AssertionError("the commit was not stored")


# Compaction, which no commit waits for


def test_a_commit_that_is_stored_does_not_wait_for_etcd_to_compact(
    proxy: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_store, "_COMPACT_SECONDS", 0.0)
    proxy.silent = b"/kv/compaction"
    with closing(EtcdStore(Access((proxy.endpoint,)), prefix)) as store:
        began = time.monotonic()
        store.save([claims("job-1")])
        assert time.monotonic() - began < CALL_SECONDS - 1


def test_a_commit_is_stored_without_old_events_being_read_and_a_later_one_compacts_them(
    cut_off: EtcdStore, proxy: Proxy, client: EtcdClient, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (etcd_events, etcd_store):
        monkeypatch.setattr(module, "RECENT_EVENTS", 10)
    monkeypatch.setattr(etcd_events, "_TRIM_EVENTS", 5)
    for number in range(1, 14):
        cut_off.save([Batch([], [event(number, None)])])
    proxy.silent = b"/kv/range"
    before = below(client, prefix, "events")
    cut_off.save([Batch([], [event(number, None) for number in range(14, 30)])])
    proxy.silent = None
    assert below(client, prefix, "events")[:-1] == before
    cut_off.save([Batch([], [event(number, None) for number in range(30, 40)])])
    assert not {*before} & {*below(client, prefix, "events")}
    assert [one.id for one in cut_off.load().recent] == list(range(30, 40))


def writes_in(request: bytes) -> list[bytes]:
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    return [b64decode(one["requestPut"]["key"]) for one in body["success"] if "requestPut" in one]
