from pathlib import Path

import pytest

from gpu_agent.probe.nvml.answers import TOO_SLOW
from gpu_agent.probe.nvml.readings import PATIENCE_SECONDS
from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml
from tests.probe.heard_events import listened


@pytest.mark.parametrize("number", [119, 120])
def test_a_gpu_whose_own_processor_failed_is_not_asked_again_as_that_would_hang(
    tmp_path: Path, number: int
) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        before = listened(child)
        fake.happen(("xid", 1, number))
        fake.set("hang", "nvmlDeviceGetTemperature", 1)
        first, second = listened(child), listened(child)
        fake.unset("hang")
    assert first[1]["reasons"] == [{"code": "gpu_silent", "detail": f"xid_{number}"}]
    assert first[1]["uuid"] == before[1]["uuid"]
    assert (first[1]["events"], second[1]["reasons"]) == ({f"xid_{number}": 1}, first[1]["reasons"])
    assert [gpu["temperature_c"] for gpu in (first[0], first[2], second[0], second[2])] == [40, 42, 40, 42]


def test_a_silent_gpu_is_not_asked_again_though_the_list_changes_or_the_library_is_opened_anew(
    tmp_path: Path,
) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        listened(child)
        fake.happen(("xid", 1, 119))
        silent = listened(child)[1]
        calls_before = len(fake.calls())
        fake.set("count", 2)
        shorter = listened(child)[1]
        fake.set("count", 3)
        longer = listened(child)[1]
        anew = listened(child, fresh=True)[1]
    assert silent.pop("events") == {"xid_119": 1}
    for later in (shorter, longer, anew):
        assert {name: later[name] for name in ("uuid", "name", "reasons")} == {
            name: silent[name] for name in ("uuid", "name", "reasons")
        }
    assert not [call for call in fake.calls()[calls_before:] if call.endswith(" 1") and "Wait" not in call]


def test_a_gpu_that_falls_silent_while_the_library_is_opened_anew_is_not_asked(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        listened(child)
        fake.happen(("xid", 1, 120))
        fake.set("hang", "nvmlDeviceGetHandleByIndex_v2", 1)
        assert listened(child, fresh=True)[1]["reasons"] == [{"code": "gpu_silent", "detail": "xid_120"}]


def test_another_child_that_is_told_of_a_silent_gpu_asks_it_nothing_wherever_it_is_now(
    tmp_path: Path,
) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    (tmp_path / "proc/driver/nvidia/gpus/0000:1a:00.0").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/gpus/0000:1b:00.0").mkdir()
    fake.set("hang", "*", 0)
    who = {"uuid": "GPU-a", "pci_bus_id": "00000000:1A:00.0", "index": 1, "why": "xid_119"}
    with child_of(fake.environment(), root=tmp_path) as child:
        silent, other = listened(child, silent={"GPU-a": who})
    assert (silent["uuid"], silent["index"]) == ("GPU-a", 0)
    assert silent["reasons"] == [{"code": "gpu_silent", "detail": "xid_119"}]
    assert (other["reasons"], other["temperature_c"]) == ([], 41)


def test_a_gpu_whose_processor_fails_under_a_question_holds_the_others_up_for_that_question_only(
    tmp_path: Path,
) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        listened(child)
        for call in ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature", "nvmlDeviceGetPowerUsage"):
            fake.set("delay", call, 1, round(1000 * PATIENCE_SECONDS) + 100)
        slow = child.read(listen=True)
        fake.happen(("xid", 1, 119))
        after = child.read(listen=True)
    assert slow["took_ms"] < 1000 * (PATIENCE_SECONDS + 1)
    assert slow["gpus"][1]["utilization_percent"] == 10
    assert slow["gpus"][1]["unknowns"]["temperature_c"] == TOO_SLOW
    assert [slow["gpus"][index]["temperature_c"] for index in (0, 2)] == [40, 42]
    assert after["took_ms"] < 1000
    assert [gpu["reasons"] != [] for gpu in after["gpus"]] == [False, True, False]


def test_a_gpu_that_is_slow_over_every_answer_holds_the_others_up_no_longer(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        listened(child)
        fake.set("delay", "*", 1, round(250 * PATIENCE_SECONDS))
        slow = child.read(listen=True)
    assert slow["took_ms"] < 1000 * (PATIENCE_SECONDS + 2)
    assert slow["gpus"][1]["memory_mb"] is not None
    assert slow["gpus"][1]["unknowns"]["throttle_reasons"] == TOO_SLOW
    assert [gpu["clock_sm_mhz"] for gpu in (slow["gpus"][0], slow["gpus"][2])] == [1980, 1978]
