from dataclasses import fields
from pathlib import Path

import pytest

from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.state_dir import default_state_dir
from gpu_agent.server import settings
from gpu_agent.server.settings import THRESHOLD_UNITS, RegistrySettings, load, threshold_meaning, unit_of


@pytest.fixture(autouse=True)
def _no_file_in_etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DEFAULT_CONFIG", tmp_path / "absent.toml")


def test_the_defaults_are_the_protocols_and_loopback() -> None:
    loaded = load({})
    assert loaded.thresholds == Thresholds()
    assert (loaded.node_listen, loaded.operator_listen) == (
        Address("127.0.0.1", 8080),
        Address("127.0.0.1", 8081),
    )


def test_every_threshold_is_a_setting_under_its_own_name() -> None:
    assert {one.name for one in fields(Thresholds)} <= set(RegistrySettings.model_fields)


def test_file_then_environment_then_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "registry.toml"
    config.write_text("claim_ttl_seconds = 1\nwarmup_timeout_seconds = 1\nheartbeat_timeout_seconds = 1\n")
    monkeypatch.setenv("GPU_REGISTRY_WARMUP_TIMEOUT_SECONDS", "2.5")
    monkeypatch.setenv("GPU_REGISTRY_HEARTBEAT_TIMEOUT_SECONDS", "2.5")
    thresholds = load({"heartbeat_timeout_seconds": "3.5"}, config=config).thresholds
    assert thresholds.claim_ttl_seconds == 1
    assert thresholds.warmup_timeout_seconds == 2.5
    assert thresholds.heartbeat_timeout_seconds == 3.5


def test_a_flag_that_was_not_given_overrides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_REGISTRY_NODE_LISTEN", "[::1]:0")
    assert load({"node_listen": None}).node_listen == Address("::1", 0)


def test_lists_are_written_with_commas_outside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "registry.toml"
    config.write_text('required_models = ["from/file"]\n')
    assert load({}, config=config).required_models == ("from/file",)
    monkeypatch.setenv("GPU_REGISTRY_REQUIRED_MODELS", "a, b,,")
    assert load({}, config=config).required_models == ("a", "b")
    assert load({"required_models": "c"}, config=config).required_models == ("c",)


def test_tokens_are_required_by_default() -> None:
    assert load({}).auth_on
    assert not load({"auth": "off"}).auth_on
    assert not load({"insecure_no_auth": True}).auth_on


@pytest.mark.parametrize("name", ["node_listen", "operator_listen"])
def test_auth_off_beyond_loopback_needs_the_dangerous_flag(name: str) -> None:
    public = {name: "0.0.0.0:8080", "tls_cert_file": "registry.pem"}
    assert load(public).auth_on
    with pytest.raises(SettingsError, match=rf"{name} 0\.0\.0\.0:8080 .*--insecure-no-auth"):
        load({**public, "auth": "off"})
    for flags in ({}, {"auth": "off"}):
        assert not load({**public, "insecure_no_auth": True, **flags}).auth_on


