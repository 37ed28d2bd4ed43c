from dataclasses import replace

from gpu_agent.cli.output.inventory import host_facts
from gpu_agent.cli.output.text import plain_text
from gpu_agent.wire.inventory import CacheDisk, GpuReport, Host, Inventory, Outcome
from tests.cli.hosts import HOST


def facts(host: Host) -> dict[str, str]:
    inventory = Inventory(
        host=host,
        gpu=GpuReport(outcome=Outcome.NO_DRIVER),
        features_supported={"emotion_detection": True, "persona_adaptation": False},
        advanced_features=("kv_cache",),
    )
    return {name: plain_text(words) for name, words in host_facts(inventory)}


def test_what_a_control_group_leaves_is_reported_beside_what_the_machine_has() -> None:
    found = facts(
        replace(HOST, machine_logical_cores=16, machine_memory_total_mb=65536, memory_available_mb=6144)
    )
    assert found["cores"] == "4 of the machine's 16"
    assert found["memory"] == "8 GiB of the machine's 64 GiB, 6 GiB available"


def test_a_machine_that_is_ours_whole_is_reported_once() -> None:
    found = facts(replace(HOST, machine_logical_cores=4, machine_memory_total_mb=8192, load_1m=0.52))
    assert found["cores"] == "4, 2 of them physical, load 0.5"
    assert found["memory"] == "8 GiB"


def test_a_memory_that_is_not_known_is_said_to_be_unknown() -> None:
    assert facts(replace(HOST, memory_total_mb=None))["memory"] == "unknown"


def test_what_is_not_known_is_left_out() -> None:
    assert set(facts(HOST)) == {"cores", "memory", "features"}


def test_the_system_is_named_with_what_it_runs_under() -> None:
    host = replace(HOST, os="Debian GNU/Linux 13", kernel="6.12.1", virtualization="kvm")
    assert facts(host)["system"] == "Debian GNU/Linux 13, kernel 6.12.1, under kvm"
    assert facts(replace(host, virtualization="none"))["system"] == "Debian GNU/Linux 13, kernel 6.12.1"


def test_the_room_beside_a_cache_and_the_features_are_reported() -> None:
    disk = CacheDisk(path="/srv/models", free_bytes=412 << 30, total_bytes=900 << 30)
    found = facts(replace(HOST, cache_disks=(disk,)))
    assert found["disk"] == "412 of 900 GiB free at /srv/models"
    assert found["features"] == "emotion_detection, kv_cache"
