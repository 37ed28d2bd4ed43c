import pytest

from gpu_agent.server.bearer import UNREADABLE
from gpu_agent.server.handshake import Handshake

TOKEN = "gpuj_0123abcd_" + "A" * 43


def test_without_a_header_the_query_may_carry_the_token() -> None:
    assert Handshake(f"/ws/node?a=b&token={TOKEN}").token == TOKEN


def test_the_header_goes_before_the_query_even_when_it_is_nobodys() -> None:
    assert Handshake("/ws/node?token=query", (f"Bearer {TOKEN}",)).token == TOKEN
    assert Handshake(f"/ws/node?token={TOKEN}", ("Basic eDp5",)).token == UNREADABLE


@pytest.mark.parametrize("target", ["/ws/node", "/ws/node?", "/ws/node?a=b", "/ws/node?xtoken=1"])
def test_who_presents_nothing_has_no_token(target: str) -> None:
    assert Handshake(target).token is None


@pytest.mark.parametrize(
    "query",
    [
        "token=",
        "token=a&token=b",
        "token=%00",
        "token=%ff%fe",
        "token=a%0d%0aX: y",
        "token=" + "x" * 9000,
        "&".join(["token=a"] + ["b=c"] * 100),
        "token=a+b",
    ],
)
def test_tricks_with_the_query_are_nobodys_token(query: str) -> None:
    assert Handshake(f"/ws/node?{query}").token == UNREADABLE


def test_what_is_shown_of_a_handshake_holds_no_token() -> None:
    shown = Handshake(f"/ws/node?token={TOKEN}", (f"Bearer {TOKEN}",))
    assert shown.path == "/ws/node"
    assert TOKEN not in repr(shown)
