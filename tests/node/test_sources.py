import threading
from pathlib import Path

import pytest

from gpu_agent.node import sources
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.node.sources import opened_sources, renewed_sources
from gpu_agent.probe.models.catalogue import Catalogue, Scan


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


def _with_models(folder: Path, count: int) -> AgentSettings:
    for number in range(count):
        (folder / f"model-{number}").mkdir()
        stated = f'{{"model_id": "model-{number}", "version": "1", "kind": "llm"}}'
        (folder / f"model-{number}" / "model.json").write_text(stated)
    places = {"hub_roots": (), "ollama_roots": (), "model_directories": (folder,)}
    return load({"registry_url": "ws://localhost/", **places})


async def test_new_places_are_looked_through_before_anybody_goes_by_them(tmp_path: Path) -> None:
    settings = _with_models(tmp_path, 20)
    no_time = 0.0
    assert len(opened_sources(settings).catalogue.scan(no_time).models) < 20
    renewed = await renewed_sources(settings, Catalogue(()))
    assert len(renewed.catalogue.scan(no_time).models) == 20


async def test_a_disk_that_hangs_leaves_the_new_places_to_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _with_models(tmp_path, 1)
    monkeypatch.setattr(sources, "LOOK_THROUGH_SECONDS", 0.05)
    release = threading.Event()

    def hanging(_catalogue: Catalogue, _budget_seconds: float) -> Scan:
        release.wait(30)
        return Scan()

    with monkeypatch.context() as held:
        held.setattr(Catalogue, "scan", hanging)
        renewed = await renewed_sources(settings, Catalogue(()))
    release.set()
    assert [model.model_id for model in renewed.catalogue.scan().models] == ["model-0"]
