"""CUDA_VISIBLE_DEVICES, as CUDA reads it, reported beside each GPU."""

from pathlib import Path

import pytest

from gpu_agent.probe.nvml.cuda_visible import mark
from gpu_agent.probe.nvml.errors import Values
from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml


def gpu(uuid: str, name: str = "H100", **more: object) -> Values:
    return {"uuid": uuid, "name": name, "memory_mb": 81_559, "unknowns": {}, **more}


def machine() -> list[Values]:
    """Four GPUs; the second has two MIG devices."""
    return [
        gpu("GPU-aa01"),
        gpu("GPU-ab02"),
        gpu("MIG-01", parent_uuid="GPU-ab02", gpu_instance=7, compute_instance=0),
        gpu("MIG-02", parent_uuid="GPU-ab02", gpu_instance=8, compute_instance=0),
        gpu("GPU-b003"),
        gpu("GPU-b004"),
    ]


def shown(listed: str, gpus: list[Values] | None = None, **environ: str) -> list[object]:
    gpus = machine() if gpus is None else gpus
    mark(gpus, {"CUDA_VISIBLE_DEVICES": listed, **environ})
    return [one["uuid"] for one in gpus if one.get("visible")]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("0,2", ["GPU-aa01", "GPU-b003"]),
        (" 3 , 0 ", ["GPU-aa01", "GPU-b004"]),
        ("1", ["GPU-ab02", "MIG-01"]),
        ("GPU-aa", ["GPU-aa01"]),
        ("GPU-b004,GPU-aa01", ["GPU-aa01", "GPU-b004"]),
        ("00000002", ["GPU-b003"]),
        ("+2,3x", ["GPU-b003", "GPU-b004"]),
        ("MIG-02", ["MIG-02"]),
        ("MIG-GPU-ab02/8/0", ["MIG-02"]),
    ],
)
def test_indices_uuids_their_prefixes_and_mig_ids_are_understood(listed: str, expected: list[str]) -> None:
    assert shown(listed) == expected


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,2", ["GPU-aa01"]),
        ("0,9,2", ["GPU-aa01"]),
        ("0,GPU-b003", ["GPU-aa01"]),
        ("GPU-aa01,0", ["GPU-aa01"]),
        ("GPU-b", []),
        ("GPU-aa01,GPU-zz,GPU-b003", ["GPU-aa01"]),
        ("99999999999999999999", []),
        ("0,0", []),
        ("GPU-aa01,GPU-aa", []),
    ],
)
def test_what_names_nothing_ends_the_list_and_what_is_named_twice_empties_it(
    listed: str, expected: list[str]
) -> None:
    assert shown(listed) == expected


def test_without_the_variable_visible_is_absent() -> None:
    gpus = machine()
    mark(gpus, {})
    assert all("visible" not in one for one in gpus)


def test_indices_among_unlike_gpus_are_unknown_unless_cuda_counts_by_bus_id() -> None:
    unlike = [gpu("GPU-1", "RTX 4090"), gpu("GPU-2", "GT 1030")]
    assert shown("1", unlike) == []
    assert all("visible" not in one and "CUDA_DEVICE_ORDER" in str(one["unknowns"]) for one in unlike)
    assert shown("1", unlike, CUDA_DEVICE_ORDER="PCI_BUS_ID") == ["GPU-2"]
    assert shown("GPU-1", unlike) == ["GPU-1"]


def test_the_child_reports_what_its_own_environment_shows(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of({**fake.environment(), "CUDA_VISIBLE_DEVICES": "2,0"}) as child:
        gpus = child.read()["gpus"]
    assert [one["visible"] for one in gpus] == [True, False, True]
    assert [one["uuid"] for one in gpus] == [fake.fact("uuid", index) for index in range(3)]
