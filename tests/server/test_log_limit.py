import asyncio
from typing import Any

import pytest

from gpu_agent.server import log_limit
from gpu_agent.server.log_limit import OTHER_ORIGINS, LogLimit, origin_of
from tests.server.harness import until

LEFT_OUT = "violations_suppressed"

Said = list[tuple[str, dict[str, Any]]]


def quiet(said: Said, *, window_seconds: float = 60.0) -> LogLimit:
    def emit(event: str, /, **fields: object) -> None:
        said.append((event, fields))

    return LogLimit(emit, window_seconds=window_seconds)


async def test_the_first_offence_is_told_and_the_others_are_counted_until_the_window_closes() -> None:
    said: Said = []
    one = quiet(said, window_seconds=0.05)
    for port in range(5):
        one.violation("frame_malformed", "10.0.0.1", address=f"10.0.0.1:{port}")
    assert said == [("frame_malformed", {"address": "10.0.0.1:0"})]
    await until(lambda: len(said) == 2, what="the window closed")
    assert said[1] == (LEFT_OUT, {"violation": "frame_malformed", "origin": "10.0.0.1", "count": 4})
    one.violation("frame_malformed", "10.0.0.1", address="10.0.0.1:9")
    assert said[2] == ("frame_malformed", {"address": "10.0.0.1:9"})
    one.stop()


async def test_a_single_offence_leaves_nothing_to_tell() -> None:
    said: Said = []
    one = quiet(said, window_seconds=0.01)
    one.violation("frame_malformed", "10.0.0.1")
    await asyncio.sleep(0.05)
    one.stop()
    assert len(said) == 1


async def test_another_origin_another_event_and_another_kind_are_told_each() -> None:
    said: Said = []
    one = quiet(said)
    one.violation("connection_failed", "10.0.0.1", kind=1008)
    one.violation("connection_failed", "10.0.0.1", kind=1009)
    one.violation("connection_failed", "10.0.0.2", kind=1008)
    one.violation("frame_malformed", "10.0.0.1")
    assert len(said) == 4
    one.violation("connection_failed", "10.0.0.1", kind=1009)
    one.stop()
    assert said[4:] == [
        (LEFT_OUT, {"violation": "connection_failed", "kind": 1009, "origin": "10.0.0.1", "count": 1})
    ]


async def test_a_flood_from_very_many_addresses_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_limit, "MAX_WINDOWS", 3)
    said: Said = []
    one = quiet(said)
    for number in range(50):
        one.violation("frame_malformed", f"10.0.0.{number}")
    assert len(said) == 4
    one.stop()
    assert said[4:] == [(LEFT_OUT, {"violation": "frame_malformed", "origin": OTHER_ORIGINS, "count": 46})]


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
def test_a_network_that_one_customer_is_given_is_one_origin(host: str, origin: str) -> None:
    assert origin_of(host) == origin
