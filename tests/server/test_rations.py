import pytest

from gpu_agent.registry.credentials import Credential, CredentialKind
from gpu_agent.server import rations
from gpu_agent.server.limits import Limits
from gpu_agent.server.rations import Rations
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tokens import NewToken
from tests.server.harness import node, registration, running

LIMITS = Limits(errands_per_minute=60, errands_at_once=3)


def of_node(node_id: str, by: str = "1") -> Credential:
    return Credential(CredentialKind.NODE, by, node_id)


def joining(token_id: str, node_id: str | None = None) -> Credential:
    return Credential(CredentialKind.JOIN, token_id, node_id)


def test_a_node_has_one_however_often_it_comes_and_by_whichever_token() -> None:
    all_of_them = Rations(LIMITS)
    first = all_of_them.of(of_node("a", "old"), uses=None)
    assert first is not None
    assert all_of_them.of(of_node("a", "new"), uses=None) is first
    assert all_of_them.of(joining("its own", "a"), uses=None) is first
    assert all_of_them.of(of_node("b"), uses=None) is not first


def test_a_join_token_has_as_many_as_it_has_uses() -> None:
    all_of_them = Rations(LIMITS)
    one, two = (all_of_them.of(joining(str(uses)), uses=uses) for uses in (1, 2))
    assert one is not None
    assert two is not None
    assert [one.spend(1.0) for _ in range(4)] == [True, True, True, False]
    assert [two.spend(1.0) for _ in range(7)] == [*[True] * 6, False]


def test_a_join_token_for_any_number_has_none_for_all() -> None:
    assert Rations(LIMITS).of(joining("any"), uses=None) is None


def test_who_was_not_here_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rations, "MOST_REMEMBERED", 2)
    all_of_them = Rations(LIMITS)
    first, second = (all_of_them.of(of_node(name), uses=None) for name in "ab")
    assert all_of_them.of(of_node("a"), uses=None) is first
    all_of_them.of(of_node("c"), uses=None)
    assert all_of_them.of(of_node("a"), uses=None) is first
    assert all_of_them.of(of_node("b"), uses=None) is not second


async def joined(service: RegistryService) -> tuple[str, str]:
    made = await service.tokens.create_join()
    assert isinstance(made, NewToken)
    async with node(service, token=made.token) as one:
        ack = await one.register()
        await one.beat()
        await one.hear_type("node_status")
    return ack["node_id"], ack["node_token"]


async def test_a_node_that_connects_again_and_again_fills_neither_the_log_nor_the_past() -> None:
    limits = Limits(close_timeout_seconds=0.3, errands_per_minute=0.001, errands_at_once=5)
    async with running(limits=limits, auth_on=True) as service:
        node_id, token = await joined(service)
        codes = []
        for _ in range(8):
            async with node(service, token=token) as again:
                await again.say(registration())
                answer = await again.hear()
                codes.append(answer.get("code", answer["type"]))
        other_id, _ = await joined(service)
        assert codes == [*["node_register_ack"] * 5, *["RATE_LIMITED"] * 3]
        detail = service.node(node_id)
        assert detail is not None
        assert detail.session_epoch == 6
        assert other_id != node_id
