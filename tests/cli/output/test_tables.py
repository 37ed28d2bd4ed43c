import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import line, line_width, plain_text

COLUMNS = (
    Column(head="NODE"),
    Column(head="GPUS", wraps=True),
    Column(head="JOBS", right=True, priority=2),
    Column(head="SEEN", right=True, priority=1),
)


def sheet(*rows: tuple[str, str, str, str, str]) -> Table:
    return Table(
        COLUMNS, [Row([line(cell) for cell in cells], line(note)) for *cells, note in rows], note="NOTE"
    )


def drawn(table: Table, columns: int | None) -> str:
    return "\n".join(plain_text(one) for one in render_table(table, columns))


READY = ("node-1", "8x H100 80GB HBM3", "1/4", "2 s", "")
DRAINED = ("node-22", "2x L4", "0/4", "12 s", "drained for new fans, by an operator")


def test_without_a_terminal_each_row_is_one_line_with_all_there_is() -> None:
    assert drawn(sheet(READY, DRAINED), None) == (
        "NODE     GPUS               JOBS  SEEN  NOTE\n"
        "node-1   8x H100 80GB HBM3   1/4   2 s\n"
        "node-22  2x L4               0/4  12 s  drained for new fans, by an operator"
    )


def test_notes_that_find_room_behind_are_wrapped_there() -> None:
    assert drawn(sheet(READY, DRAINED), 71) == (
        "NODE     GPUS               JOBS  SEEN  NOTE\n"
        "node-1   8x H100 80GB HBM3   1/4   2 s\n"
        "node-22  2x L4               0/4  12 s  drained for new fans, by an\n"
        "                                        operator"
    )


def test_notes_that_find_none_go_beneath() -> None:
    assert drawn(sheet(READY, DRAINED), 45) == (
        "NODE     GPUS               JOBS  SEEN\n"
        "node-1   8x H100 80GB HBM3   1/4   2 s\n"
        "node-22  2x L4               0/4  12 s\n"
        "    drained for new fans, by an operator"
    )


def test_the_least_worth_goes_first_then_what_may_fold_does() -> None:
    assert drawn(sheet(READY), 34) == "NODE    GPUS               JOBS\nnode-1  8x H100 80GB HBM3   1/4"
    assert drawn(sheet(READY), 27) == "NODE    GPUS\nnode-1  8x H100 80GB HBM3"
    assert drawn(sheet(READY), 20) == "NODE    GPUS\nnode-1  8x H100 80GB\n        HBM3"


def test_a_column_that_wraps_is_no_wider_than_its_longest_part() -> None:
    table = Table(
        (Column(head="CHECKS", wraps=True), Column(head="OF")),
        [Row((line("pcie_link, memory_bandwidth"), line("GPU 3")))],
    )
    assert drawn(table, 30).splitlines() == [
        "CHECKS            OF",
        "pcie_link,        GPU 3",
        "memory_bandwidth",
    ]


def test_no_rows_are_no_lines_and_no_heads_no_line_of_heads() -> None:
    assert render_table(sheet(), 80) == []
    assert drawn(Table((Column(head=""), Column(head="")), [Row([line("a"), line("b")])]), 80) == "a  b"


@given(
    st.lists(
        st.tuples(*[st.text(st.sampled_from("abc 机"), max_size=n) for n in (10, 30, 6, 6, 60)]), max_size=4
    ),
    st.integers(30, 120),  # the widest name takes 20, the gap 2 and a column that wraps at least 8
)
def test_no_line_is_wider_than_the_terminal(rows: list[tuple[str, str, str, str, str]], columns: int) -> None:
    assert all(line_width(one) <= columns for one in render_table(sheet(*rows), columns))


def test_a_name_is_not_cut_off_where_the_terminal_is_too_narrow_for_it() -> None:
    name = "aaaaa机机机机机"
    assert drawn(sheet((name, "bbbbbbbb", "", "", "")), 24) == f"NODE             GPUS\n{name}  bbbbbbbb"


@pytest.mark.parametrize("columns", [None, 40, 80])
def test_no_line_ends_in_blanks(columns: int | None) -> None:
    assert all(one == one.rstrip() for one in drawn(sheet(READY, DRAINED), columns).splitlines())
