from gpu_agent.node.log_limit import MAX_IN_WINDOW, WINDOW_SECONDS, LogLimit


def test_a_flood_is_a_few_lines_and_a_count_in_the_next_window() -> None:
    limit = LogLimit()
    lines = [limit.admit("control_unknown", now=100 + number / 1000) for number in range(1000)]
    assert [line for line in lines if line is not None] == [{}] * MAX_IN_WINDOW
    assert limit.admit("control_unknown", now=100 + WINDOW_SECONDS) == {"suppressed": 1000 - MAX_IN_WINDOW}
    assert limit.admit("control_unknown", now=100 + WINDOW_SECONDS) == {}


def test_a_few_of_an_event_are_all_logged() -> None:
    limit = LogLimit()
    for number in range(100):
        assert limit.admit("node_status_changed", now=number * WINDOW_SECONDS / MAX_IN_WINDOW) == {}


def test_a_flood_of_one_kind_hides_no_other() -> None:
    limit = LogLimit()
    for _ in range(100):
        limit.admit("control_unknown", now=0)
    assert limit.admit("registry_error", now=0) == {}


def test_another_subject_is_no_repeat_and_reports_the_suppressed_lines() -> None:
    limit = LogLimit()
    for _ in range(MAX_IN_WINDOW + 3):
        limit.admit("session_backing_off", now=0, about="connection refused")
    assert limit.admit("session_backing_off", now=1, about="it speaks no TLS") == {"suppressed": 3}
    assert limit.admit("session_backing_off", now=2, about="it speaks no TLS") == {}
