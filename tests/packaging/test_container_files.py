"""The container's recipe, its examples and its page agree with each other and with the settings' page."""

import json
import re

import pytest

from tests.documents import page
from tests.system.packages import ROOT
from tests.system.recipe import instructions

FOLDER = ROOT / "packaging" / "container"
RECIPE = (FOLDER / "Containerfile").read_text(encoding="utf-8")
EXAMPLES = ("compose.yaml", "daemonset.yaml", "README.md")
SAID = dict(instructions(RECIPE))


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["Containerfile", *EXAMPLES])
def test_every_variable_is_one_that_the_settings_page_has(name: str) -> None:
    known = set(re.findall(r"`(GPU_AGENT_[A-Z_]+)`", page("settings.md")))
    used = set(re.findall(r"\bGPU_AGENT_[A-Z_]+", text_of(name)))
    assert used
    assert used <= known


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_volume_of_the_image_is_mounted_in_every_example(name: str) -> None:
    for volume in json.loads(SAID["VOLUME"]):
        assert volume in text_of(name)


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    """Kubernetes accepts `runAsNonRoot` only for a numeric user."""
    user, group = SAID["USER"].split(":")
    assert user == group == "10001"
    assert f"runAsUser: {user}, runAsGroup: {group}, fsGroup: {group}" in text_of("daemonset.yaml")


def test_kubernetes_asks_what_the_image_asks_itself() -> None:
    command = json.loads(SAID["HEALTHCHECK"].partition(" CMD ")[2])
    assert f"exec: {{command: [{', '.join(command)}]}}" in text_of("daemonset.yaml")


def test_only_what_the_recipe_copies_goes_to_the_builder() -> None:
    copied = [
        name
        for instruction, said in instructions(RECIPE)
        if instruction == "COPY" and not said.startswith("--from=")
        for name in said.split()[:-1]
    ]
    sent = re.findall(r"(?m)^!(.+)$", text_of("Containerfile.dockerignore"))
    assert copied
    for name in copied:
        assert any(name == place or name.startswith(f"{place}/") for place in sent), name


def test_no_token_is_in_the_recipe_or_in_an_example() -> None:
    for name in ("Containerfile", *EXAMPLES):
        assert not re.search(r"GPU_AGENT_JOIN_TOKEN\b", text_of(name)), name
