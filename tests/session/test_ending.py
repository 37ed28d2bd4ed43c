from gpu_agent.session.ending import ENDS, FINAL_AT_ANY_TIME
from gpu_agent.wire.codes import Reaction


def test_every_reaction_leads_somewhere() -> None:
    assert set(ENDS) == set(Reaction)


def test_what_is_final_at_any_time_never_just_tries_again() -> None:
    assert {ENDS[reaction].value for reaction in FINAL_AT_ANY_TIME} == {"await_gpu", "yield", "fail"}
