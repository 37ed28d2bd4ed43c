import pytest

from gpu_agent.cli.output.inventory import SHOWN_READY, model_table, size_in_words
from gpu_agent.cli.output.text import plain_text
from gpu_agent.wire.inventory import Model, ModelStatus

BROKEN = Model(
    model_id="a/llm", version="2", kind="llm", status=ModelStatus.ERROR, detail="a shard is missing"
)
MANY = tuple(Model(model_id=f"m/{number:03}", version="1", kind="asr") for number in range(40))


def drawn(*models: Model, columns: int | None = 80) -> list[str]:
    return [plain_text(one) for one in model_table(models, columns)]


def test_models_are_listed_by_kind_with_what_keeps_them_from_serving() -> None:
    said = drawn(
        Model(model_id="b/tts", version="1", kind="tts", size_bytes=967_000_000, source="huggingface"),
        BROKEN,
        Model(model_id="A/llm", version="3", kind="llm", enabled=False),
        columns=None,
    )
    assert [one.split()[:2] for one in said[1:]] == [["llm", "A/llm"], ["llm", "a/llm"], ["tts", "b/tts"]]
    assert said[1].endswith("ready disabled")
    assert said[2].endswith("error           a shard is missing")
    assert "967.0 MB  huggingface  ready" in said[3]


def test_no_models_is_shown() -> None:
    assert drawn() == ["No models: none found in the caches, none declared"]


def test_languages_stand_behind_a_translator() -> None:
    said = drawn(Model(model_id="opus-mt", version="1", kind="nmt", src_lang="zh", tgt_lang="en"))
    assert "opus-mt (zh to en)" in said[1]


def test_a_terminal_shows_so_many_ready_ones_of_a_kind_and_every_other() -> None:
    said = drawn(*MANY, BROKEN)
    assert len([one for one in said if one.startswith("asr")]) == SHOWN_READY
    assert any("a/llm" in one for one in said)
    assert said[-1] == "and ready besides: 28 asr; --json lists them all"


def test_a_pipe_gets_every_model_on_a_line_of_its_own() -> None:
    assert len(drawn(*MANY, BROKEN, columns=None)) == 1 + len(MANY) + 1


@pytest.mark.parametrize("columns", [24, 40, 60])
def test_a_narrow_terminal_still_gets_name_and_state(columns: int) -> None:
    said = drawn(BROKEN, columns=columns)
    assert max(map(len, said)) <= columns
    assert "error" in said[1]


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (15_300_000_000, "15.3 GB"), (10**18, "1000000.0 TB")],
)
def test_sizes_have_units(count: int, words: str) -> None:
    assert size_in_words(count) == words
