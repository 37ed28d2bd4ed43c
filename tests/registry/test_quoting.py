from gpu_agent.registry.quoting import LONGEST_QUOTE, LONGEST_SENTENCE, clip_quote, clip_sentence


def test_what_is_short_enough_is_quoted_as_it_is() -> None:
    assert clip_quote("x" * LONGEST_QUOTE) == "x" * LONGEST_QUOTE
    assert clip_sentence("x" * LONGEST_SENTENCE) == "x" * LONGEST_SENTENCE
    assert clip_quote("") == ""


def test_what_is_longer_is_cut_and_shows_it() -> None:
    assert clip_quote("x" * 5000) == "x" * (LONGEST_QUOTE - 1) + "…"
    assert len(clip_sentence("x" * 5000)) == LONGEST_SENTENCE
