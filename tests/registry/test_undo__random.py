"""Whatever fails of several saves, store and fleet agree, and nothing that was refused is in effect."""

from collections import deque
from dataclasses import replace
from itertools import count
from random import Random

from hypothesis import given, settings, strategies

from gpu_agent.registry.actions import Answer, Refusal
from gpu_agent.registry.dispatch.verdict import NoAvailableNode
from gpu_agent.registry.events import (
    BeatArrived,
    ClaimAsked,
    CordonAsked,
    DrainAsked,
    Event,
)
from tests.registry.fleets import (
    beat,
    hardware,
    of,
)
from tests.registry.slow_store import SlowRegistry, numbers
from tests.registry.unruly import Unruly


@settings(deadline=None, max_examples=150, derandomize=True)
@given(dice=strategies.randoms(use_true_random=True))
def test_whatever_fails_of_several_saves_store_and_fleet_agree_and_nothing_refused_is_in_effect(
    dice: Random,
) -> None:
    registry = SlowRegistry(claim_ttl_seconds=20.0, offline_retention_seconds=200.0)
    unruly = Unruly(dice)
    wishes = Wishes(registry)
    for connection in range(1, 8):
        registry.register(connection, hardware=hardware(2))
    for _ in range(40):
        for record in registry.fleet.nodes():
            if record.connection is not None and dice.random() < 0.7:
                registry.do(BeatArrived(record.connection, beat(record.node_id, gpus=None)))
        wishes.ask(unruly.anything())
        if dice.random() < 0.6:
            worst = dice.choice((0.0, 0.3, 1.0))
            doomed = [number for number in numbers(registry) if dice.random() < worst]
            registry.answer(dice.randint(1, 5), fails=doomed)
        registry.pass_time(dice.choice((0.0, 0.0, 2.0, 10.0, 31.0)))
    registry.answer_all()
    registry.pass_time(3.0)
    registry.answer_all()
    assert registry.courses == deque()
    registry.agree()
    wishes.hold()


class Wishes:
    """Asks with a name for each wish, and looks whether one that was refused is in effect."""

    def __init__(self, registry: SlowRegistry) -> None:
        self._registry = registry
        self._asked: dict[int, Event] = {}
        self._refs = count(1000)

    def ask(self, event: Event) -> None:
        if isinstance(event, DrainAsked | CordonAsked):
            ref = next(self._refs)
            lifts = isinstance(event, CordonAsked) and event.reason is None
            event = replace(event, ref=ref) if lifts else replace(event, ref=ref, reason=f"wish {ref}")
            self._asked[ref] = event
        elif isinstance(event, ClaimAsked):
            ref = next(self._refs)
            event = ClaimAsked(ref, replace(event.job, job_id=f"job {ref}"))
            self._asked[ref] = event
        self._registry.do(event)

    def hold(self) -> None:
        fleet = self._registry.fleet
        results = {one.ref: one.result for one in of(Answer, self._registry.done)}
        assert self._asked.keys() <= results.keys()
        refused = {ref for ref, result in results.items() if isinstance(result, Refusal | NoAvailableNode)}
        reasons = {record.drain.reason for record in fleet.nodes() if record.drain is not None}
        reasons |= {record.cordoned for record in fleet.nodes() if record.cordoned is not None}
        for ref in refused & self._asked.keys():
            assert f"wish {ref}" not in reasons
            assert fleet.claim_of(f"job {ref}") is None
