import pytest

from gpu_agent.store import texts


@pytest.mark.parametrize("text", ["[1]", "1", "{"])
def test_what_is_no_json_object_is_not_read(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json says it in its own words
        texts.read(text)
