from pathlib import Path

import pytest

from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.runtime.layers import SettingsError

URL = "ws://10.0.0.1:8080/ws/node"


@pytest.fixture(autouse=True)
def _no_machine_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gpu_agent.node.settings.DEFAULT_CONFIG", tmp_path / "absent.toml")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def _load(tmp_path: Path, text: str = "", **flags: object) -> AgentSettings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load({"registry_url": URL, **flags}, config=path)


def test_defaults_need_only_a_registry() -> None:
    settings = load({"registry_url": URL})
    assert (settings.deadline_seconds, settings.nvml_stale_after_seconds) == (5, 60)
    assert settings.owner.accept_public_jobs is False
    assert settings.probe_options.hub_roots is None


def test_flags_come_before_environment_before_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'log_level = "debug"\nmax_concurrent_jobs = 1\ndeadline_seconds = 2'
    monkeypatch.setenv("GPU_AGENT_LOG_LEVEL", "warning")
    monkeypatch.setenv("GPU_AGENT_MAX_CONCURRENT_JOBS", "2")
    settings = _load(tmp_path, text, log_level="error")
    assert (settings.log_level, settings.max_concurrent_jobs, settings.deadline_seconds) == ("error", 2, 2)


def test_a_flag_that_was_not_given_hides_nothing(tmp_path: Path) -> None:
    assert _load(tmp_path, 'simulate = "2xL4-24GB"', simulate=None).simulate == "2xL4-24GB"


def test_the_file_in_etc_is_read_if_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "etc.toml"
    path.write_text(f'registry_url = "{URL}"')
    monkeypatch.setattr("gpu_agent.node.settings.DEFAULT_CONFIG", path)
    assert load({}).registry_url == URL


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no file"):
        load({}, config=tmp_path / "absent.toml")


def test_without_a_registry_the_flag_is_named() -> None:
    with pytest.raises(SettingsError, match="add --registry wss://HOST:8080/ws/node"):
        load({})


def test_an_unknown_key_names_the_nearest_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.toml:2: 'acept_public_jobs' .* did you mean"):
        _load(tmp_path, "# mine\nacept_public_jobs = true")


def test_an_unknown_key_in_a_table_names_the_nearest_of_that_table(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.toml:2: 'modelid' .* did you mean 'model_id'"):
        _load(tmp_path, '[[declared_models]]\nmodelid = "x"')


def test_an_unknown_key_that_resembles_none_lists_them(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there are: registry_url, "):
        _load(tmp_path, "qqq = 1")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(tmp_path, "deadline_seconds = 0\nmax_concurrent_jobs = -1")
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.toml is not valid TOML"):
        _load(tmp_path, "= x")


def test_a_variable_that_should_hold_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AGENT_DECLARED_MODELS", "whisper")
    with pytest.raises(SettingsError, match=r"declared_models.*JSON"):
        load({"registry_url": URL})


def test_variables_that_kubernetes_makes_for_a_service_of_our_name_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GPU_AGENT_PORT", "tcp://10.0.0.1:80")
    assert load({"registry_url": URL}).registry_url == URL


def test_a_home_that_nobody_has_is_refused_with_the_next_step() -> None:
    with pytest.raises(SettingsError, match="state_dir: it begins with ~"):
        load({"registry_url": URL, "state_dir": "~nobody-of-that-name/state"})


def test_a_home_in_a_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/owner")
    settings = _load(tmp_path, 'model_directories = ["~/models"]')
    assert settings.model_directories == (Path("/home/owner/models"),)


def test_a_join_token_is_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AGENT_JOIN_TOKEN", "gpuj_0123abcd_s3cret")
    settings = _load(tmp_path)
    assert settings.join_token is not None
    assert settings.join_token.get_secret_value() == "gpuj_0123abcd_s3cret"
    assert "s3cret" not in f"{settings} {settings!r}"


@pytest.mark.parametrize("written", ["join_token = ['s3cret']", "join_token_file = 'gpuj_0123abcd_s3cret'"])
def test_a_fault_about_a_join_token_does_not_repeat_it(tmp_path: Path, written: str) -> None:
    with pytest.raises(SettingsError, match="join_token") as refused:
        _load(tmp_path, written)
    assert "s3cret" not in str(refused.value)


def test_a_credential_of_the_unit_is_taken_where_nothing_else_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert _load(tmp_path).join_token_file is None
    for blank in ("", "\n"):
        (tmp_path / "join-token").write_text(blank)
        assert _load(tmp_path).join_token_file is None
    (tmp_path / "join-token").write_text("gpuj_x")
    assert _load(tmp_path).join_token_file == tmp_path / "join-token"
    assert _load(tmp_path, join_token_file=tmp_path / "other").join_token_file == tmp_path / "other"
    assert _load(tmp_path, join_token="gpuj_y").join_token_file is None


def test_a_credential_that_cannot_be_looked_at_is_left_to_whoever_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("c" * 300)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert _load(tmp_path).join_token_file in {folder / "join-token", None}


def test_declared_models_and_features_reach_the_probe(tmp_path: Path) -> None:
    text = """
    advanced_features = ["kv_cache"]
    [features]
    speaker_identification = true
    emotion_detection = false
    [[declared_models]]
    model_id = "whisper"
    version = "1"
    kind = "asr"
    status = "downloading"
    [[declared_models]]
    model_id = "secret"
    hidden = true
    """
    options = _load(tmp_path, text).probe_options
    assert [(one.model_id, one.kind, one.hidden) for one in options.declared_models] == [
        ("whisper", "asr", False),
        ("secret", None, True),
    ]
    assert options.features.stated == {"speaker_identification": True, "emotion_detection": False}
    assert options.features.advanced == ("kv_cache",)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load({"registry_url": URL}).log_level = "debug"  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('hub_roots = ["\\u0000"]', r"hub_roots\.0"),
        ('ollama_roots = ["/a", "/b\\u0000"]', r"ollama_roots\.1"),
        ('model_directories = ["a\\u0000"]', r"model_directories\.0"),
        ('state_dir = "\\u0000"', "state_dir"),
        ('sys_dir = "\\u0000"', "sys_dir"),
        ('join_token_file = "\\u0000"', "join_token_file"),
    ],
)
def test_a_path_with_a_nul_is_a_fault_of_the_settings(tmp_path: Path, line: str, name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: a path holds no NUL character"):
        _load(tmp_path, line)
