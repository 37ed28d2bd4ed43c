from pathlib import Path

from gpu_agent.probe.models.names import below, readable


def test_a_path_is_put_together_from_names() -> None:
    assert below("/a", "b", "c") == str(Path("/a", "b", "c"))


def test_what_is_no_printable_text_becomes_a_mark() -> None:
    assert readable("a\n\udcffé") == "a\ufffd\ufffdé"
