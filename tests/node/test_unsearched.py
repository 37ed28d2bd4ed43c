from pathlib import Path

import pytest

from gpu_agent.node.unsearched import MOST_TOLD, Unsearched
from gpu_agent.probe.models.catalogue import SILENT

PLACES = (Path("/a"), Path("/b"))
LINK = "it is a link; add the folder it leads to as a root of its own"


def test_each_place_is_told_once_for_each_reason_and_again_when_it_breaks_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unsearched = Unsearched()
    for problems in ({"/a": LINK}, {"/a": LINK}, {"/a": "permission denied"}, {}, {"/a": LINK}):
        unsearched.note(problems, PLACES)
    assert caplog.messages == ["models_unsearched"] * 3


def test_a_place_whose_disk_answers_again_is_told_of_whatever_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    unsearched = Unsearched()
    for problems in ({"/a": SILENT, "/b": SILENT}, {"/a": SILENT, "/b": LINK}, {"/b": LINK}, {}):
        unsearched.note(problems, PLACES)
    answered = ["models_disk_answered", "models_unsearched", "models_disk_answered"]
    assert caplog.messages == ["models_unsearched"] * 2 + answered


def test_of_many_places_a_few_are_told_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    Unsearched().note({f"/{number}": LINK for number in range(MOST_TOLD + 7)}, ())
    assert len(caplog.records) == MOST_TOLD
    assert "'others': 7" in str(caplog.records[0].__dict__)


def test_a_place_that_is_no_longer_looked_into_is_not_said_to_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    unsearched = Unsearched()
    unsearched.note({"/a": SILENT}, PLACES)
    unsearched.note({}, PLACES[1:])
    assert caplog.messages == ["models_unsearched"]
