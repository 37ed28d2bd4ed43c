"""Frozen dataclasses without generated code, for what `gpu-agent probe` loads.

`dataclasses` writes and compiles the methods of each class when it is loaded, and loads `inspect` for that:
a third of the whole start of a command. Here all classes share a few functions that go through the fields.

To everyone else they are dataclasses: mypy checks them, and the functions of `dataclasses` and pydantic work
on them. An instance costs twice the time to compare. A class of which many are made gets a compiled
`__init__` after all: it costs as much as a hundred instances, and makes each in a third of the time.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Literal, TypeVar, dataclass_transform, overload

_T = TypeVar("_T")
_Class = TypeVar("_Class", bound=type)
_FIELDS = "__dataclass_fields__"
_MANY = 100
"""Instances of a class after which its `__init__` is compiled."""


class _Factory:
    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


@overload
def field(*, default_factory: type[_T]) -> _T: ...
@overload
def field(*, default_factory: Callable[[], _T]) -> _T: ...
def field(*, default_factory: Callable[[], Any]) -> Any:
    """Give a field a default of its own for each instance."""
    return _Factory(default_factory)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def dataclass(
    *, frozen: Literal[True], slots: Literal[True], kw_only: bool = False
) -> Callable[[_Class], _Class]:
    """Make a frozen class with slots of the annotated names, without a base class."""
    assert frozen  # noqa: S101 - the words are for mypy and for readers; there is no other kind
    assert slots  # noqa: S101

    def decorate(plain: _Class) -> _Class:
        return _with_slots(plain, kw_only=kw_only)

    return decorate


def replace(record: _T, /, **changes: object) -> _T:
    """Copy a record with some fields changed."""
    return type(record)(**{**{name: getattr(record, name) for name in field_names(record)}, **changes})


def is_record(value: object) -> bool:
    """Whether it is an instance of a class made here."""
    return isinstance(type(value).__dict__.get(_FIELDS), _StandardFields)


def field_names(record: object) -> tuple[str, ...]:
    """The names of the fields of a record, or of its class, in their order."""
    names: tuple[str, ...] = record.__slots__  # type: ignore[attr-defined]  # every class made here has them
    return names


def _with_slots(plain: _Class, *, kw_only: bool) -> _Class:
    names = tuple(plain.__annotations__)
    body = dict(plain.__dict__)
    given = {name: body.pop(name) for name in names if name in body}
    for name in ("__dict__", "__weakref__"):
        body.pop(name, None)
    body.update(
        __slots__=names,
        __match_args__=() if kw_only else names,
        __qualname__=plain.__qualname__,
        __setattr__=_refuse_to_set,
        __delattr__=_refuse_to_delete,
        __repr__=_repr,
        __getstate__=_state,
        __setstate__=_restore,
    )
    body[_FIELDS] = _StandardFields(given, kw_only=kw_only)
    made = type(plain)(plain.__name__, (), body)
    _add_init(made, names, given, positional=0 if kw_only else len(names))
    _add_comparison(made, names)
    return made


def _add_init(made: type, names: tuple[str, ...], given: dict[str, object], *, positional: int) -> None:
    defaults = {name: value for name, value in given.items() if not isinstance(value, _Factory)}
    factories = {name: value.make for name, value in given.items() if isinstance(value, _Factory)}
    setters = tuple((name, made.__dict__[name].__set__) for name in names)  # past the frozen __setattr__
    count = len(names)
    made_so_far = 0

    def __init__(self: object, /, *values: object, **named: object) -> None:  # noqa: N807 - it becomes one
        nonlocal made_so_far
        made_so_far += 1
        if made_so_far >= _MANY:
            made.__init__ = _compiled_init(made, names, given, positional=positional)  # type: ignore[misc]
        if values:
            named |= _by_name(made, names[:positional], values, given=named)
        filled = {**defaults, **named} if defaults else named
        for name, make in factories.items():
            if name not in named:
                filled[name] = make()
        if len(filled) != count:
            raise TypeError(_wrong_names(made, names, filled))
        try:
            for name, store in setters:
                store(self, filled[name])
        except KeyError:
            raise TypeError(_wrong_names(made, names, filled)) from None

    made.__init__ = __init__  # type: ignore[misc]


def _compiled_init(
    made: type, names: tuple[str, ...], given: dict[str, object], *, positional: int
) -> Callable[..., None]:
    """An `__init__` with a parameter for each field, as `dataclasses` would write it."""
    known: dict[str, Any] = {"_unset": object()}
    parameters = [] if positional else ["*"]
    lines = []
    for name in names:
        known[f"_store_{name}"] = made.__dict__[name].__set__
        default = given.get(name)
        known[f"_given_{name}"] = default.make if isinstance(default, _Factory) else default
        value, usual = name, f"_given_{name}"
        if isinstance(default, _Factory):
            value, usual = f"_given_{name}() if {name} is _unset else {name}", "_unset"
        parameters.append(f"{name}={usual}" if name in given else name)
        lines.append(f" _store_{name}(self, {value})")
    source = f"def __init__(self, {', '.join(parameters)}):\n" + "\n".join(lines)
    exec(source, known)  # noqa: S102 - of the names of fields, which stand in our own code
    compiled: Callable[..., None] = known["__init__"]
    return compiled


def _by_name(
    made: type, names: tuple[str, ...], values: tuple[object, ...], *, given: dict[str, object]
) -> dict[str, object]:
    if len(values) > len(names):
        raise TypeError(f"{made.__name__}() takes {len(names)} positional arguments, not {len(values)}")
    placed = dict(zip(names, values, strict=False))
    twice = [name for name in placed if name in given]
    if twice:
        raise TypeError(f"{made.__name__}() got {twice[0]!r} twice")
    return placed


def _wrong_names(made: type, names: tuple[str, ...], filled: dict[str, object]) -> str:
    unknown = [name for name in filled if name not in names]
    missing = [name for name in names if name not in filled]
    what = f"unexpected {unknown}" if unknown else f"missing {missing}"
    return f"{made.__name__}() got wrong arguments: {what}"


def _add_comparison(made: type, names: tuple[str, ...]) -> None:
    values: Callable[[object], object] = attrgetter(*names) if names else lambda _: ()

    def __eq__(self: object, other: object) -> bool:  # noqa: N807
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: object) -> int:  # noqa: N807
        return hash(values(self))

    made.__eq__ = __eq__  # type: ignore[method-assign,assignment]
    made.__hash__ = __hash__  # type: ignore[method-assign,assignment]


def _repr(self: object) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in field_names(self))
    return f"{type(self).__qualname__}({shown})"


def _refuse_to_set(_self: object, name: str, _value: object) -> None:
    raise _frozen_error(f"cannot assign to field {name!r}")


def _refuse_to_delete(_self: object, name: str) -> None:
    raise _frozen_error(f"cannot delete field {name!r}")


def _frozen_error(sentence: str) -> AttributeError:
    from dataclasses import FrozenInstanceError  # noqa: PLC0415 - loaded for a fault alone

    return FrozenInstanceError(sentence)


def _state(self: object) -> tuple[object, ...]:
    return tuple(getattr(self, name) for name in field_names(self))


def _restore(self: object, state: tuple[object, ...]) -> None:
    for name, value in zip(field_names(self), state, strict=True):
        object.__setattr__(self, name, value)


class _StandardFields:
    """What `dataclasses` knows a class by, made when something first looks for it."""

    def __init__(self, given: dict[str, object], *, kw_only: bool) -> None:
        self._given = given
        self._kw_only = kw_only
        self._made: object = None

    def __get__(self, _instance: object, owner: type) -> object:
        if self._made is None:
            import dataclasses  # noqa: PLC0415 - the point is not to load it

            described: list[tuple[str, type, object]] = []
            for name, kind in owner.__annotations__.items():
                default = self._given.get(name, dataclasses.MISSING)
                standard = (
                    dataclasses.field(default_factory=default.make)
                    if isinstance(default, _Factory)
                    else dataclasses.field(default=default)
                )
                described.append((name, kind, standard))
            known = dataclasses.make_dataclass(owner.__name__, described, frozen=True, kw_only=self._kw_only)
            self._made = vars(known)[_FIELDS]
        return self._made
