import re
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.simulation.gpu_models import GPU_MODELS, SimulationError, find_gpu_model
from gpu_agent.probe.simulation.spec import (
    MAX_GPUS,
    MigProfile,
    ModelPlan,
    SimulatedFault,
    parse_mig_layout,
    parse_spec,
)


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
    plans = parse_spec(spec).gpus
    assert [plan.gpu_model.label for plan in plans] == labels
    assert all((plan.mig_profiles, plan.faults) == ((), ()) for plan in plans)
    assert parse_spec(spec).models is None


@pytest.mark.parametrize(
    ("fault", "means"),
    [
        ("lost", SimulatedFault(name="lost")),
        ("LOST @ 60s", SimulatedFault(name="lost", begins=60)),
        ("degraded@1m-2m", SimulatedFault(name="degraded", begins=60, ends=120)),
        ("hot@0.5s-1h", SimulatedFault(name="hot", begins=0.5, ends=3600)),
        ("xid79@1d", SimulatedFault(name="xid79", begins=86400)),
        ("unknown@0s", SimulatedFault(name="unknown")),
    ],
)
def test_a_fault_holds_for_every_gpu_of_its_group_between_two_moments(
    fault: str, means: SimulatedFault
) -> None:
    plans = parse_spec(f"2xL4:{fault},1xT4").gpus
    assert [plan.faults for plan in plans] == [(means,), (means,), ()]


def test_a_number_names_one_gpu_of_the_group_counted_from_one() -> None:
    plans = parse_spec("3xA100-80GB:lost#2@60s:hot#1,2xL4:lost#1").gpus
    assert [[fault.name for fault in plan.faults] for plan in plans] == [["hot"], ["lost"], [], ["lost"], []]


def test_a_hang_is_the_whole_drivers() -> None:
    simulation = parse_spec("2xL4:hang@60s-90s:hot")
    assert simulation.hangs == (SimulatedFault(name="hang", begins=60, ends=90),)
    assert [[fault.name for fault in plan.faults] for plan in simulation.gpus] == [["hot"], ["hot"]]


def test_mig_devices_are_those_of_each_gpu_of_the_group() -> None:
    plans = parse_spec("2xA100-80GB/7x1g.10gb,1xH100-80GB/3g.40gb+4g.40gb:lost").gpus
    assert [[each.name for each in plan.mig_profiles] for plan in plans] == [
        ["1g.10gb"] * 7,
        ["1g.10gb"] * 7,
        ["3g.40gb", "4g.40gb"],
    ]


def test_models_are_stated_with_their_kinds_and_faults() -> None:
    simulation = parse_spec(
        "L4 ; models: whisper=asr, org/opus-mt-zh-en = nmt:error@60s-90s, llama3:8b=llm:gone"
    )
    assert simulation.models == (
        ModelPlan(model_id="whisper", kind="asr"),
        ModelPlan(
            model_id="org/opus-mt-zh-en",
            kind="nmt",
            faults=(SimulatedFault(name="error", begins=60, ends=90),),
        ),
        ModelPlan(model_id="llama3:8b", kind="llm", faults=(SimulatedFault(name="gone", ends=inf),)),
    )
    assert parse_spec("L4; models:").models == ()


def test_a_machine_may_have_a_hostname_of_its_own() -> None:
    assert parse_spec("L4; models: a=asr; host: gpu-07.lan").hostname == "gpu-07.lan"
    assert parse_spec("L4; host: gpu-07").models is None
    assert parse_spec("L4").hostname is None


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
        ("L4/1g.5gb", "L4-24GB has no MIG"),
        ("L4:fabric", "L4-24GB has no NVLink: leave out :fabric"),
        ("A100-80GB/8x1g.10gb", "asks for 8 parts and 80 GB: A100-80GB has 7 and 80 GB"),
        ("L4;whisper=asr", "at character 4, 'whisper=asr' is no list of models: write for example ; models:"),
        ("L4; host: a b", "at character 11, 'a b' is no hostname: write for example gpu-07"),
        ("L4; models: whisper", "at character 13, 'whisper' is no model: write its id and its kind"),
        ("L4; models: a=asr, =llm", "at character 20, '=llm' is no model"),
        ("L4; models: a=sar", "'sar' is no kind of model. Kinds: asr, nmt"),
        ("L4; models: a=asr:lost", "no state of a model that can be simulated"),
        ("L4; models: a=asr:error#1", "no state of a model"),
    ],
)  # fmt: skip
def test_a_spec_error_names_the_place_and_what_to_write(spec: str, says: str) -> None:
    with pytest.raises(SimulationError, match=re.escape(says)):
        parse_spec(spec)


