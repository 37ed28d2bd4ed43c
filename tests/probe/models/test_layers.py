import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.models.layers import is_layered

LISTED = """\
24 30 0:22 / /proc rw,nosuid - proc proc rw
30 1 0:45 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a:/b,upperdir=/c
31 30 254:1 / /srv/the\\040disk rw,relatime - ext4 /dev/vda1 rw
half a line
"""

OVERLAID = """\
import subprocess, sys
from pathlib import Path
from gpu_agent.probe.models.tree import Tree, open_root
base = Path(sys.argv[1])
def mount(*words):
    subprocess.run(["mount", *words], check=True)
mount("-t", "tmpfs", "none", str(base))
for name in ("lower", "upper", "seen"):
    (base / name).mkdir()
for name in ("lower", "upper"):
    mount("-t", "tmpfs", "none", str(base / name))
(base / "lower" / "from-image").write_text("1")
(base / "upper" / "own").mkdir()
(base / "upper" / "work").mkdir()
layers = f"lowerdir={base}/lower,upperdir={base}/upper/own,workdir={base}/upper/work,xino=off"
mount("-t", "overlay", "none", "-o", layers, str(base / "seen"))
(base / "seen" / "written").write_text("2")
(base / "seen" / "mounted").mkdir()
mount("-t", "tmpfs", "none", str(base / "seen" / "mounted"))
tree = Tree(open_root(base / "seen"))
for name in ("from-image", "written"):
    found = tree.file(str(base / "seen" / name), name)
    print(name, found.problem, tree.head(found.path, 9).decode())
try:
    tree.folder(str(base / "seen" / "mounted"))
except OSError as error:
    print("mounted", error)
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(LISTED)
    return path


def test_an_overlay_is_layered_and_nothing_else(mounts: Path) -> None:
    assert is_layered(os.makedev(0, 45), mounts)
    assert not is_layered(os.makedev(254, 1), mounts)
    assert not is_layered(os.makedev(9, 9), mounts)


def test_where_no_mounts_are_listed_nothing_is_layered(tmp_path: Path) -> None:
    assert not is_layered(os.makedev(0, 45), tmp_path / "nothing")


def test_files_of_all_layers_are_read_and_what_is_mounted_between_them_is_not(tmp_path: Path) -> None:
    if os.name != "posix" or os.geteuid() != 0 or not Path("/proc/filesystems").exists():
        pytest.skip("only root on Linux can lay file systems over each other")
    apart = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True, timeout=30).returncode != 0:
        pytest.skip("mounts of its own are not allowed to this process")
    words = [*apart, sys.executable, "-c", OVERLAID, str(tmp_path)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    if "unknown filesystem type" in done.stderr:
        pytest.skip("this kernel has no overlay file system")
    assert done.stdout.splitlines() == [
        "from-image None 1",
        "written None 2",
        "mounted it is on another file system; add that as a root of its own",
    ], done.stderr
