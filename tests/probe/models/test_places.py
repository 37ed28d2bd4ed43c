from pathlib import Path

from gpu_agent.probe.models.places import hub_places, ollama_places


def test_roots_come_from_what_is_handed_in_and_each_once() -> None:
    home = Path("/home/ada")
    usual = home / ".cache" / "huggingface" / "hub"
    assert hub_places({}, home) == (usual,)
    assert hub_places({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, home) == (Path("/a"), Path("/b/hub"), usual)
    assert hub_places({"HF_HOME": str(home / ".cache" / "huggingface")}, home) == (usual,)
    assert hub_places({"HF_HUB_CACHE": ""}, home) == (usual,)


def test_the_environment_is_read_as_the_hubs_library_reads_it() -> None:
    home = Path("/home/ada")
    usual = home / ".cache" / "huggingface" / "hub"
    assert hub_places({"HF_HUB_CACHE": "~/a", "HF_HOME": "~/b"}, home) == (home / "a", home / "b/hub", usual)
    assert hub_places({"XDG_CACHE_HOME": "/c"}, home) == (Path("/c/huggingface/hub"), usual)
    assert hub_places({"HF_HOME": "~/b"}, None) == (Path("~/b/hub"),)


def test_roots_are_the_named_one_the_users_and_the_services() -> None:
    service = Path("/usr/share/ollama/.ollama/models")
    assert ollama_places({}, None) == (service,)
    assert ollama_places({"OLLAMA_MODELS": "/m"}, Path("/home/ada")) == (
        Path("/m"),
        Path("/home/ada/.ollama/models"),
        service,
    )
    assert ollama_places({"OLLAMA_MODELS": ""}, None) == (service,)
