"""GPUs that are cut into MIG slices, from the driver's mouth to the claim of a job."""

from pathlib import Path

import httpx
import pytest

from tests.nvml_fake.control import FakeNvml
from tests.programs import Agent, Registry

pytestmark = pytest.mark.e2e


def test_jobs_run_on_mig_devices_and_never_on_their_parent_or_an_unpartitioned_gpu(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.enable_mig(0, 1, 4)
    fake.enable_mig(1)
    slices = {fake.fact("uuid", "0/1"), fake.fact("uuid", "0/4")}
    with (
        Registry("--max-cpu-percent", "100", "--max-memory-percent", "100") as registry,
        Agent(registry.node_url, tmp_path / "state", simulate=None, environment=fake.environment()),
    ):
        (node,) = registry.await_ready(1, within_seconds=20)
        gpus = {gpu["uuid"]: gpu for gpu in registry.get(f"/v1/nodes/{node['node_id']}")["gpus"]}
        assert {uuid for uuid, gpu in gpus.items() if gpu["usable"]} == slices
        assert {gpus[uuid]["parent_uuid"] for uuid in slices} == {fake.fact("uuid", 0)}
        assert gpus[fake.fact("uuid", 1)]["reasons"] == ["mig_without_slices"]
        claim = httpx.post(f"{registry.api}/v1/claims", json={"job_id": "two", "gpu_count": 2}).json()
    assert set(claim.get("gpu_uuids", ())) == slices, claim
