from dataclasses import dataclass

from gpu_agent.server.anteroom import Anteroom
from gpu_agent.server.limits import Limits


@dataclass(eq=False)
class Comer:
    origin: str = "10.0.0.1"


def room(*, handshakes: int = 2, inside: int = 3, of_one: int = 2) -> Anteroom[Comer]:
    return Anteroom(
        Limits(max_handshakes=handshakes, max_unregistered=inside, max_unregistered_per_origin=of_one)
    )


def test_beyond_the_handshakes_allowed_the_one_that_takes_longest_makes_room() -> None:
    anteroom, first, second = room(), Comer(), Comer()
    assert anteroom.connected(first) is None
    assert anteroom.connected(second) is None
    assert anteroom.connected(Comer()) is first
    anteroom.leaves(first)
    assert anteroom.connected(Comer()) is second


def test_who_came_in_is_owed_its_place_and_counts_for_its_origin() -> None:
    anteroom = room()
    for _ in range(2):
        comer = Comer()
        anteroom.connected(comer)
        anteroom.came_in(comer)
    assert anteroom.longest_shaking() is None
    assert anteroom.is_full_for(Comer())
    other = Comer("10.0.0.2")
    assert not anteroom.is_full_for(other)
    anteroom.connected(other)
    anteroom.came_in(other)
    assert anteroom.is_full_for(Comer("10.0.0.3"))


def test_who_registers_or_goes_leaves_its_place_to_others() -> None:
    anteroom, inside, shaking = room(of_one=1), Comer(), Comer()
    anteroom.connected(inside)
    anteroom.came_in(inside)
    anteroom.connected(shaking)
    assert anteroom.size == 2
    anteroom.leaves(inside)
    anteroom.leaves(inside)
    anteroom.leaves(shaking)
    assert anteroom.size == 0
    assert not anteroom.is_full_for(Comer())


def test_who_was_sent_away_does_not_come_in() -> None:
    anteroom, gone = room(), Comer()
    anteroom.connected(gone)
    anteroom.leaves(gone)
    anteroom.came_in(gone)
    assert anteroom.size == 0
