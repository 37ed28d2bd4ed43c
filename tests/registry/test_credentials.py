import pytest

from gpu_agent.registry.credentials import FreshToken, Role, allows


@pytest.mark.parametrize("needed", Role)
def test_each_role_allows_what_those_before_it_do(needed: Role) -> None:
    allowing = [role for role in Role if allows(role, needed)]
    assert allowing == list(Role)[list(Role).index(needed) :]


def test_a_fresh_token_shows_its_text_to_no_log() -> None:
    assert "secret" not in repr(FreshToken("0001", "secret", "digest"))