@pytest.mark.parametrize("name", ["node_listen", "operator_listen"])
@pytest.mark.parametrize("address", ["0.0.0.0:8080", "10.0.0.1:8080", "[::]:8080", "registry.example:8080"])
def test_plaintext_beyond_loopback_needs_the_dangerous_flag(name: str, address: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({name: address})
    for words in (f"{name} {address}", "--tls-cert-file", "127.0.0.1", "--insecure-plaintext"):
        assert words in str(refused.value)
    assert list(load({name: address, "insecure_plaintext": True}).plaintext_listeners) == [name]
    encrypted = load({name: address, "tls_cert_file": "registry.pem"})
    assert (encrypted.plaintext_listeners, list(encrypted.open_listeners)) == ({}, [name])


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0", "127.9.9.9:0"])
def test_on_loopback_tls_is_not_required(address: str) -> None:
    assert load({"node_listen": address, "operator_listen": address}).tls_files is None


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"tls_key_file": "k"}, "tls_key_file is named and tls_cert_file is not"),
        ({"tls_client_ca_file": "c"}, "tls_client_ca_file is named and tls_cert_file is not"),
        ({"tls_cert_file": "c", "insecure_plaintext": True}, "leave one of the two out"),
        ({"tls_cert_file": "c", "tls_client_auth": "never"}, "tls_client_auth"),
    ],
)
def test_tls_settings_that_contradict_each_other_are_refused(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(flags)
    assert sentence in str(refused.value)


def test_the_files_for_tls_are_known_together() -> None:
    named = {"tls_cert_file": "~/a", "tls_key_file": "/b", "tls_client_ca_file": "/c"}
    home = Path.home()
    found = load(named).tls_files
    assert found is not None
    assert (found.files, found.client_required) == ((home / "a", Path("/b"), Path("/c")), True)
    optional = load({**named, "tls_client_auth": "optional"}).tls_files
    assert optional is not None
    assert not optional.client_required


def test_auth_both_on_and_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_REGISTRY_AUTH", "on")
    with pytest.raises(SettingsError, match="leave one of the two out"):
        load({"insecure_no_auth": True})


def test_the_listeners_that_others_reach_are_known_by_name() -> None:
    assert load({}).open_listeners == {}
    loaded = load({"node_listen": "0.0.0.0:1", "operator_listen": "10.0.0.1:2", "insecure_plaintext": True})
    assert list(loaded.open_listeners) == ["node_listen", "operator_listen"]


def test_the_state_directory_is_the_platforms_unless_named() -> None:
    assert load({}).state_folder == default_state_dir()
    assert load({"state_dir": "~/there"}).state_folder == Path("~/there").expanduser()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"heartbeat_timeout_seconds": "soon"}, "heartbeat_timeout_seconds"),
        ({"heartbeat_timeout_seconds": "-1"}, "greater than 0"),
        ({"heartbeat_timeout_seconds": "nan"}, "heartbeat_timeout_seconds"),
        ({"healthy_heartbeats_needed": "0"}, "greater than or equal to 1"),
        ({"max_gpu_percent": "101"}, "less than or equal to 100"),
        ({"node_listen": "8080"}, "write it like 127.0.0.1:8080"),
        ({"store": "tape"}, "sqlite:///PATH"),
        ({"store": "etcd://a"}, "'a' is not HOST:PORT"),
        ({"store": "etcd://10.0.0.1:2379"}, "--etcd-ca-file"),
        ({"store": "etcd://127.0.0.1:2379", "etcd_user": "u"}, "name both"),
        ({"store": "etcd://127.0.0.1:2379", "etcd_key_file": "/k"}, "name the certificate too"),
        ({"log_level": "loud"}, "log_level"),
        ({"auth": "maybe"}, "auth"),
        ({"failures_in_window": "6"}, "make the window larger"),
        ({"hearbeat_timeout_seconds": "3"}, "is no setting"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(flags)
    assert sentence in str(refused.value)


def test_all_errors_are_reported_together() -> None:
    with pytest.raises(SettingsError) as refused:
        load({"claim_ttl_seconds": "x", "node_listen": "y"})
    assert len(str(refused.value).splitlines()) == 2


def test_a_misspelt_name_in_the_file_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "registry.toml"
    config.write_text("claim_tll_seconds = 5\n")
    with pytest.raises(SettingsError, match="'claim_tll_seconds' is no setting"):
        load({}, config=config)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no file"):
        load({}, config=tmp_path / "absent.toml")


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    config = tmp_path / "registry.toml"
    config.write_text("claim_ttl_seconds: 5\n")
    with pytest.raises(SettingsError, match=r"registry\.toml is not valid TOML"):
        load({}, config=config)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"x = " + b"[" * 5000], ids=["not UTF-8", "too deep"])
def test_a_file_that_is_no_toml_is_named_in_the_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "registry.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"registry\.toml is not valid TOML"):
        load({}, config=path)


def test_every_threshold_has_a_meaning_and_a_unit() -> None:
    for one in fields(Thresholds):
        assert threshold_meaning(one.name)
        assert THRESHOLD_UNITS[one.name]


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("claim_ttl_seconds", "seconds"),
        ("max_cpu_percent", "percent"),
        ("failure_window", "heartbeats"),
        ("default_max_concurrent_jobs", "jobs"),
        ("required_models", "models"),
        ("flap_limit", "exits"),
        ("max_heartbeats_per_second", "heartbeats per second"),
    ],
)
def test_a_threshold_has_its_unit(name: str, unit: str) -> None:
    assert THRESHOLD_UNITS[name] == unit


def test_a_threshold_without_a_unit_is_named() -> None:
    with pytest.raises(TypeError, match=r"setting retry_count of RegistrySettings has no unit.*kind="):
        unit_of("retry_count", None)
