import pytest

from gpu_agent.probe.models.tellable import LARGEST_BYTES, LONGEST, tellable
from gpu_agent.wire.inventory import Model
from gpu_agent.wire.messages import InstalledModel

LONG = "x" * (LONGEST + 1)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Model(model_id="", version="1"), "name"),
        (Model(model_id="//", version="1"), "name"),
        (Model(model_id=" ", version="1"), "name"),
        (Model(model_id=LONG, version="1"), "id"),
        (Model(model_id="a/b", version=LONG), "version"),
    ],
    ids=["empty", "separators", "blank", "long id", "long version"],
)
def test_a_model_that_no_message_could_carry_is_a_problem_of_its_place(model: Model, word: str) -> None:
    good = Model(model_id="good", version="1")
    models, problems = tellable([model, good], "place")
    assert models == (good,)
    assert word in problems["place"]
    assert len(problems["place"]) < LONGEST


def test_remarks_that_are_too_long_are_left_out_and_the_model_stays() -> None:
    model = Model(
        model_id="m",
        version="1",
        src_lang=LONG,
        tgt_lang=LONG,
        dialect=LONG,
        revision=LONG,
        size_bytes=LARGEST_BYTES + 1,
    )
    assert tellable([model], "place") == ((Model(model_id="m", version="1"),), {})


def test_what_is_told_at_the_bounds_fits_the_message() -> None:
    edge = "x" * LONGEST
    model = Model(
        model_id=edge, version=edge, src_lang=edge, dialect=edge, revision=edge, size_bytes=LARGEST_BYTES
    )
    ((told,), _) = tellable([model], "place")
    assert told == model
    InstalledModel(
        model_id=told.model_id,
        version=told.version,
        src_lang=told.src_lang,
        dialect=told.dialect,
        revision=told.revision,
        size_bytes=told.size_bytes,
    )
