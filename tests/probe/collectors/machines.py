"""Machines as their drivers describe them in sysfs, one text file each: unpacked into a folder for a test.

A line `@ FOLDER` says where the lines after it are; `NAME = CONTENT` is a file, in which `\\n` begins a line;
`NAME -> TARGET` is a link, its target counted from the root of sysfs; `#` begins a comment.
"""

import os
from pathlib import Path

MACHINES = Path(__file__).parent / "machines"
NAMES = tuple(sorted(path.stem for path in MACHINES.glob("*.txt")))


def unpack(name: str, root: Path) -> Path:
    """Make the machine's sysfs in `root`."""
    folder = root
    for line in (MACHINES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("@ "):
            folder = root / line.removeprefix("@ ")
        elif " -> " in line:
            link, target = line.split(" -> ")
            (folder / link).parent.mkdir(parents=True, exist_ok=True)
            (root / target).mkdir(parents=True, exist_ok=True)
            (folder / link).symlink_to(os.path.relpath(root / target, (folder / link).parent))
        elif line and not line.startswith("#"):
            file, _, content = line.partition(" = ")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(content.replace("\\n", "\n") + "\n", encoding="utf-8")
    return root
