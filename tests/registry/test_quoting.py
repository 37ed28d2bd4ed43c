from gpu_agent.registry.quoting import LONGEST_QUOTE, LONGEST_SENTENCE, quoted, sentence


def test_what_is_short_enough_is_quoted_as_it_is() -> None:
    assert quoted("x" * LONGEST_QUOTE) == "x" * LONGEST_QUOTE
    assert sentence("x" * LONGEST_SENTENCE) == "x" * LONGEST_SENTENCE
    assert quoted("") == ""


def test_what_is_longer_is_cut_and_shows_it() -> None:
    assert quoted("x" * 5000) == "x" * (LONGEST_QUOTE - 1) + "…"
    assert len(sentence("x" * 5000)) == LONGEST_SENTENCE
