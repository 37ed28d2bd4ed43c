"""The table of docs/reference/metrics.md, generated from the registry's own table of metrics.

python -m tools.metrics_docs            write it
"""

import re
import sys
from pathlib import Path

from gpu_agent.server.metrics import INSTANCE_METRICS, METRICS
from tools.page_links import linked

DOCUMENT = Path(__file__).parent.parent / "docs" / "reference" / "metrics.md"
_MARK = re.compile(r"(<!-- generated: metrics -->\n).*?(<!-- end generated -->)", re.DOTALL)


def metrics_table() -> str:
    """Write one row for each metric."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for metric in (*METRICS, *INSTANCE_METRICS):
        labels = "".join(f"`{label}`, " for label in metric.labels).removesuffix(", ")
        lines.append(f"| `{metric.full_name}` | {metric.kind} | {labels} | {metric.meaning} |")
    return linked("\n".join(lines) + "\n")


def generated(document: str) -> str:
    """Return the document with its table written from the code."""
    return _MARK.sub(lambda found: f"{found[1]}{metrics_table()}{found[2]}", document)


def main() -> int:
    """Write the document."""
    DOCUMENT.write_text(generated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
