import subprocess
import sys

import pytest


@pytest.mark.parametrize("heavy", ["pydantic", "rich", "asyncio", "websockets", "platformdirs", "tempfile"])
def test_the_json_form_loads_nothing_heavy(heavy: str) -> None:
    program = (
        "import sys; from gpu_agent.cli.app import main; "
        "main(['probe', '--json', '--simulate', '8xH100-80GB']); "
        f"sys.exit({heavy!r} in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 0, f"{heavy} is loaded: {done.stderr}"
