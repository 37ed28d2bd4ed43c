"""Indented JSON is, byte for byte, what the standard library writes."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.cli.output.json_text import json_text

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
DOCUMENTS = st.recursive(
    SCALARS, lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts), max_leaves=20
)


@given(DOCUMENTS)
def test_a_document_is_written_as_the_standard_library_does(document: object) -> None:
    assert json_text(document) == json.dumps(document, indent=2)


def test_a_number_that_is_none_is_written_as_by_the_standard_library_too() -> None:
    assert json_text([math.inf]) == json.dumps([math.inf], indent=2)


def test_what_json_does_not_know_is_an_error() -> None:
    with pytest.raises(TypeError):
        json_text([object()])
