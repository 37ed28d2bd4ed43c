import asyncio
from typing import Any

import pytest

from gpu_agent.server import log_limit
from gpu_agent.server.log_limit import OTHER_ORIGINS, LogLimit, origin_of
from tests.server.harness import until

SUPPRESSED = "violations_suppressed"

Logged = list[tuple[str, dict[str, Any]]]


def limit(logged: Logged, *, window_seconds: float = 60.0) -> LogLimit:
    def emit(event: str, /, **fields: object) -> None:
        logged.append((event, fields))

    return LogLimit(emit, window_seconds=window_seconds)


async def test_the_first_violation_is_logged_and_the_others_are_counted_until_the_window_closes() -> None:
    logged: Logged = []
    one = limit(logged, window_seconds=0.05)
    for port in range(5):
        one.violation("frame_malformed", "10.0.0.1", address=f"10.0.0.1:{port}")
    assert logged == [("frame_malformed", {"address": "10.0.0.1:0"})]
    await until(lambda: len(logged) == 2, what="the window closed")
    assert logged[1] == (SUPPRESSED, {"violation": "frame_malformed", "origin": "10.0.0.1", "count": 4})
    one.violation("frame_malformed", "10.0.0.1", address="10.0.0.1:9")
    assert logged[2] == ("frame_malformed", {"address": "10.0.0.1:9"})
    one.stop()


async def test_a_single_violation_leaves_no_count_to_log() -> None:
    logged: Logged = []
    one = limit(logged, window_seconds=0.01)
    one.violation("frame_malformed", "10.0.0.1")
    await asyncio.sleep(0.05)
    one.stop()
    assert len(logged) == 1


async def test_another_origin_event_or_kind_is_logged_on_its_own() -> None:
    logged: Logged = []
    one = limit(logged)
    one.violation("connection_failed", "10.0.0.1", kind=1008)
    one.violation("connection_failed", "10.0.0.1", kind=1009)
    one.violation("connection_failed", "10.0.0.2", kind=1008)
    one.violation("frame_malformed", "10.0.0.1")
    assert len(logged) == 4
    one.violation("connection_failed", "10.0.0.1", kind=1009)
    one.stop()
    assert logged[4:] == [
        (SUPPRESSED, {"violation": "connection_failed", "kind": 1009, "origin": "10.0.0.1", "count": 1})
    ]


async def test_a_flood_from_very_many_addresses_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_limit, "MAX_WINDOWS", 3)
    logged: Logged = []
    one = limit(logged)
    for number in range(50):
        one.violation("frame_malformed", f"10.0.0.{number}")
    assert len(logged) == 4
    one.stop()
    assert logged[4:] == [
        (SUPPRESSED, {"violation": "frame_malformed", "origin": OTHER_ORIGINS, "count": 46})
    ]


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("", ""),
        ("a socket", "a socket"),
    ],
)
def test_the_network_of_one_customer_is_one_origin(host: str, origin: str) -> None:
    assert origin_of(host) == origin
