import os
import subprocess
import sys

import psutil

from tests.children import called


def test_a_child_that_has_ended_since_it_was_listed_is_passed_over() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    listed = psutil.Process(child.pid)
    child.communicate(b"\n")
    oneself = psutil.Process(os.getpid())
    assert called(oneself.name(), [listed, oneself]) == oneself
    assert called("absent", [listed, oneself]) is None
