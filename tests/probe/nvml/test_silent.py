"""The places of GPUs that must not be asked, in a tree like the kernel's."""

from pathlib import Path

from gpu_agent.probe.nvml.silent import places

SILENT: dict[str, dict[str, object]] = {
    "GPU-b": {"uuid": "GPU-b", "index": 1, "pci_bus_id": "00000000:1B:00.0", "why": "xid_119"}
}
WHO = SILENT["GPU-b"]


def tree(root: Path, *addresses: str) -> str:
    for address in addresses:
        (root / "proc/driver/nvidia/gpus" / address).mkdir(parents=True)
    return str(root)


def test_where_none_is_silent_no_place_is_left_out(tmp_path: Path) -> None:
    assert places({}, 2, root=tree(tmp_path, "0000:1a:00.0", "0000:1b:00.0")) == {}


def test_a_silent_gpu_is_where_the_kernel_lists_it_though_another_is_gone(tmp_path: Path) -> None:
    assert places(SILENT, 2, root=tree(tmp_path, "0000:1b:00.0", "0000:1c:00.0")) == {0: WHO}


def test_addresses_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    root = tree(tmp_path, "10000:01:00.0", "0000:1b:00.0", "0000:0a:00.0", "no address")
    assert places(SILENT, 3, root=root) == {1: WHO}


def test_a_silent_gpu_that_the_kernel_no_longer_lists_hides_no_other(tmp_path: Path) -> None:
    assert places(SILENT, 2, root=tree(tmp_path, "0000:1a:00.0", "0000:1c:00.0")) == {}


def test_where_the_kernels_list_does_not_fit_the_gpu_is_where_it_was(tmp_path: Path) -> None:
    assert places(SILENT, 2, root=str(tmp_path)) == {1: WHO}
    assert places(SILENT, 3, root=tree(tmp_path, "0000:1b:00.0")) == {1: WHO}
    assert places(SILENT, 1, root=str(tmp_path / "none")) == {}


def test_a_gpu_whose_address_was_never_told_is_where_it_was(tmp_path: Path) -> None:
    silent: dict[str, dict[str, object]] = {"unidentified-0": {"index": 0, "why": "xid_120"}}
    assert places(silent, 1, root=tree(tmp_path, "0000:1b:00.0")) == {0: {"index": 0, "why": "xid_120"}}
