from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.registry.dispatch.bitset import FEW, Column, Postings, bitset_of, members, pick

SLOTS = st.sets(st.integers(0, 300), max_size=40)


def bits_of(slots: set[int]) -> int:
    return sum(1 << slot for slot in slots)


@given(SLOTS)
def test_members_lists_a_set_from_the_highest_slot_down(slots: set[int]) -> None:
    assert list(members(bits_of(slots))) == sorted(slots, reverse=True)


def test_pick_gives_each_member_an_equal_part_of_chance() -> None:
    slots = {0, 1, 2, 99, 100, 4711}
    parts = 600
    picked = Counter(pick(bits_of(slots), part / parts) for part in range(parts))
    assert picked == dict.fromkeys(slots, 100)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 15)), max_size=60), SLOTS, st.integers(0, 15))
def test_a_column_finds_the_best_and_the_big_enough_as_a_scan_does(
    changes: list[tuple[int, int]], among: set[int], least: int
) -> None:
    column, values = Column(4), dict.fromkeys(range(301), 0)
    for slot, value in changes:
        column.change(1 << slot, values[slot], value)
        values[slot] = value
    top = max((values[slot] for slot in among), default=0)
    assert column.best(bits_of(among)) == bits_of({slot for slot in among if values[slot] == top})
    enough = {slot for slot in among if values[slot] >= least}
    assert column.at_least(least, bits_of(among)) == bits_of(enough)


@given(st.lists(st.tuples(st.integers(0, 50), st.frozensets(st.sampled_from("abc"))), max_size=80))
def test_postings_know_every_holder_and_keep_nothing_of_a_key_without_holders(
    moves: list[tuple[int, frozenset[str]]],
) -> None:
    postings, held = Postings[str](), dict[int, frozenset[str]]()
    for slot, keys in moves:
        postings.move(slot, held.get(slot, frozenset()), keys)
        held[slot] = keys
    for key in "abc":
        assert postings.holders(key) == bits_of({slot for slot, keys in held.items() if key in keys})
    assert set(postings) == set().union(*held.values())


def test_a_posting_grows_from_few_to_many_and_shrinks_to_nothing() -> None:
    postings = Postings[str]()
    for slot in range(FEW + 2):
        postings.move(slot, set(), {"zone-a"})
    assert postings.holders("zone-a") == (1 << FEW + 2) - 1
    for slot in range(FEW + 2):
        postings.move(slot, {"zone-a"}, set())
    assert list(postings) == []
    assert postings.holders("zone-a") == 0


@given(st.lists(st.integers(0, 500), max_size=40))
def test_slots_gathered_at_once_are_the_set_of_them(slots: list[int]) -> None:
    assert list(members(bitset_of(slots))) == sorted(set(slots), reverse=True)
