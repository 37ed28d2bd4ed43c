from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from gpu_agent.runtime.folders import Folder

PLACE: TypeAdapter[Path] = TypeAdapter(Folder)


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert PLACE.validate_python("~/models") == Path("/home/ada/models")


def test_a_home_that_is_not_here_is_refused_with_the_next_step() -> None:
    with pytest.raises(ValidationError, match="write the whole path"):
        PLACE.validate_python("~nobody-of-this-name/models")


@pytest.mark.parametrize("text", ["\0", "/models/\0", "~\0/models"])
def test_a_nul_is_refused_and_never_reaches_the_disk(text: str) -> None:
    with pytest.raises(ValidationError, match="no NUL character"):
        PLACE.validate_python(text)
