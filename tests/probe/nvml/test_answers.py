"""What a getter's answer may be, through the true binding where it matters."""

from pathlib import Path

import pynvml
import pytest

from gpu_agent.probe.nvml.answers import (
    Getter,
    GpuGoneError,
    UntoldError,
    Values,
    collect,
    text,
    within,
    words,
)
from tests.nvml_fake.child import gpu_of
from tests.nvml_fake.control import FakeNvml


@pytest.mark.parametrize("value", [-1, 101, 2**32 - 1])
def test_a_number_out_of_bounds_cannot_be_told(value: int) -> None:
    with pytest.raises(UntoldError, match=f"answered {value}, which cannot be"):
        within(value, 0, 100)
    assert within(0, 0, 100) == 0


def test_what_is_no_utf8_is_read_as_far_as_it_can_be() -> None:
    with pytest.raises(UnicodeDecodeError) as raised:
        b"RTX \xff".decode()
    assert words(raised.value) == "RTX \ufffd"


@pytest.mark.parametrize(("told", "read"), [("H100", "H100"), (b"H100", "H100"), (b"H\xff", "H\ufffd")])
def test_a_text_may_come_as_bytes(told: object, read: str) -> None:
    assert text(told) == read


def test_a_uuid_that_is_no_text_is_unknown_and_the_rest_counts(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("uuid", 0, "GPU-\udcff\udcfe")
    gpu = gpu_of(fake)
    assert gpu["unknowns"] == {"uuid": "the driver answered with a text that is no UTF-8"}
    assert gpu["temperature_c"] == 40


def asked(error: BaseException) -> Values:
    """What a reading of two getters gives, of which the first one fails."""

    def failing(_nvml: object, _handle: object) -> Values:
        raise error

    getters: tuple[Getter, ...] = (
        (("one", "other"), failing),
        (("third",), lambda _nvml, _handle: {"third": 3}),
    )
    return collect(pynvml, None, getters)


def test_a_binding_that_does_not_fit_the_library_is_one_unknown_more() -> None:
    mismatch = pynvml.NVMLLibraryMismatchError("use a versioned function")
    assert not isinstance(mismatch, pynvml.NVMLError)
    untold = {"one": "use a versioned function", "other": "use a versioned function"}
    assert asked(mismatch) == {"third": 3, "unknowns": untold}


@pytest.mark.parametrize("code", [3, 4, 6, 12, 13, 25, 77])
def test_an_error_of_one_getter_is_its_fields_reason(code: int) -> None:
    values = asked(pynvml.NVMLError(code))
    assert values["third"] == 3
    assert set(values["unknowns"]) == {"one", "other"}  # type: ignore[call-overload]


@pytest.mark.parametrize("code", [1, 9, 18])
def test_an_error_of_the_whole_driver_is_not_swallowed(code: int) -> None:
    with pytest.raises(pynvml.NVMLError):
        asked(pynvml.NVMLError(code))


@pytest.mark.parametrize(("code", "means"), [(15, "gpu_lost"), (999, "gpu_lost"), (16, "gpu_reset_required")])
def test_an_error_of_the_whole_gpu_ends_it(code: int, means: str) -> None:
    with pytest.raises(GpuGoneError) as gone:
        asked(pynvml.NVMLError(code))
    assert gone.value.code == means
    assert gone.value.detail.startswith("reading one: ")
