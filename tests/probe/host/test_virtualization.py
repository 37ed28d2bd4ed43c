from pathlib import Path

import pytest

from gpu_agent.probe.host.virtualization import detect

BARE = {"proc/cpuinfo": "processor : 0\nflags\t\t: fpu sse2\n"}
GUEST = {"proc/cpuinfo": "processor : 0\nflags\t\t: fpu hypervisor sse2\n"}


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (BARE, "none"),
        (GUEST, "vm-other"),
        ({}, None),
        ({"proc/cpuinfo": "CPU implementer : 0x41\n"}, None),
        ({**GUEST, "sys/class/dmi/id/sys_vendor": "QEMU\n"}, "qemu"),
        ({**GUEST, "sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}, "amazon"),
        ({**BARE, "sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}, "none"),
        ({"sys/class/dmi/id/product_name": "KVM Virtual Machine\n"}, "kvm"),
        ({"sys/hypervisor/type": "xen\n"}, "xen"),
        ({**GUEST, ".dockerenv": ""}, "docker"),
        ({**GUEST, "run/.containerenv": ""}, "podman"),
        ({**GUEST, "run/systemd/container": "systemd-nspawn\n"}, "systemd-nspawn"),
        ({**BARE, "run/host/container-manager": "lxc\n"}, "lxc"),
        (
            {**BARE, "proc/self/cgroup": "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-9.scope\n"},
            "kubernetes",
        ),
        ({**BARE, "proc/self/cgroup": "5:memory:/docker/0123abcd\n0::/\n"}, "docker"),
        ({**BARE, "proc/self/cgroup": "0::/system.slice/docker-0123abcd.scope\n"}, "docker"),
        ({**BARE, "proc/self/cgroup": "0::/machine.slice/libpod-9.scope/container\n"}, "podman"),
        ({**BARE, "proc/self/cgroup": "0::/lxc.payload.web/system.slice\n"}, "lxc"),
        ({**BARE, "proc/self/cgroup": "0::/system.slice/docker.service\n"}, "none"),
        ({**BARE, "proc/self/cgroup": "0::/system.slice/gpu-agent.service\n"}, "none"),
        (
            {**GUEST, ".dockerenv": "", "proc/sys/kernel/osrelease": "6.6.36.3-microsoft-standard-WSL2\n"},
            "docker",
        ),
        ({**GUEST, "proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard-WSL2\n"}, "wsl"),
    ],
)
def test_the_innermost_layer_is_named(tmp_path: Path, files: dict[str, str], hint: str | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert detect(tmp_path) == hint
