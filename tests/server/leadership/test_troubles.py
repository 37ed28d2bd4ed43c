"""What an instance says and does where etcd, a key or a certificate is at fault."""

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gpu_agent.registry.tokens import Role
from gpu_agent.server.leadership import instance as instance_module
from gpu_agent.server.leadership.forward import Forwarder
from gpu_agent.store.base import StoreError, UnusableError
from gpu_agent.store.etcd.client import (
    TRY_SECONDS,
    Access,
    Compare,
    EtcdClient,
    Operation,
    Outcome,
    OutcomeUnknownError,
    Put,
    RefusedError,
)
from tests.authority import Authority
from tests.server.api_harness import logged, operator_token
from tests.server.harness import until
from tests.server.leadership.harness import contexts, running
from tests.store.etcd_cluster import Cluster, authentication, cluster


async def test_a_renewed_key_reaches_etcd_though_the_first_tries_get_lost(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would take the leader for an impostor until its term ends."""
    async with running(etcd.access, prefix, "a") as one:
        await until(lambda: one.is_linked, what="its link to itself")
        transact, lost = EtcdClient.transact, [1, 2]

        def lose_some(
            client: EtcdClient,
            compares: Sequence[Compare],
            then: Sequence[Operation],
            otherwise: Sequence[Operation] = (),
            *,
            seconds: float = TRY_SECONDS,
        ) -> Outcome:
            if lost:
                del lost[0]
                raise OutcomeUnknownError("no answer in time")
            return transact(client, compares, then, otherwise, seconds=seconds)

        monkeypatch.setattr(EtcdClient, "transact", lose_some)
        one.instance.announce("renewed")
        found = one.instance._follower

        def pins() -> set[str | None]:
            assert found.leader is not None
            return {each.pin for each in (found.leader.instance, *found.instances())}

        await until(lambda: pins() == {"renewed"}, what="the new pin at both keys")


async def test_a_leader_that_no_instance_reaches_lets_another_one_lead(
    etcd: Cluster,
    prefix: str,
    authority: Authority,
    *,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as one whose certificate is for another host: not even its own gateway links to it."""
    monkeypatch.setattr(instance_module, "UNREACHED_SECONDS", 0.5)
    wrong, right = contexts(authority, "elsewhere"), contexts(authority)
    async with running(etcd.access, prefix, "a", links=wrong) as first:
        await until(lambda: first.leads, what="its term")
        async with running(etcd.access, prefix, "b", links=right) as second:
            await until(lambda: second.leads and first.is_linked and second.is_linked, what="another leader")
            async with running(etcd.access, prefix, "c") as plain:
                await until(
                    lambda: "see whether it expects TLS" in plain.instance.readiness()[0].detail,
                    what="why one without TLS does not link",
                )
    problem = str(logged(caplog, "leading_failed")[0]["problem"])
    assert "not even itself" in problem
    assert "certificate is not for 127.0.0.1" in problem


async def test_an_etcd_that_is_full_or_refuses_it_is_named_as_that(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    password, wrong = tmp_path / "password", tmp_path / "wrong"
    password.write_text("secret")
    wrong.write_text("wrong")
    with cluster(1, "--quota-backend-bytes", "2000000") as etcd:
        access = replace(etcd.access, user="registry", password_file=password)
        with closing(EtcdClient(etcd.access)) as client:
            for path, asked in authentication(prefix):
                client._call(f"/v3/auth/{path}", asked)
        for denied, problem in (
            (etcd.access, "user name is empty"),
            (replace(access, password_file=wrong), "invalid user ID or password"),
        ):
            with pytest.raises(StoreError, match=f"etcd refuses this registry .*{problem}.* etcd_user"):
                async with running(denied, prefix, "c"):
                    pass
        async with running(access, prefix, "a") as one:
            await until(lambda: one.is_linked, what="its link to itself")
            with closing(EtcdClient(access)) as client:
                with suppress(RefusedError):  # until its quota is reached
                    for number in range(100):
                        client.transact([], [Put(f"{prefix}/filler-{number}".encode(), bytes(100_000))])
                held = client.get(f"{prefix}/leader".encode())
                assert held is not None
                client.revoke(held.lease, seconds=5)
            failed = await until(lambda: logged(caplog, "leading_failed"), what="why nobody leads")
            assert "the disk is full" in str(failed[0]["problem"])
            await until(lambda: not one.is_linked, what="the end of its link")
            assert "there is no leader: " in one.instance.readiness()[0].detail
            assert "the disk is full" in one.instance.readiness()[0].detail
            assert "the disk is full" in one.instance.state_words()
            with pytest.raises(StoreError, match="the disk is full"):
                async with running(access, prefix, "b"):
                    pass


async def test_members_of_etcd_that_are_no_cluster_are_refused(etcd: Cluster, prefix: str) -> None:
    """As Debian starts them on each machine: an instance that uses another one knows nothing of the fleet."""
    with cluster(1) as other:
        both = Access((*etcd.access.endpoints, *other.access.endpoints))
        with pytest.raises(UnusableError, match="are clusters of their own"):
            async with running(both, prefix, "a"):
                pass


async def test_an_instance_that_asks_for_no_tokens_joins_none_that_do(etcd: Cluster, prefix: str) -> None:
    """With the lead it would make everyone an administrator of all nodes."""
    async with running(etcd.access, prefix, "a", auth_on=True) as one:
        with pytest.raises(StoreError, match="has auth off, and 'a' of the same registry has it on"):
            async with running(etcd.access, prefix, "b", auth_on=False):
                pass
        async with running(etcd.access, prefix, "b", auth_on=True):
            await until(lambda: one.is_linked, what="its link to itself")


async def test_a_standby_that_reaches_neither_etcd_nor_a_leader_trusts_no_token(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is revoked elsewhere must prove nothing here (rule 3)."""
    monkeypatch.setattr(instance_module, "UNCONFIRMED_COPY_SECONDS", 1.5)
    with cluster(1) as etcd:
        async with running(etcd.access, prefix, "a", auth_on=True) as leader:
            await until(lambda: leader.leads and leader.is_linked, what="its term")
            async with running(etcd.access, prefix, "b", auth_on=True) as standby:
                answers = standby.instance.answers(Forwarder(lambda: None), auth_on=True)
                assert answers.authenticate is not None
                authenticate = partial(answers.authenticate, await operator_token(leader.service, Role.READ))
                await until(lambda: standby.is_linked and authenticate() is not None, what="the token")
                etcd.members[0].kill()
                await until(lambda: authenticate() is None, what="its doubt")
                assert not answers.copy_is_current()
                etcd.members[0].restart()
                await until(lambda: authenticate() is not None, what="its trust")
