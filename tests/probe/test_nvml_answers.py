"""What a getter's answer may be, through the true binding where it matters."""

from pathlib import Path

import pytest

from gpu_agent.probe.nvml_answers import UntoldError, within, words
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


def test_a_uuid_that_is_no_text_is_unknown_and_the_rest_counts(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("uuid", 0, "GPU-\udcff\udcfe")
    gpu = gpu_of(fake)
    assert gpu["unknowns"] == {"uuid": "the driver answered with a text that is no UTF-8"}
    assert gpu["temperature_c"] == 40
