from gpu_agent.registry.credentials import FreshToken
from gpu_agent.registry.keys import NodeKey, NodeKeys, joined

OLD, NEW = NodeKey("old", "digest of old"), NodeKey("new", "digest of new")


def test_who_joins_has_one_key_whose_use_is_not_spent_yet() -> None:
    keys = joined(FreshToken("new", "secret", "digest of new"), "join-1")
    assert keys == NodeKeys(current=NEW, joined_by="join-1", spent=False)
    assert keys.all == (NEW,)


def test_while_a_node_is_rotated_both_its_keys_prove_it() -> None:
    keys = NodeKeys(current=OLD).to_be_rotated().followed_by(FreshToken("new", "secret", "digest of new"))
    assert (keys.has("old"), keys.has("new"), keys.has("other")) == (True, True, False)
    assert keys.proven_by("old") is keys


def test_the_first_proof_of_a_new_key_ends_the_old_one_and_the_rotation() -> None:
    keys = NodeKeys(current=OLD, following=(NEW,), rotating=True)
    assert keys.proven_by("new") == NodeKeys(current=NEW)


def test_a_key_that_was_told_proves_its_node_though_another_was_told_since() -> None:
    """The answer that brought the other may have been lost."""
    third = NodeKey("third", "digest of third")
    keys = NodeKeys(current=OLD, following=(NEW,), rotating=True)
    keys = keys.followed_by(FreshToken("third", "secret", "digest of third"))
    assert keys.all == (OLD, NEW, third)
    assert keys.proven_by("new") == NodeKeys(current=NEW, following=(third,), rotating=True)
    assert keys.proven_by("third") == NodeKeys(current=third)


def test_however_often_a_node_is_rotated_it_has_few_keys() -> None:
    keys = NodeKeys(current=OLD)
    for number in range(5):
        keys = keys.followed_by(FreshToken(f"{number}", "secret", f"digest of {number}"))
    assert [key.token_id for key in keys.all] == ["old", "3", "4"]
