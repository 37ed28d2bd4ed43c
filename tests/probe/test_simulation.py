import re
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.products import SimulationError
from gpu_agent.probe.simulation import MAX_GPUS, Fault, ModelPlan, parse


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ("8xH100-80GB", ["H100-80GB"] * 8),
        ("4xA100-80GB,2xL4-24GB", ["A100-80GB"] * 4 + ["L4-24GB"] * 2),
        (" 1 X t4 , 1\u00d7V100-16gb ", ["T4-16GB", "V100-16GB"]),
        ("h200", ["H200-141GB"]),
        (f"{MAX_GPUS}xL4", ["L4-24GB"] * MAX_GPUS),
    ],
)
def test_a_machine_is_a_list_of_groups(spec: str, labels: list[str]) -> None:
    plans = parse(spec).gpus
    assert [plan.product.label for plan in plans] == labels
    assert all((plan.slices, plan.faults) == ((), ()) for plan in plans)
    assert parse(spec).models is None


@pytest.mark.parametrize(
    ("fault", "means"),
    [
        ("lost", Fault(name="lost")),
        ("LOST @ 60s", Fault(name="lost", begins=60)),
        ("degraded@1m-2m", Fault(name="degraded", begins=60, ends=120)),
        ("hot@0.5s-1h", Fault(name="hot", begins=0.5, ends=3600)),
        ("xid79@1d", Fault(name="xid79", begins=86400)),
        ("unknown@0s", Fault(name="unknown")),
    ],
)
def test_a_fault_befalls_every_gpu_of_its_group_from_one_moment_to_another(fault: str, means: Fault) -> None:
    plans = parse(f"2xL4:{fault},1xT4").gpus
    assert [plan.faults for plan in plans] == [(means,), (means,), ()]


def test_a_number_names_one_gpu_of_the_group_counted_from_one() -> None:
    plans = parse("3xA100-80GB:lost#2@60s:hot#1,2xL4:lost#1").gpus
    assert [[fault.name for fault in plan.faults] for plan in plans] == [["hot"], ["lost"], [], ["lost"], []]


def test_a_hang_is_the_whole_drivers() -> None:
    simulation = parse("2xL4:hang@60s-90s:hot")
    assert simulation.hangs == (Fault(name="hang", begins=60, ends=90),)
    assert [[fault.name for fault in plan.faults] for plan in simulation.gpus] == [["hot"], ["hot"]]


def test_slices_are_those_of_each_gpu_of_the_group() -> None:
    plans = parse("2xA100-80GB/7x1g.10gb,1xH100-80GB/3g.40gb+4g.40gb:lost").gpus
    assert [[each.name for each in plan.slices] for plan in plans] == [
        ["1g.10gb"] * 7,
        ["1g.10gb"] * 7,
        ["3g.40gb", "4g.40gb"],
    ]


def test_models_are_stated_with_their_kinds_and_what_befalls_them() -> None:
    simulation = parse("L4 ; models: whisper=asr, org/opus-mt-zh-en = nmt:error@60s-90s, llama3:8b=llm:gone")
    assert simulation.models == (
        ModelPlan(model_id="whisper", kind="asr"),
        ModelPlan(
            model_id="org/opus-mt-zh-en", kind="nmt", faults=(Fault(name="error", begins=60, ends=90),)
        ),
        ModelPlan(model_id="llama3:8b", kind="llm", faults=(Fault(name="gone", ends=inf),)),
    )
    assert parse("L4; models:").models == ()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "empty group"),
        ("2xH100,,1xL4", "at character 8, '2xH100,,1xL4' has an empty group"),
        ("8x", "'8x' names no GPU: write for example 8xH100-80GB"),
        ("0xH100", "asks for no GPU at all"),
        ("65xT4", "more than 64 GPUs"),
        ("40xT4,40xL4", "more than 64 GPUs"),
        ("9" * 5000 + "xT4", "more than 64 GPUs"),
        ("2xA100", "several sizes"),
        ("xH100", "nearest is H100-80GB"),
        ("-1xH100", "nearest is H100-80GB"),
        ("1xL4, 8xH100-90GB", "at character 7, 'H100-90GB' is no GPU that can be simulated; the nearest is"),
        ("L4:lsot@60s", "at character 1, 'lsot@60s' is no fault that can be simulated; the nearest is lost"),
        ("L4:", "is no fault"),
        ("L4:xid7", "the nearest is xid7"),
        ("L4:xid" + "7" * 5000, "is no fault"),
        ("L4:lost@60", "'60' is no time: write it like 90s, 5m or 1h"),
        ("L4:lost@", "'' is no time"),
        ("L4:lost@2m-60s", "'lost@2m-60s' ends before it begins"),
        ("2xL4:lost#3", "names GPU 3 of a group of 2: count from #1 to #2"),
        ("2xL4:lost#0", "count from #1 to #2"),
        ("2xL4:hang#1", "the driver hangs for all: write hang without #"),
        ("L4/1g.5gb", "L4-24GB cannot be cut into slices"),
        ("A100-80GB/8x1g.10gb", "asks for 8 parts and 80 GB: A100-80GB has 7 and 80 GB"),
        ("L4;whisper=asr", "at character 4, 'whisper=asr' is no list of models: write for example ; models:"),
        ("L4; models: whisper", "at character 13, 'whisper' is no model: write its id and its kind"),
        ("L4; models: a=asr, =llm", "at character 20, '=llm' is no model"),
        ("L4; models: a=sar", "'sar' is no kind of model. Kinds: asr, nmt"),
        ("L4; models: a=asr:lost", "no state of a model that can be simulated"),
        ("L4; models: a=asr:error#1", "no state of a model"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_answered_with_the_place_and_what_to_write(spec: str, says: str) -> None:
    with pytest.raises(SimulationError, match=re.escape(says)):
        parse(spec)


_SIGNS = list(",:;/+@#-= 9")
_NAMES = ["2x", "L4", "A100-80GB", "60s", "lost", "xid79", "hang", "models:", "asr", "1g.10gb", "whisper"]
_WORDS = st.sampled_from([*_SIGNS, *_NAMES])


@given(st.one_of(st.text(max_size=30), st.lists(_WORDS, max_size=12).map("".join)))
def test_any_text_is_parsed_or_answered(spec: str) -> None:
    try:
        assert 1 <= len(parse(spec).gpus) <= MAX_GPUS
    except SimulationError as error:
        assert str(error).endswith(".")  # noqa: PT017  both outcomes are right for some text
        assert len(str(error)) < 600  # noqa: PT017
