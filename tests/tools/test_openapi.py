import json
from pathlib import Path

from tools.openapi import described, main

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "schema" / "openapi.json"


def test_the_document_says_what_the_api_says_of_itself() -> None:
    """After a change of a route: `make schema`."""
    assert json.loads(DOCUMENT.read_text(encoding="utf-8")) == json.loads(described()), "run `make schema`"


def test_the_description_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    assert main([str(tmp_path / "api.json")]) == 0
    assert (tmp_path / "api.json").read_text(encoding="utf-8") == described()
