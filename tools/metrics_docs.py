"""The tables of docs/reference/metrics.md, generated from the tables of metrics in the code.

python -m tools.metrics_docs            write it
"""

import re
import sys
from pathlib import Path

from gpu_agent.node import metrics as node_metrics
from gpu_agent.server.metrics import INSTANCE_METRICS, METRICS
from tools.page_links import linked

DOCUMENT = Path(__file__).parent.parent / "docs" / "reference" / "metrics.md"
_MARK = re.compile(r"(<!-- generated: metrics of the (\w+) -->\n).*?(<!-- end generated -->)", re.DOTALL)
_TABLES: dict[str, list[tuple[str, str, tuple[str, ...], str]]] = {
    "registry": [(one.full_name, one.kind, one.labels, one.meaning) for one in (*METRICS, *INSTANCE_METRICS)],
    "agent": [(one.name, one.kind, one.labels, one.meaning) for one in node_metrics.METRICS],
}


def metrics_table(component: str) -> str:
    """Write one row for each metric."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for name, kind, labels, meaning in _TABLES[component]:
        of_gpu = labels[: len(node_metrics.GPU_LABELS)] == node_metrics.GPU_LABELS
        shown = ("GPU's", *labels[len(node_metrics.GPU_LABELS) :]) if of_gpu else labels
        listed = ", ".join(label if label == "GPU's" else f"`{label}`" for label in shown)
        lines.append(f"| `{name}` | {kind} | {listed} | {meaning} |")
    return linked("\n".join(lines) + "\n")


def generated(document: str) -> str:
    """Return the document with its tables written from the code."""
    return _MARK.sub(lambda found: f"{found[1]}{metrics_table(found[2])}{found[3]}", document)


def main() -> int:
    """Write the document."""
    DOCUMENT.write_text(generated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
