"""`docs/howto/embedding.md` names what `gpu_agent.server` offers, and its code is what one may write."""

import ast
import re
from pathlib import Path

from gpu_agent import server

PAGE = (Path(__file__).parent.parent / "docs" / "howto" / "embedding.md").read_text(encoding="utf-8")


def test_every_public_name_is_explained_and_no_other() -> None:
    section = PAGE.split("\n## What stays\n", 1)[1].split("\n## ", 1)[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == sorted(server.__all__)


def test_the_methods_that_the_page_names_exist() -> None:
    promises = PAGE.split("\n## What it promises\n", 1)[1]
    named = set(re.findall(r"`(\w+)\(\)`", promises)) | set(re.findall(r"registry\.(\w+)\(", PAGE))
    assert named
    assert [name for name in named if not hasattr(server.RegistryService, name)] == []


def test_the_code_on_the_page_can_be_compiled() -> None:
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        compile(code, "embedding.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
