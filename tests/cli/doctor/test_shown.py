import pytest

from gpu_agent.cli.doctor.shown import document, finding_lines, sum_line
from gpu_agent.cli.lines import plain
from gpu_agent.runtime.findings import fail, ok, skipped, warn

GOOD = ok("DNS", "registry.example is 10.0.0.1")
LATE = warn("clock", "this machine's clock is 90 s behind the registry's", "set it by NTP")
CLOSED = fail("TCP", "nothing at registry.example takes connections on port 8080", "open the firewall")


def drawn(columns: int | None) -> list[str]:
    return [plain(one) for finding in (GOOD, LATE, CLOSED) for one in finding_lines(finding, columns)]


def test_a_pipe_gets_one_line_for_each_with_the_mend_behind_it() -> None:
    assert drawn(None) == [
        "OK    DNS              registry.example is 10.0.0.1",
        "WARN  clock            this machine's clock is 90 s behind the registry's. Mend: set it by NTP",
        f"FAIL  TCP              {CLOSED.detail}. Mend: open the firewall",
    ]


def test_a_terminal_gets_the_mend_beneath() -> None:
    said = drawn(80)
    assert said[2] == " " * 23 + "mend: set it by NTP"
    assert max(map(len, said)) <= 80


@pytest.mark.parametrize("columns", [24, 40, 59, 60])
def test_nothing_is_wider_than_the_terminal(columns: int) -> None:
    assert max(map(len, drawn(columns))) <= columns


def test_what_it_comes_to_names_what_fails() -> None:
    assert plain(sum_line([GOOD, CLOSED, skipped("TLS", "not tried")])) == "1 of 3 fail: TCP"
    assert plain(sum_line([GOOD, LATE])) == "Nothing fails, 1 to know of"
    assert plain(sum_line([GOOD])) == "Nothing fails"


def test_programs_get_every_finding_in_one_document() -> None:
    told = document([GOOD, CLOSED])
    assert (told["schema"], told["ok"]) == ("gpu-agent.doctor/1", False)
    assert told["checks"] == [
        {"check": "DNS", "verdict": "ok", "detail": "registry.example is 10.0.0.1", "mend": None},
        {
            "check": "TCP",
            "verdict": "fail",
            "detail": "nothing at registry.example takes connections on port 8080",
            "mend": "open the firewall",
        },
    ]
    assert document([LATE])["ok"] is True


def test_words_from_elsewhere_cannot_steer_the_terminal() -> None:
    hostile = fail("credential", "the registry says \x1b[2J\r\nOK", "none")
    assert all("\x1b" not in plain(one) for one in finding_lines(hostile, None))
