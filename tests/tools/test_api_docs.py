import json

from tools.api_docs import DOCUMENT, MARK, OPENAPI, generated

SMALL = {
    "Job": {
        "description": "A job.",
        "required": ["job_id"],
        "properties": {
            "job_id": {"type": "string", "description": "Its id."},
            "nodes": {
                "type": "integer",
                "minimum": 1,
                "maximum": 256,
                "default": 1,
                "description": "How many.",
            },
            "claim": {"anyOf": [{"$ref": "#/components/schemas/Claim"}, {"type": "null"}]},
        },
    },
}


def test_the_page_says_what_the_models_say() -> None:
    said = DOCUMENT.read_text(encoding="utf-8")
    assert said == generated(said, json.loads(OPENAPI.read_text(encoding="utf-8"))), "run `make schema`"


def test_a_field_stands_with_its_type_its_bounds_and_its_meaning() -> None:
    written = generated(f"# Mine\n\n{MARK}", {"components": {"schemas": SMALL}}, first=())
    assert written.startswith("# Mine\n")
    assert "| `job_id` | string | Its id. |" in written
    assert "| `nodes` | integer, 1 to 256; default `1` | How many. |" in written
    assert "| `claim` | [Claim](#claim) or null |  |" in written


def test_every_field_of_a_job_a_claim_and_a_gpu_is_explained() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    for name in ("JobRequest", "ClaimView", "ClaimNode", "GpuView"):
        rows = [
            row
            for row in page.split(f"## {name}\n")[1].split("\n## ")[0].splitlines()
            if row.startswith("| `")
        ]
        assert rows
        assert [row for row in rows if row.endswith("|  |")] == []