_SIGNS = list(",:;/+@#-= 9")
_NAMES = ["2x", "L4", "A100-80GB", "60s", "lost", "xid79", "hang", "models:", "asr", "1g.10gb", "whisper"]
_WORDS = st.sampled_from([*_SIGNS, *_NAMES])


@given(st.one_of(st.text(max_size=30), st.lists(_WORDS, max_size=12).map("".join)))
def test_any_text_is_parsed_or_answered(spec: str) -> None:
    try:
        assert 1 <= len(parse_spec(spec).gpus) <= MAX_GPUS
    except SimulationError as error:
        assert str(error).endswith(".")  # noqa: PT017  both outcomes are right for some text
        assert len(str(error)) < 600  # noqa: PT017


A100 = find_gpu_model("A100-80GB")


def test_mig_profiles_of_several_sizes_are_one_list() -> None:
    assert parse_mig_layout("3g.40gb + 2x1G.10GB", A100) == (
        MigProfile(3, 40),
        MigProfile(1, 10),
        MigProfile(1, 10),
    )


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("A100-80GB", "7x1g.10gb"),
        ("A100-40GB", "7x1g.5gb"),
        ("H100-80GB", "3g.40gb+4g.40gb"),
        ("H100-80GB", "7g.80gb"),
        ("H200-141GB", "7x1g.18gb"),
        ("B200-192GB", "7x1g.23gb"),
    ],
)
def test_the_layouts_that_operators_use_fit(label: str, text: str) -> None:
    found = parse_mig_layout(text, find_gpu_model(label))
    assert sum(each.memory_mb for each in found) <= find_gpu_model(label).memory_mb


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no MIG profile: write for example 7x1g.10gb"),
        ("8g.80gb", "is no MIG profile"),
        ("1g.0gb", "has no memory"),
        ("0x1g.10gb", "asks for 0 parts"),
        ("4g.40gb+4g.40gb", "asks for 8 parts"),
        ("2x3g.60gb", "asks for 6 parts and 120 GB: A100-80GB has 7 and 80 GB"),
    ],
)
def test_more_than_there_is_cannot_be_cut(text: str, says: str) -> None:
    with pytest.raises(SimulationError, match=says):
        parse_mig_layout(text, A100)


def test_only_products_with_mig_can_be_cut() -> None:
    for product in GPU_MODELS:
        if product.mig:
            assert parse_mig_layout("1g.5gb", product)
        else:
            with pytest.raises(SimulationError, match=r"has no MIG: leave out /1g\.5gb"):
                parse_mig_layout("1g.5gb", product)


def test_each_product_is_found_by_its_own_label_and_has_plausible_figures() -> None:
    assert len(GPU_MODELS) >= 10
    assert len({product.label for product in GPU_MODELS}) == len(GPU_MODELS)
    for product in GPU_MODELS:
        assert find_gpu_model(product.label) is product
        stated_gb = int(product.label.removesuffix("GB").rpartition("-")[2])
        assert 0.9 * stated_gb <= product.memory_mb / 1024 <= stated_gb
        assert 50 <= product.power_limit_w <= 1200


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("H100", "H100-80GB"),
        ("h100-80gb", "H100-80GB"),
        ("H100 80 GB", "H100-80GB"),
        ("RTX 4090", "RTX4090-24GB"),
        ("a100-40", "A100-40GB"),
        ("L4", "L4-24GB"),
        ("l40s", "L40S-48GB"),
    ],
)
def test_case_spaces_dashes_and_a_single_size_may_be_left_out(text: str, label: str) -> None:
    assert find_gpu_model(text).label == label


def test_a_family_of_several_sizes_needs_the_size() -> None:
    with pytest.raises(SimulationError, match="'A100' comes in several sizes: write A100-80GB or A100-40GB"):
        find_gpu_model("A100")


@pytest.mark.parametrize(("text", "nearest"), [("H101-80GB", "H100-80GB"), ("RTX4080", "RTX4090-24GB")])
def test_an_unknown_product_is_answered_with_the_nearest_and_all_accepted(text: str, nearest: str) -> None:
    with pytest.raises(SimulationError, match=f"nearest is {nearest}") as caught:
        find_gpu_model(text)
    assert text in str(caught.value)
    assert all(product.label in str(caught.value) for product in GPU_MODELS)
