"""Long lists, read page by page and put together again as if they had come at once."""

import urllib.parse
from collections.abc import Sequence
from typing import Any

from gpu_agent.cli.answers import Shape
from gpu_agent.cli.asking.api import Api

Query = Sequence[tuple[str, str]]


def listed(api: Api, path: str, shape: Shape, *, key: str, query: Query = ()) -> dict[str, Any]:
    """Read a list whole; raises `Failure` as `Api.get` does.

    The answer is the first page's with all pages' members under `key`; a page that is not the last
    names in `next` what the following one comes `after`.
    """
    whole = api.get(_asking(path, query), shape)
    following = whole.get("next")
    while following:
        page = api.get(_asking(path, [*query, ("after", str(following))]), shape)
        whole[key] += page[key]
        following = page.get("next") if page[key] else None
    if "next" in whole:
        whole["next"] = None
    if "count" in whole:
        whole["count"] = len(whole[key])
    return whole


def _asking(path: str, query: Query) -> str:
    return f"{path}?{urllib.parse.urlencode(query)}" if query else path
