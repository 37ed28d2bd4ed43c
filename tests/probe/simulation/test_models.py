import pytest

from gpu_agent.probe.models.declared import ModelDeclaration
from gpu_agent.probe.models.scanner import ModelScanner
from gpu_agent.probe.simulation.gpu_models import SimulationError
from gpu_agent.probe.simulation.models import SimulatedModels, simulated_sources
from gpu_agent.probe.simulation.spec import parse_spec
from gpu_agent.probe.snapshot import Sources, take
from gpu_agent.wire.inventory import GpuReport, ModelStatus, Outcome


def statuses(line: str, *moments: float) -> list[dict[str, str]]:
    """Each model's state, at each moment that the scanner scans."""
    now = iter(moments)
    current = [0.0]
    scanner = ModelScanner((SimulatedModels(parse_spec(line).models or (), lambda: current[0]),))
    seen = []
    for moment in now:
        current[0] = moment
        seen.append({model.model_id: model.status.value for model in scanner.scan().models})
    return seen


def test_stated_models_are_ready_and_of_their_kind_with_the_languages_of_their_names() -> None:
    (whisper, opus) = (
        simulated_sources("L4; models: whisper=asr, Helsinki-NLP/opus-mt-zh-en=nmt", Sources())
        .scanner.scan()
        .models
    )
    by_id = {model.model_id: model for model in (whisper, opus)}
    assert {model.kind for model in by_id.values()} == {"asr", "nmt"}
    translator = by_id["Helsinki-NLP/opus-mt-zh-en"]
    assert (translator.src_lang, translator.tgt_lang, translator.source) == ("zh", "en", "simulated")
    assert translator.status is ModelStatus.READY


def test_a_models_states_come_and_go_at_their_times() -> None:
    seen = statuses("L4; models: a=asr:downloading@0s-30s:error@60s-90s, b=llm:gone@60s", 5, 34, 35, 65, 95)
    assert seen == [
        {"a": "downloading", "b": "ready"},
        {"a": "downloading", "b": "ready"},
        {"a": "ready", "b": "ready"},
        {"a": "error"},
        {"a": "ready"},
    ]


def test_without_stated_models_those_of_the_machine_stay() -> None:
    sources = Sources()
    assert simulated_sources("2xL4", sources) is sources


def test_the_owner_may_still_declare_and_hide_models() -> None:
    declared = (
        ModelDeclaration(model_id="a", hidden=True),
        ModelDeclaration(model_id="c", version="1", kind="tts"),
    )
    sources = simulated_sources("L4; models: a=asr, b=llm", Sources(scanner=ModelScanner((), declared)))
    assert sorted(model.model_id for model in sources.scanner.scan().models) == ["b", "c"]
    assert sources.scanner.paths == ()


def test_a_line_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(SimulationError):
        simulated_sources("L4; modles: a=asr", Sources())


def test_the_hostname_is_that_of_the_line() -> None:
    named = take(GpuReport(outcome=Outcome.OK), simulated_sources("L4; host: gpu-07", Sources()))
    assert named.host.hostname == "gpu-07"
