"""Collectors that a package brings: real distributions in a folder, found as installed ones are."""

from pathlib import Path

GOOD = """
from pathlib import Path
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

class Made:
    interface = 1
    def __init__(self, surroundings):
        self.surroundings = surroundings
    def read(self, deadline_seconds):
        gpu = Gpu(uuid="INTEL-1", name="Max 1550", index=0, vendor="intel", memory_mb=65536)
        return GpuReport(outcome=Outcome.OK, gpus=(gpu,))
"""


def bring(folder: Path, name: str, source: str, *, names: str = "Made") -> None:
    """Put a package there whose entry point `name` is what `names` is called in `source`."""
    module = f"collector_{name}"
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[gpu_agent.collectors]\n{name} = {module}:{names}\n")
