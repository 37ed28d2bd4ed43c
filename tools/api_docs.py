"""Every field of the documents of the operators' API: `make schema` writes docs/reference/documents.md.

What is there comes from the OpenAPI document, and so from the models: name, type with its bounds, meaning
with its unit. Text above the mark is written by hand.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.page_links import DOCS, linked

DOCUMENT = DOCS / "reference" / "documents.md"
OPENAPI = DOCS / "reference" / "schema" / "openapi.json"
MARK = "<!-- From here on: `make schema` writes what the models say. -->\n"
FIRST = (
    "JobRequest",
    "ClaimView",
    "ClaimNode",
    "ClaimDetail",
    "RenewRequest",
    "NodeSummary",
    "NodeDetail",
    "GpuView",
)
"""What a scheduler reads and writes stands before the rest."""
_Schema = Mapping[str, Any]
_UNBOUNDED = 1e9
"""A bound beyond this only keeps arithmetic finite; people do not see it."""


def generated(document: str, openapi: _Schema, first: Sequence[str] = FIRST) -> str:
    """Return the page with the fields of this OpenAPI document behind its mark."""
    return document.partition(MARK)[0] + MARK + "\n" + linked("\n\n".join(_sections(openapi, first)) + "\n")


def _sections(openapi: _Schema, first: Sequence[str]) -> Iterator[str]:
    schemas: Mapping[str, _Schema] = openapi["components"]["schemas"]
    for name in [*first, *sorted(schemas.keys() - set(first))]:
        schema = schemas[name]
        if "properties" not in schema:
            continue
        yield f"## {name}"
        yield schema["description"].replace("\n", " ").strip()
        required = schema.get("required", ())
        rows = [_row(key, one, is_required=key in required) for key, one in schema["properties"].items()]
        if rows:
            yield "\n".join(["| field | type | meaning |", "|---|---|---|", *rows])


def _row(name: str, schema: _Schema, *, is_required: bool) -> str:
    default = (
        "" if is_required or schema.get("default") is None else f"; default `{json.dumps(schema['default'])}`"
    )
    meaning = schema.get("description", "").replace("\n", " ")
    cells = (f"`{name}`", f"{_type(schema)}{default}", meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(schema: _Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema.get("anyOf") or schema["oneOf"]))
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema['items'])}"
        case "object" if isinstance(schema.get("additionalProperties"), Mapping):
            return f"object of {_type(schema['additionalProperties'])}"
        case kind:
            return f"{kind or 'anything'}{_bounds(schema)}"


def _bounds(schema: _Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        return ""
    return f", at least {low:g}" if high is None or high > _UNBOUNDED else f", {low:g} to {high:.12g}"


def main() -> int:
    """Write the page."""
    openapi = json.loads(OPENAPI.read_text(encoding="utf-8"))
    DOCUMENT.write_text(generated(DOCUMENT.read_text(encoding="utf-8"), openapi), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
