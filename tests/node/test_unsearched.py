import pytest

from gpu_agent.node.unsearched import MOST_TOLD, Unsearched

LINK = "it is a link; add the folder it leads to as a root of its own"


def test_each_place_is_told_once_for_each_reason_and_again_when_it_breaks_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unsearched = Unsearched()
    for problems in ({"/a": LINK}, {"/a": LINK}, {"/a": "permission denied"}, {}, {"/a": LINK}):
        unsearched.note(problems)
    assert caplog.messages == ["models_unsearched"] * 3


def test_of_many_places_a_few_are_told_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    Unsearched().note({f"/{number}": LINK for number in range(MOST_TOLD + 7)})
    assert len(caplog.records) == MOST_TOLD
    assert "'others': 7" in str(caplog.records[0].__dict__)
