from gpu_agent.probe.models.found import merged
from gpu_agent.wire.inventory import Model, ModelStatus

BROKEN = Model(model_id="a", version="1", status=ModelStatus.ERROR, source="one")
WHOLE = Model(model_id="a", version="1", source="two")
OTHER = Model(model_id="a", version="2", source="two")


def test_of_a_model_found_twice_the_one_that_can_serve_counts_and_versions_are_apart() -> None:
    assert list(merged([[BROKEN], [WHOLE, OTHER]]).values()) == [WHOLE, OTHER]


def test_where_both_are_alike_the_first_counts() -> None:
    again = Model(model_id="a", version="1", source="three")
    assert list(merged([[WHOLE], [again]]).values()) == [WHOLE]
