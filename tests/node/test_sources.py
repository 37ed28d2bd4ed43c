from pathlib import Path

import pytest

from gpu_agent.node.settings import load
from gpu_agent.node.sources import opened_sources


@pytest.mark.parametrize(
    ("simulate", "models"),
    [
        (None, ["declared", "found"]),
        ("1xL4", ["declared", "found"]),
        ("1xL4; models: stated=asr", ["declared", "stated"]),
        ("1xL4; models:", ["declared"]),
    ],
)
def test_a_simulations_models_stand_in_place_of_those_on_the_disks_beside_declared_ones(
    tmp_path: Path, simulate: str | None, models: list[str]
) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    (folder / "model.json").write_text('{"model_id": "found", "version": "1", "kind": "llm"}')
    settings = load(
        {
            "registry_url": "ws://localhost/",
            "simulate": simulate,
            "hub_roots": (),
            "ollama_roots": (),
            "model_directories": (tmp_path,),
            "declared_models": ({"model_id": "declared", "version": "1"},),
        }
    )
    scan = opened_sources(settings).catalogue.scan()
    assert sorted(model.model_id for model in scan.models) == models
