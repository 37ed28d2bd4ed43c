import asyncio

from gpu_agent.registry.actions import Action, Level, Note, Send
from gpu_agent.server.quieting import Quieting
from gpu_agent.server.refused_registrations import quieted
from gpu_agent.wire.messages import NodeError


def refusal(*, code: str = "GPU_REQUIRED", address: str = "10.0.0.1:4000") -> list[Action]:
    return [
        Note("node_register_received", {"gpu_count": 0, "address": address}),
        Note("node_register_refused", {"node_id": None, "code": code, "address": address}, Level.WARNING),
        Send(1, NodeError(code=code)),
    ]


def levels(actions: list[Action]) -> list[Level]:
    return [one.level for one in actions if isinstance(one, Note)]


async def test_the_first_refusal_of_an_address_and_code_is_told_and_the_next_are_hushed() -> None:
    said: list[tuple[str, dict[str, object]]] = []

    def emit(event: str, /, **fields: object) -> None:
        said.append((event, fields))

    quieting = Quieting(emit, window_seconds=0.05)
    assert quieted(refusal(), quieting) == refusal()
    for port in range(3):
        less = list(quieted(refusal(address=f"10.0.0.1:{port}"), quieting))
        assert levels(less) == [Level.DEBUG, Level.DEBUG]
        assert isinstance(less[-1], Send)  # whoever asked is answered all the same
    other = refusal(code="NODE_ID_CONFLICT")
    assert quieted(other, quieting) == other
    elsewhere = refusal(address="[2001:db8::1]:4000")
    assert quieted(elsewhere, quieting) == elsewhere
    await asyncio.sleep(0.1)
    left_out = {"offence": "node_register_refused", "kind": "GPU_REQUIRED", "origin": "10.0.0.1", "count": 3}
    assert said == [("offences_left_out", left_out)]
    assert quieted(refusal(), quieting) == refusal()
    quieting.stop()


async def test_a_registration_that_is_accepted_is_always_told() -> None:
    quieting = Quieting()
    accepted: list[Action] = [
        Note("node_register_received", {"address": "10.0.0.1:1"}),
        Note("node_registered", {"node_id": "node-1"}),
    ]
    for _ in range(3):
        assert quieted(accepted, quieting) is accepted
    quieting.stop()
