import pytest

from gpu_agent.cli.printable import printable


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("GPU-1 “zwölf” 機械", "GPU-1 “zwölf” 機械"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u202eturned", "\\u202eturned"),
        (7, "7"),
    ],
)
def test_what_could_act_on_a_terminal_is_written_out(words: object, printed: str) -> None:
    assert printable(words) == printed
