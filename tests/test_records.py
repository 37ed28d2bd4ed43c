"""Records are dataclasses in all that a caller sees; only their methods are not generated."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pydantic
import pytest

from gpu_agent.records import dataclass, field, field_names, is_record, replace
from tests.waiting import patience


@dataclass(frozen=True, slots=True)
class Point:
    """A point."""

    x: int
    y: int = 2

    @property
    def sum(self) -> int:
        """Both."""
        return self.x + self.y


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    name: str
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alone:
    value: int


def test_fields_are_set_by_position_by_name_and_by_default() -> None:
    assert (Point(1).x, Point(1).y, Point(1, 3).y, Point(y=5, x=4).x) == (1, 2, 3, 4)
    assert Point(1).sum == 3
    assert Point.__doc__ == "A point."


def test_each_record_has_a_factorys_default_of_its_own() -> None:
    one, other = Named(name="a"), Named(name="a")
    assert one.notes == {}
    assert one.notes is not other.notes


def test_a_class_of_many_records_goes_on_making_the_same_ones() -> None:
    @dataclass(frozen=True, slots=True)
    class Many:
        x: int
        y: int = 2
        notes: Mapping[str, str] = field(default_factory=dict)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class ManyNamed:
        x: int
        y: int = 2

    interpreted = Many.__init__
    many = [Many(number) for number in range(300)]
    named = [ManyNamed(x=number) for number in range(300)]
    assert Many.__init__ is not interpreted
    assert [(one.x, one.y, one.notes) for one in many] == [(number, 2, {}) for number in range(300)]
    assert [one.x for one in named] == list(range(300))
    assert many[-1].notes is not many[-2].notes
    assert Many(1, notes={"a": "b"}) == Many(x=1, y=2, notes={"a": "b"}) != many[1]
    assert replace(many[1], y=3) == Many(1, 3)
    with pytest.raises(TypeError, match="missing"):
        Many()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        Many(1, 2, {}, 4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected"):
        ManyNamed(x=1, z=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        ManyNamed(1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("values", "named", "complaint"),
    [
        ((), {}, "missing \\['x'\\]"),
        ((), {"x": 1, "z": 2}, "unexpected \\['z'\\]"),
        ((), {"z": 1}, "unexpected \\['z'\\]"),
        ((1, 2, 3), {}, "takes 2 positional arguments, not 3"),
        ((1,), {"x": 1}, "got 'x' twice"),
    ],
)
def test_wrong_arguments_are_refused(values: tuple[int, ...], named: dict[str, int], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        Point(*values, **named)


def test_a_record_of_names_takes_no_positions() -> None:
    with pytest.raises(TypeError, match="takes 0 positional arguments, not 1"):
        Named("a")  # type: ignore[call-arg]


def test_a_record_is_frozen_and_has_no_other_attributes() -> None:
    point = Point(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'x'"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.z = 2  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'x'"):
        del point.x
    assert not hasattr(point, "__dict__")


def test_records_are_equal_and_hash_by_their_values_and_class() -> None:
    assert Point(1) == Point(1, 2)
    assert Point(1) != Point(2)
    assert Alone(1) == Alone(1)
    others: tuple[object, ...] = ((1, 2), Alone(1))
    assert Point(1) not in others
    assert {Point(1), Point(1, 2)} == {Point(1)}


def test_a_record_shows_its_fields() -> None:
    assert repr(Point(1)) == "Point(x=1, y=2)"


def test_a_record_can_be_copied_and_pickled() -> None:
    named = Named(name="a", notes={"b": "c"})
    assert pickle.loads(pickle.dumps(named)) == named  # noqa: S301 - our own bytes
    assert copy.deepcopy(named) == named


def test_a_record_is_matched_by_position() -> None:
    match Point(1, 7):
        case Point(1, y):
            assert y == 7
        case _:
            pytest.fail("no match")


def test_replace_changes_some_fields_and_refuses_unknown_ones() -> None:
    assert replace(Point(1), y=9) == Point(1, 9)
    with pytest.raises(TypeError, match="unexpected"):
        replace(Point(1), z=9)


def test_records_are_known_from_other_values() -> None:
    assert is_record(Point(1))
    assert not is_record(3)
    assert not is_record(Point)
    assert field_names(Point(1)) == field_names(Point) == ("x", "y")


def test_the_standard_library_takes_a_record_for_a_dataclass() -> None:
    known: Any = Point
    assert dataclasses.is_dataclass(known)
    assert [(one.name, one.default) for one in dataclasses.fields(Point)] == [
        ("x", dataclasses.MISSING),
        ("y", 2),
    ]
    assert dataclasses.fields(Named)[1].default_factory is dict
    assert dataclasses.fields(Named)[0].kw_only
    assert _standard_copy(Named(name="a")) == {"name": "a", "notes": {}}
    assert _standard_replace(Point(1), x=5) == Point(5)


def _standard_copy(value: Any) -> object:  # noqa: ANN401 - mypy knows dataclasses by name
    return dataclasses.asdict(value)


def _standard_replace(value: Any, **changes: object) -> object:  # noqa: ANN401 - as above
    return dataclasses.replace(value, **changes)


def test_pydantic_validates_a_record() -> None:
    adapter = pydantic.TypeAdapter(Point)
    assert adapter.validate_python({"x": 3}) == Point(3)
    assert adapter.dump_python(Point(3)) == {"x": 3, "y": 2}
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python({"x": "no number"})


def test_records_load_no_library_that_generates_code() -> None:
    code = "import sys, gpu_agent.wire.inventory; print(sys.modules.keys() & {'dataclasses', 'inspect'})"
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(30), check=True
    )
    assert seen.stdout.strip() == "set()"
