import pytest

from gpu_agent.probe.models.declared import ModelDeclaration, apply_declarations, more_usable
from gpu_agent.wire.inventory import Model, ModelStatus

FOUND = Model(
    model_id="a/b",
    version="111",
    kind="llm",
    source="huggingface",
    revision="1111",
    size_bytes=7,
    format="gguf",
)
OTHER = Model(model_id="c/d", version="222", source="directory")


def test_what_is_not_declared_stays_as_it_was_found() -> None:
    assert apply_declarations([], [FOUND, OTHER]) == (FOUND, OTHER)


def test_a_declared_model_that_was_found_nowhere_is_as_declared() -> None:
    stated = ModelDeclaration(model_id="opus-mt-en-de", version="3", kind="nmt", enabled=False)
    assert apply_declarations([stated], [OTHER]) == (
        Model(
            model_id="opus-mt-en-de",
            version="3",
            kind="nmt",
            src_lang="en",
            tgt_lang="de",
            enabled=False,
            source="declared",
        ),
        OTHER,
    )
    assert apply_declarations([ModelDeclaration(model_id="x")], [])[0].version == "unversioned"


def test_a_declaration_without_a_version_overrides_each_found_one_field_by_field() -> None:
    newer = Model(model_id="a/b", version="112", kind="other", status=ModelStatus.ERROR, detail="broken")
    one, two = apply_declarations(
        [ModelDeclaration(model_id="a/b", kind="asr", dialect="bavarian")], [FOUND, newer]
    )
    assert (one.version, one.kind, one.dialect, one.size_bytes) == ("111", "asr", "bavarian", 7)
    assert (two.version, two.kind, two.status, two.detail) == ("112", "asr", ModelStatus.ERROR, "broken")


@pytest.mark.parametrize("version", ["111", "1111"])
def test_a_declaration_with_a_version_hides_the_found_ones_after_borrowing(version: str) -> None:
    newer = Model(model_id="a/b", version="112", size_bytes=9)
    (model,) = apply_declarations([ModelDeclaration(model_id="a/b", version=version)], [newer, FOUND])
    assert (model.version, model.size_bytes, model.format, model.source) == (version, 7, "gguf", "declared")


def test_a_version_that_only_the_owner_knows_borrows_from_the_one_that_can_serve() -> None:
    broken = Model(model_id="a/b", version="112", status=ModelStatus.ERROR, detail="broken")
    (model,) = apply_declarations([ModelDeclaration(model_id="a/b", version="release-3")], [broken, FOUND])
    assert (model.version, model.status, model.size_bytes) == ("release-3", ModelStatus.READY, 7)


def test_a_hidden_id_is_off_the_list() -> None:
    assert apply_declarations([ModelDeclaration(model_id="a/b", hidden=True)], [FOUND, OTHER]) == (OTHER,)


def test_a_stated_status_wins_and_takes_the_found_reason_with_it() -> None:
    broken = Model(model_id="a/b", version="1", status=ModelStatus.ERROR, detail="broken")
    (model,) = apply_declarations([ModelDeclaration(model_id="a/b", status=ModelStatus.READY)], [broken])
    assert (model.status, model.detail) == (ModelStatus.READY, None)


def test_of_two_findings_the_one_that_can_serve_is_better_and_the_first_of_equals() -> None:
    broken = Model(model_id="a/b", version="111", status=ModelStatus.ERROR)
    again = Model(model_id="a/b", version="111", source="directory")
    assert more_usable(broken, FOUND) is FOUND
    assert more_usable(FOUND, broken) is FOUND
    assert more_usable(FOUND, again) is FOUND
