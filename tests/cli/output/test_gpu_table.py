from dataclasses import replace

import pytest

from gpu_agent.cli.output.inventory import gib, gpu_table, in_tree_order
from gpu_agent.cli.output.text import ASCII_GLYPHS, UNICODE_GLYPHS, plain_text, text_width
from gpu_agent.wire.inventory import Gpu, GpuProcess, Health, MemoryKind

L4 = Gpu(
    index=0,
    uuid="GPU-11111111-2222-4333-a444-555555555555",
    name="NVIDIA L4",
    memory_mb=23034,
    memory_used_mb=11517,
    utilization_percent=30,
    temperature_c=41,
    power_w=33,
    power_limit_w=72,
)
LONG = Gpu(
    index=11,
    uuid="GPU-2",
    name="NVIDIA RTX 6000 Ada Generation Laptop",
    health=Health.DEGRADED,
    memory_mb=49140,
    memory_used_mb=1,
)
SLICE = Gpu(uuid="MIG-1", name="NVIDIA L4 MIG 1g.6gb", parent_uuid=L4.uuid, memory_mb=5759, index=0)


def drawn(*gpus: Gpu, columns: int | None = 80) -> list[str]:
    return [plain_text(one) for one in gpu_table(gpus, columns, UNICODE_GLYPHS)]


def test_memory_and_load_have_bars_and_figures_have_units() -> None:
    said = drawn(L4, columns=100)[1]
    for words in ("L4", "ok", "11/22 GiB  ████░░░░", "30%  ██░░░░", "41°C", "33/72 W"):
        assert words in said


def test_without_a_terminal_a_row_is_one_line_without_bars_and_with_its_uuid() -> None:
    head, row = drawn(replace(L4, throttle_reasons=("hw_slowdown",)), columns=None)
    assert head.split() == ["GPU", "NAME", "HEALTH", "MEMORY", "LOAD", "TEMP", "POWER", "UUID", "NOTE"]
    assert "█" not in row
    assert row.endswith(f"{L4.uuid}  clocks held down: hw_slowdown")


def test_plain_letters_stand_for_bars_and_degrees() -> None:
    said = plain_text(gpu_table((L4,), 80, ASCII_GLYPHS)[1])
    assert "11/22 GiB  ####...." in said
    assert "41C" in said


def test_unknown_figures_are_question_marks_never_zero() -> None:
    said = drawn(Gpu(uuid="GPU-2", name="NVIDIA GB10"))[1].replace("GB10", "")
    assert "unknown" in said
    assert "0" not in said


def test_slices_stand_under_their_parent_by_its_number() -> None:
    said = drawn(SLICE, L4, replace(LONG, index=1))
    assert [row.split("  ")[0] for row in said[1:]] == ["0", "0:0", "1"]
    assert "└ MIG 1g.6gb" in said[2]


def test_a_slice_whose_parent_is_not_listed_is_shown_all_the_same() -> None:
    assert list(in_tree_order((SLICE,))) == [(SLICE, "?:?")]


def test_the_processes_of_a_gpu_are_reported_the_greatest_first() -> None:
    used = (GpuProcess(pid=7, memory_mb=100), GpuProcess(pid=8, memory_mb=4096, ours=True), GpuProcess(pid=9))
    said = drawn(replace(L4, processes=used), columns=None)[1]
    assert "used by process 8 (4 GiB, ours), process 7 (0.1 GiB), process 9" in said


def test_what_every_busy_gpu_does_is_not_reported() -> None:
    assert len(drawn(replace(L4, throttle_reasons=("sw_power_cap",)))) == 2


def test_memory_that_the_host_shares_is_shown_to_be() -> None:
    assert "shared with the host" in drawn(replace(L4, memory_kind=MemoryKind.UNIFIED), columns=None)[1]


def test_a_gpu_that_sleeps_or_is_hidden_says_so() -> None:
    said = drawn(replace(L4, asleep=True, visible=False), columns=None)[1]
    assert said.endswith("asleep, and not woken for this; hidden by CUDA_VISIBLE_DEVICES")
    assert len(drawn(replace(L4, asleep=False, visible=True))) == 2


def test_what_there_is_no_room_for_goes_in_order_of_worth() -> None:
    assert L4.uuid in drawn(L4, columns=140)[1]
    for columns, there, gone in ((80, "██░░", L4.uuid), (52, "33/72 W", "░░"), (44, "41°C", "72 W")):
        said = drawn(L4, columns=columns)[1]
        assert there in said, columns
        assert gone not in said, columns


@pytest.mark.parametrize("columns", [30, 34, 40, 50, 60, 80, 120])
def test_health_is_whole_on_every_terminal(columns: int) -> None:
    said = drawn(L4, LONG, SLICE, columns=columns)
    assert any("degraded" in one for one in said)
    assert max(map(text_width, said)) <= columns


def test_a_name_cannot_steer_the_terminal() -> None:
    said = "\n".join(drawn(replace(L4, name="L4\x1b[2J\r\nGPU 9"), columns=None))
    assert "\x1b" not in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    ("mib", "words"), [(0, "0"), (100, "0.1"), (5759, "5.6"), (4096, "4"), (81559, "80")]
)
def test_small_sizes_have_a_decimal(mib: int, words: str) -> None:
    assert gib(mib) == words
