"""The commands of `docs/howto/security.md` make what the page says they make."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from gpu_agent.node import settings as agent_settings
from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import OwnCertificate, client_context, server_context
from gpu_agent.server import settings as registry_settings
from tests.handshakes import shake_hands
from tests.waiting import patience

PAGE = (Path(__file__).parent.parent / "docs" / "howto" / "security.md").read_text(encoding="utf-8")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def blocks(kind: str, heading: str) -> list[str]:
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def run(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_openssl
def test_the_authority_of_five_commands_issues_the_registrys_certificate(tmp_path: Path) -> None:
    script = blocks("sh", "A registry with a certificate")[0]
    assert len(script.splitlines()) == 5
    assert run(script, tmp_path).strip().endswith("registry.pem: OK")
    own = OwnCertificate(tmp_path / "registry.pem", tmp_path / "registry.key")
    client, server = client_context(ca_file=tmp_path / "ca.pem", own=None), server_context(own)
    for name in ("registry.example", "10.0.0.1"):
        assert shake_hands(client, server, name) == "TLSv1.3"


@needs_openssl
def test_a_node_with_a_certificate_of_the_clients_authority_is_accepted(tmp_path: Path) -> None:
    run(blocks("sh", "A registry with a certificate")[0], tmp_path)
    for ending in ("pem", "key"):
        shutil.copy(tmp_path / f"ca.{ending}", tmp_path / f"clients.{ending}")
    (script,) = blocks("sh", "Nodes and operators with certificates of their own (mTLS)")
    run(f"umask 077\n{script}", tmp_path)
    own = OwnCertificate(tmp_path / "registry.pem", tmp_path / "registry.key")
    node = OwnCertificate(tmp_path / "node.pem", tmp_path / "node.key")
    server = server_context(own, client_ca_file=tmp_path / "clients.pem")
    client = client_context(ca_file=tmp_path / "ca.pem", own=node)
    assert shake_hands(client, server, "registry.example") == "TLSv1.3"


@needs_openssl
def test_a_certificate_of_any_name_is_enough_where_its_key_is_pinned(tmp_path: Path) -> None:
    (script,) = blocks("sh", "Known by its key alone")
    run(f"umask 077\n{script}", tmp_path)
    own = OwnCertificate(tmp_path / "registry.pem", tmp_path / "registry.key")
    pins = frozenset({pin_of(read_certificate_file(own.cert_file))})
    client = client_context(ca_file=None, own=None, pins=pins)
    assert shake_hands(client, server_context(own), "10.0.0.1") == "TLSv1.3"


def test_the_settings_that_are_shown_can_be_used(tmp_path: Path) -> None:
    registry, agent = blocks("toml", "A registry with a certificate")
    (pinned,) = blocks("toml", "Known by its key alone")
    file = tmp_path / "settings.toml"
    file.write_text(registry, encoding="utf-8")
    assert registry_settings.load({}, config=file).tls_files is not None
    for shown in (agent, pinned):
        file.write_text(shown, encoding="utf-8")
        assert agent_settings.load({}, config=file).registry_urls[0].startswith("wss://")
    (client,) = blocks("toml", "Nodes and operators with certificates of their own (mTLS)")
    assert set(tomllib.loads(client)) == {"tls_client_ca_file", "tls_cert_file", "tls_key_file"}


def test_every_flag_that_names_a_danger_is_listed() -> None:
    section = PAGE.split("\n## What is refused, and the flags that name a danger\n", 1)[1].split("\n## ", 1)[
        0
    ]
    fields = {**agent_settings.AgentSettings.model_fields, **registry_settings.RegistrySettings.model_fields}
    for name in (one for one in fields if one.startswith("insecure_")):
        assert f"`{name}`" in section
