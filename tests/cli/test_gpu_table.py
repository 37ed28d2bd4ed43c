import io

import pytest
from rich.console import Console

from gpu_agent.cli.gpu_table import gpu_table
from gpu_agent.wire.inventory import Gpu, Health

L4 = Gpu(
    index=0,
    uuid="GPU-11111111-2222-4333-a444-555555555555",
    name="NVIDIA L4",
    memory_mb=23034,
    memory_used_mb=11517,
    utilization_percent=30,
    temperature_c=41,
    power_w=33,
)
LONG = Gpu(
    index=11,
    uuid="GPU-2",
    name="NVIDIA RTX 6000 Ada Generation Laptop",
    health=Health.DEGRADED,
    memory_mb=49140,
    memory_used_mb=1,
)


def drawn(*gpus: Gpu, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(width=width, file=file)
    console.print(gpu_table(gpus, console))
    file.seek(0)
    return file.read()


def test_memory_has_a_bar_and_figures_have_units() -> None:
    said = drawn(L4, width=80)
    for words in ("L4", "ok", "████░░░░ 11/22 GiB", "30%", "41 °C", "33 W"):
        assert words in said


@pytest.mark.parametrize(
    ("encoding", "degrees"), [("ascii", " 41 C"), ("latin-1", " 41 C"), ("cp1252", " 41 C")]
)
def test_an_encoding_without_blocks_gets_plain_letters(encoding: str, degrees: str) -> None:
    said = drawn(L4, width=80, encoding=encoding)
    assert "####.... 11/22 GiB" in said
    assert degrees in said


def test_unknown_figures_are_question_marks_never_zero() -> None:
    said = drawn(Gpu(uuid="GPU-2", name="NVIDIA GB10"), width=80)
    assert "unknown" in said
    assert "0" not in said.splitlines()[1].replace("GB10", "")


def test_uuids_are_shown_where_there_is_room() -> None:
    assert L4.uuid not in drawn(L4, width=80)
    assert L4.uuid in drawn(L4, width=140)


def test_the_bar_goes_first_then_the_figures() -> None:
    assert "░" in drawn(L4, width=60)
    without_bar = drawn(L4, width=52)
    assert "░" not in without_bar
    assert "41 °C" in without_bar
    assert "41 °C" not in drawn(L4, width=36)
    assert "11/22 GiB" in drawn(L4, width=36)


@pytest.mark.parametrize("width", [30, 34, 40, 50, 60, 80])
def test_health_is_whole_on_every_terminal(width: int) -> None:
    said = drawn(L4, LONG, width=width)
    assert "degraded" in said
    assert max(map(len, said.splitlines())) <= width
