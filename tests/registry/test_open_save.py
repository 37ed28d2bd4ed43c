from gpu_agent.registry.actions import Kept, Note
from gpu_agent.registry.job import Claim
from gpu_agent.registry.open_save import OpenSave
from tests.registry.dispatch.nodes import node

NODE, CLAIM = (Kept.NODE, "node-A"), (Kept.CLAIM, "job-1")


def claim(expires_at: float) -> Claim:
    return Claim(
        job_id="job-1",
        node_id="node-A",
        gpu_uuids=(),
        endpoint=None,
        granted_at=0.0,
        expires_at=expires_at,
    )


def test_it_lets_go_of_what_was_there_before_it_and_not_after() -> None:
    save = OpenSave((NODE,), before={NODE: node(), CLAIM: claim(1.0)}, after={NODE: None, CLAIM: claim(2.0)})
    assert save.lets_go(NODE)
    assert not save.lets_go(CLAIM)
    assert not save.lets_go((Kept.TOKEN, "t"))


def test_what_is_entrusted_ends_with_it() -> None:
    save, note = OpenSave((NODE,)), Note("claim_lost", {})
    save.entrust(CLAIM, claim(1.0), note)
    assert save.lets_go(CLAIM)
    assert save.entrusted == {CLAIM: note}


def test_an_earlier_change_that_never_was_is_taken_out_of_both_ends() -> None:
    save = OpenSave((CLAIM,), before={CLAIM: claim(2.0)}, after={CLAIM: claim(3.0)})
    save.take_out(CLAIM, claim(1.0), claim(2.0))
    assert save.before[CLAIM] == claim(1.0)
    assert save.after[CLAIM] == claim(3.0)


def test_a_node_that_never_was_is_void() -> None:
    save = OpenSave((NODE,))
    save.take_out(NODE, None, node())
    assert save.void == {"node-A"}


def test_a_save_without_a_node_on_both_ends_has_moved_none() -> None:
    assert OpenSave((NODE,), before={NODE: None}, after={NODE: node()}).moves_of(NODE) == []
