import subprocess
import sys

import pytest

PROGRAM = """
from pathlib import Path
from gpu_agent.probe.memory import return_free_memory

def resident_kib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

blocks = [bytearray(4000) for _ in range(4000)]
last = bytearray(4000)
del blocks
before = resident_kib()
return_free_memory()
print(before - resident_kib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is GNU's on Linux")
def test_memory_below_what_is_still_used_goes_back_to_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 8000
