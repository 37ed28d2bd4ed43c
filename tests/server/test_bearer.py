import pytest

from gpu_agent.server.bearer import UNREADABLE, token_of

TOKEN = "gpuj_0123abcd_" + "A" * 43


@pytest.mark.parametrize(
    "value", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN}  ", f"Bearer\t{TOKEN}"]
)
def test_a_bearer_header_carries_the_token_however_the_scheme_is_spelled(value: str) -> None:
    assert token_of((value,)) == TOKEN


def test_no_header_is_no_token() -> None:
    assert token_of(()) is None


@pytest.mark.parametrize(
    "values",
    [
        ("Bearer a", "Bearer b"),
        ("Bearer a", "Bearer a"),
        ("",),
        ("Bearer",),
        ("Bearer ",),
        (TOKEN,),
        ("Basic dXNlcjpwYXNz",),
        ("Bearer two words",),
        ("Bearer tök",),
        ("Bearer \x00",),
        ("Bearer \x7f",),
        ("Bearer " + "x" * 9000,),
        ("Bearer, Bearer a",),
        ("Bearer\u00a0a",),
    ],
)
def test_tricks_are_nobodys_token(values: tuple[str, ...]) -> None:
    assert token_of(values) == UNREADABLE
