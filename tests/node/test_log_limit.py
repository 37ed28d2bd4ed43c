from gpu_agent.node.log_limit import MOST_IN_A_WINDOW, WINDOW_SECONDS, LogLimit


def test_a_flood_is_a_few_lines_and_a_count_in_the_next_window() -> None:
    repeats = LogLimit()
    told = [repeats.admit("control_unknown", now=100 + number / 1000) for number in range(1000)]
    assert [line for line in told if line is not None] == [{}] * MOST_IN_A_WINDOW
    assert repeats.admit("control_unknown", now=100 + WINDOW_SECONDS) == {
        "kept_back": 1000 - MOST_IN_A_WINDOW
    }
    assert repeats.admit("control_unknown", now=100 + WINDOW_SECONDS) == {}


def test_a_few_of_a_kind_are_all_told() -> None:
    repeats = LogLimit()
    for number in range(100):
        assert repeats.admit("node_status_changed", now=number * WINDOW_SECONDS / MOST_IN_A_WINDOW) == {}


def test_a_flood_of_one_kind_hides_no_other() -> None:
    repeats = LogLimit()
    for _ in range(100):
        repeats.admit("control_unknown", now=0)
    assert repeats.admit("registry_error", now=0) == {}


def test_what_is_about_something_else_is_no_repeat_and_tells_what_was_kept_back() -> None:
    repeats = LogLimit()
    for _ in range(MOST_IN_A_WINDOW + 3):
        repeats.admit("session_backing_off", now=0, about="connection refused")
    assert repeats.admit("session_backing_off", now=1, about="it speaks no TLS") == {"kept_back": 3}
    assert repeats.admit("session_backing_off", now=2, about="it speaks no TLS") == {}
