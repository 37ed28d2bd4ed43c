import pytest

from gpu_agent.runtime.toml_lines import Place, line_of, lines_of

TEXT = '''\
# a = 1
a = 1
  "b" = [
  1, # c = 2
  2,
]
text = """
d = 4
[no.table]
"""
dotted.key = 1
inline = { deep = 1 }

[table]
e = 1
"f.g" = 2

[[many]]
h = 1
[many.below]
i = 1
[[many]]
h = 2
'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("a",), 2),
        (("b",), 3),
        (("text",), 7),
        (("dotted", "key"), 11),
        (("table",), 14),
        (("table", "e"), 15),
        (("table", "f.g"), 16),
        (("many", 0), 18),
        (("many", 0, "h"), 19),
        (("many", 0, "below", "i"), 21),
        (("many", 1, "h"), 23),
    ],
)
def test_a_key_is_found_where_it_stands(place: Place, line: int) -> None:
    assert lines_of(TEXT)[place] == line


@pytest.mark.parametrize("place", [("c",), ("d",), ("no",), ("no", "table"), ("inline", "deep")])
def test_what_only_looks_like_a_key_is_none(place: Place) -> None:
    assert place not in lines_of(TEXT)


@pytest.mark.parametrize(
    ("place", "line"), [(("inline", "deep"), 12), (("many", 1, "absent"), 22), (("absent",), None)]
)
def test_a_key_that_stands_nowhere_itself_is_found_by_what_is_above_it(place: Place, line: int) -> None:
    assert line_of(place, lines_of(TEXT)) == line


def test_a_text_of_thousands_of_lines_is_read_through_once() -> None:
    long = "a = [\n" + '  "x",\n' * 20_000 + "]\nb = 1\n"
    assert lines_of(long) == {("a",): 1, ("b",): 20_003}
