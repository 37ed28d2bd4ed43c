import asyncio
import threading
from pathlib import Path

import pytest

from gpu_agent.node import sources
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.node.sources import opened_sources, renewed_sources
from gpu_agent.probe.models.catalogue import Catalogue, Scan
from tests.hung_disk import hung
from tests.waiting import until


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


async def test_places_that_stay_keep_what_is_known_of_them(tmp_path: Path) -> None:
    settings = _with_models(tmp_path, 3)
    before = opened_sources(settings).catalogue
    before.scan()
    (tmp_path / "more").mkdir()
    more = settings.model_copy(update={"model_directories": (tmp_path, tmp_path / "more")})
    after = (await renewed_sources(more, before)).catalogue
    assert after.shelves[0] is before.shelves[0]
    assert len(after.shelves) == 2


async def test_a_place_on_a_disk_that_hangs_neither_holds_a_reload_up_nor_gathers_threads(
    tmp_path: Path,
) -> None:
    dead, well = tmp_path / "dead", tmp_path / "well"
    dead.mkdir()
    well.mkdir()
    settings = _with_models(well, 2).model_copy(
        update={"model_directories": (dead, well), "deadline_seconds": 0.5}
    )
    with hung(dead):
        threads = set(threading.enumerate())
        kept = Catalogue(())
        for _ in range(3):
            async with asyncio.timeout(15):
                kept = (await renewed_sources(settings, kept)).catalogue
            assert len(kept.scan().models) == 2
        await until(lambda: len(set(threading.enumerate()) - threads) == 1)
    await until(lambda: not kept.shelves[0].out)
    assert kept.scan().complete
