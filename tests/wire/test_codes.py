import pytest

from gpu_agent.wire.codes import ALIASES, CODES, ErrorCode, Reaction, known, reaction_to


def test_every_code_has_a_meaning_and_a_reaction() -> None:
    assert set(CODES) == set(ErrorCode)


@pytest.mark.parametrize(
    ("code", "reaction"),
    [
        ("GPU_REQUIRED", Reaction.AWAIT_GPU),
        ("NO_GPU_AVAILABLE", Reaction.AWAIT_GPU),
        ("INVALID_CAPABILITY_SCHEMA", Reaction.DOWNGRADE_SCHEMA),
        ("NODE_ID_CONFLICT", Reaction.FORGET_ID),
        ("INVALID_MESSAGE", Reaction.RETRY_AT_CEILING),
        ("UNKNOWN_NODE", Reaction.REGISTER_AGAIN),
        ("SESSION_SUPERSEDED", Reaction.YIELD),
        ("UNAUTHORIZED", Reaction.RETRY_AT_CEILING),
        ("FORBIDDEN", Reaction.RETRY_AT_CEILING),
        ("SIMULATED_NODE_REFUSED", Reaction.STOP),
        ("RATE_LIMITED", Reaction.BACK_OFF),
        ("REGISTRY_BUSY", Reaction.BACK_OFF),
        ("INTERNAL_ERROR", Reaction.BACK_OFF),
        ("SOMETHING_OF_2031", Reaction.BACK_OFF),
    ],
)
def test_the_reaction_is_the_one_of_the_protocols_table(code: str, reaction: Reaction) -> None:
    assert reaction_to(code) is reaction


def test_an_alias_reads_as_our_code() -> None:
    assert {alias: known(alias) for alias in ALIASES} == ALIASES
