"""Trees of sysfs as the amdgpu driver writes them, after the kernel's documentation, made for one test."""

from collections.abc import Mapping
from pathlib import Path

GIB = 1 << 30

RX_7900: Mapping[str, str] = {
    "vendor": "0x1002",
    "device": "0x744c",
    "revision": "0xc8",
    "class": "0x030000",
    "unique_id": "d0e5f1a2b3c4d5e6",
    "mem_info_vram_total": str(24 * GIB),
    "mem_info_vram_used": str(3 * GIB),
    "mem_info_gtt_total": str(32 * GIB),
    "mem_info_gtt_used": str(GIB),
    "pcie_replay_count": "5",
    "gpu_busy_percent": "37",
    "mem_busy_percent": "9",
    "power/runtime_status": "active",
    "hwmon/hwmon4/temp1_input": "54000",
    "hwmon/hwmon4/power1_average": "187000000",
    "hwmon/hwmon4/power1_cap": "303000000",
    "hwmon/hwmon4/freq1_input": "2371000000",
    "hwmon/hwmon4/freq2_input": "1249000000",
}
"""A card for a desktop: no RAS, the mean power."""

MI300X: Mapping[str, str] = {
    "vendor": "0x1002",
    "device": "0x74a1",
    "revision": "0x00",
    "class": "0x120000",
    "unique_id": "8a1b2c3d4e5f6071",
    "product_name": "AMD Instinct MI300X OAM",
    "mem_info_vram_total": str(192 * GIB),
    "mem_info_vram_used": str(64 * GIB),
    "mem_info_gtt_total": str(512 * GIB),
    "mem_info_gtt_used": "0",
    "pcie_replay_count": "0",
    "gpu_busy_percent": "98",
    "mem_busy_percent": "61",
    "power/runtime_status": "unsupported",
    "hwmon/hwmon9/temp2_label": "junction",
    "hwmon/hwmon9/temp2_input": "61000",
    "hwmon/hwmon9/temp3_label": "mem",
    "hwmon/hwmon9/temp3_input": "48000",
    "hwmon/hwmon9/power1_input": "642000000",
    "hwmon/hwmon9/power1_cap": "750000000",
    "hwmon/hwmon9/freq1_input": "2100000000",
    "hwmon/hwmon9/freq2_input": "1300000000",
    "ras/umc_err_count": "ue: 0\nce: 4\nde: 0",
    "ras/gfx_err_count": "ue: 0\nce: 0",
    "ras/gpu_vram_bad_pages": "0x00000001 : 0x00001000 : R",
}
"""A card for a data centre: with a product name, RAS counters, the power of the moment."""

STRIX_HALO: Mapping[str, str] = {
    "vendor": "0x1002",
    "device": "0x1586",
    "revision": "0xc1",
    "class": "0x038000",
    "mem_info_vram_total": str(GIB // 2),
    "mem_info_vram_used": str(GIB // 4),
    "mem_info_gtt_total": str(96 * GIB),
    "mem_info_gtt_used": str(2 * GIB),
    "gpu_busy_percent": "5",
    "power/runtime_status": "active",
    "hwmon/hwmon2/temp1_input": "48000",
    "hwmon/hwmon2/power1_input": "9123000",
}
"""Graphics of a processor: little memory of its own, no id, no limit."""


class Sysfs:
    """A folder that stands for /sys."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        (folder / "class" / "drm").mkdir(parents=True)
        (folder / "bus" / "pci" / "devices").mkdir(parents=True)
        (folder / "class" / "kfd" / "kfd" / "proc").mkdir(parents=True)

    def node(self, address: str, files: Mapping[str, str]) -> None:
        """Let the compute driver give work to the card at this address."""
        nodes = self.path / "class" / "kfd" / "kfd" / "topology" / "nodes"
        bus, slot = (int(each, 16) for each in address.partition(":")[2].removesuffix(".0").split(":"))
        folder = nodes / str(len(list(nodes.iterdir())) if nodes.is_dir() else 0)
        folder.mkdir(parents=True)
        (folder / "gpu_id").write_text(f"{51545 + bus}\n", encoding="utf-8")
        unique = int(files.get("unique_id", "0"), 16)
        facts = {
            "simd_count": 96,
            "vendor_id": 4098,
            "location_id": bus << 8 | slot << 3,
            "unique_id": unique,
        }
        text = "".join(f"{name} {value}\n" for name, value in facts.items())
        (folder / "properties").write_text(text, encoding="utf-8")

    def card(
        self,
        number: int,
        address: str,
        files: Mapping[str, str],
        *,
        driver: str | None = "amdgpu",
        bridge: str = "",
    ) -> Path:
        """Put a card there, its connectors too; its folder, as the driver would have it."""
        self.node(address, files)
        device = self.path / "devices" / "pci0000:00" / bridge / address
        for name, text in files.items():
            path = device / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n", encoding="utf-8")
        (device / "config").write_bytes(b"\x02\x10\x4c\x74")
        if driver is not None:
            module = self.path / "bus" / "pci" / "drivers" / driver
            module.mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(module)
            card = self.path / "class" / "drm" / f"card{number}"
            card.mkdir()
            (card / "device").symlink_to(device)
            connector = self.path / "class" / "drm" / f"card{number}-DP-1"
            connector.mkdir()
            (connector / "device").symlink_to(card)
        (self.path / "bus" / "pci" / "devices" / address).symlink_to(device)
        return device
