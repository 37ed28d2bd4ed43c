"""The desk of a registry that runs."""

import time
from math import inf, nan

import pytest

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.credentials import Credential, CredentialKind, Role
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tokens import LONGEST_NOTE, LONGEST_TTL_SECONDS, NewToken
from gpu_agent.store.memory import MemoryStore
from tests.server.disks import FailingStore
from tests.server.harness import node, running


def made(result: NewToken | Refusal) -> NewToken:
    assert isinstance(result, NewToken)
    return result


async def test_a_join_token_is_recognised_and_listed_without_its_secret(service: RegistryService) -> None:
    new = made(await service.tokens.create_join(ttl_seconds=60, uses=3, labels={"zone": "b"}, note="rack 4"))
    assert new.token.startswith(f"gpuj_{new.token_id}_")
    assert new.expires_at is not None
    assert abs(new.expires_at - time.time() - 60) < 5
    assert service.tokens.authenticate(new.token) == Credential(CredentialKind.JOIN, new.token_id)
    (listed,) = service.tokens.listed()
    assert (listed.token_id, listed.kind, listed.state) == (new.token_id, "join", "live")
    assert (listed.uses, listed.spent, listed.labels, listed.note) == (3, 0, {"zone": "b"}, "rack 4")
    assert listed.expires_at is not None
    assert abs(listed.expires_at - new.expires_at) < 1
    assert new.token.split("_", 2)[2] not in repr(listed)
    assert new.token not in repr(new)


async def test_an_operator_token_carries_its_role_until_it_is_revoked(service: RegistryService) -> None:
    new = made(await service.tokens.create_operator(Role.OPERATE, name="night shift"))
    assert new.expires_at is None
    assert service.tokens.authenticate(new.token) == Credential(
        CredentialKind.OPERATOR, new.token_id, role=Role.OPERATE
    )
    assert await service.tokens.revoke(new.token_id) is None
    assert service.tokens.authenticate(new.token) is None
    (listed,) = service.tokens.listed()
    assert (listed.state, listed.name, listed.role) == ("revoked", "night shift", Role.OPERATE)
    assert listed.revoked_at is not None


async def test_what_cannot_be_done_is_refused_with_a_code(service: RegistryService) -> None:
    refusals = [
        await service.tokens.revoke("12345678"),
        await service.tokens.reclaim("node-x"),
        await service.tokens.rotate("node-x"),
    ]
    assert [one.code for one in refusals if isinstance(one, Refusal)] == [
        "UNKNOWN_TOKEN",
        "UNKNOWN_NODE",
        "UNKNOWN_NODE",
    ]


async def test_a_reclaim_token_is_bound_to_its_node(service: RegistryService) -> None:
    async with node(service) as known:
        await known.register()
        new = made(await service.tokens.reclaim(known.node_id, ttl_seconds=60))
        assert service.tokens.authenticate(new.token) == Credential(
            CredentialKind.JOIN, new.token_id, known.node_id
        )


async def test_a_token_for_one_node_alone_lets_it_come_again_and_again_and_no_other(
    service: RegistryService,
) -> None:
    new = made(await service.tokens.create_join(uses=None, node_id="node-7"))
    assert service.tokens.authenticate(new.token) == Credential(CredentialKind.JOIN, new.token_id, "node-7")
    with pytest.raises(ValueError, match="no node id"):
        await service.tokens.create_join(node_id="node 7")


@pytest.mark.parametrize("text", ["", "gpuo_12345678_wrong", "x" * 10_000, "gpuö", "\ud800"])
async def test_what_is_no_token_of_ours_opens_nothing(service: RegistryService, text: str) -> None:
    assert service.tokens.authenticate(text) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, nan, inf, LONGEST_TTL_SECONDS + 1])
async def test_a_time_to_live_that_nobody_can_mean_is_an_error(
    service: RegistryService, seconds: float
) -> None:
    with pytest.raises(ValueError, match="ttl_seconds"):
        await service.tokens.create_join(ttl_seconds=seconds)


async def test_uses_and_notes_have_bounds(service: RegistryService) -> None:
    with pytest.raises(ValueError, match="uses is 0"):
        await service.tokens.create_join(uses=0)
    with pytest.raises(ValueError, match="characters"):
        await service.tokens.create_operator(Role.READ, name="x" * (LONGEST_NOTE + 1))


async def test_a_token_that_cannot_be_kept_is_never_told() -> None:
    store = FailingStore()
    async with running(store=store) as service:
        store.full = True
        refused = await service.tokens.create_join()
        assert isinstance(refused, Refusal)
        assert service.tokens.listed() == ()


async def test_tokens_outlive_a_restart_and_their_time_goes_on() -> None:
    store = MemoryStore()
    store.close = lambda: None  # type: ignore[method-assign]  # the next registry opens the same one
    async with running(store=store) as service:
        new = made(await service.tokens.create_join(ttl_seconds=60))
    async with running(store=store) as service:
        assert service.tokens.authenticate(new.token) is not None
        (listed,) = service.tokens.listed()
        assert listed.expires_at == pytest.approx(new.expires_at, abs=1)
