import json
from pathlib import Path

from gpu_agent.probe.models.declared import Declaration
from gpu_agent.probe.options import ProbeOptions, sources_of


def test_without_options_the_hubs_own_places_are_searched(tmp_path: Path) -> None:
    sources = sources_of(ProbeOptions(), environ={"HF_HUB_CACHE": str(tmp_path / "hub")}, home=tmp_path)
    assert tmp_path / "hub" in sources.catalogue.places


def test_folders_and_declarations_reach_the_catalogue(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"model_id": "mine/asr", "version": "3", "kind": "asr"}))
    options = ProbeOptions(
        hub_roots=(),
        model_directories=(tmp_path / "models",),
        declared_models=(Declaration(model_id="declared/llm", version="1", kind="llm"),),
    )
    found = sources_of(options, environ={}, home=tmp_path).catalogue.scan().models
    assert {model.model_id for model in found} == {"mine/asr", "declared/llm"}
