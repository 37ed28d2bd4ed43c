from dataclasses import dataclass, field

from gpu_agent.server.holdings import Holdings


@dataclass(eq=False)
class Holder:
    held_bytes: int
    is_registered: bool = False
    given_up: list[int] = field(default_factory=list)

    def give_up(self) -> None:
        self.given_up.append(self.held_bytes)
        self.held_bytes = 0


def holding(most: int, *holders: Holder) -> Holdings[Holder]:
    holdings: Holdings[Holder] = Holdings(most_bytes=most)
    for holder in holders:
        holdings.note(holder, holder.held_bytes)
    return holdings


def test_within_what_is_allowed_nobody_gives_anything_up() -> None:
    one, two = Holder(50), Holder(50)
    holdings = holding(100, one, two)
    assert holdings.total_bytes == 100
    holdings.note(one, 0)
    holdings.note(one, 10)
    assert holdings.total_bytes == 60
    assert not one.given_up
    assert not two.given_up


def test_beyond_it_the_largest_goes_and_no_more_than_need_to() -> None:
    small, large, middle = Holder(10), Holder(60), Holder(31)
    holdings = holding(100, small, large, middle)
    assert large.given_up == [60]
    assert not small.given_up
    assert not middle.given_up
    assert holdings.total_bytes == 41


def test_strangers_go_before_nodes_however_small() -> None:
    node, stranger = Holder(80, is_registered=True), Holder(30)
    holding(100, node, stranger)
    assert stranger.given_up == [30]
    assert not node.given_up


def test_what_was_read_meanwhile_is_held_no_longer_and_costs_nobody_anything() -> None:
    read, other = Holder(80), Holder(30)
    holdings = holding(100, read)
    read.held_bytes = 0
    holdings.note(other, 30)
    assert not read.given_up
    assert not other.given_up
    assert holdings.total_bytes == 30


def test_a_holder_that_still_notes_while_it_gives_up_starts_no_second_round() -> None:
    class Talkative(Holder):
        def give_up(self) -> None:
            super().give_up()
            holdings.note(self, 500)
            holdings.note(self, 0)

    holdings: Holdings[Holder] = Holdings(most_bytes=100)
    talkative = Talkative(150)
    holdings.note(talkative, 150)
    assert talkative.given_up == [150]
    assert holdings.total_bytes == 0
