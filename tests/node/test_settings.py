import re
import sys
import zoneinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from gpu_agent.node.settings import AgentSettings, PublicJobsSettings, load, systemd_socket_path
from gpu_agent.runtime.config.fields import advanced_names
from gpu_agent.runtime.config.load import SettingsError

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
    assert "huggingface" not in settings.probe_options.model_paths


def test_flags_come_before_environment_before_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'log_level = "debug"\nmax_concurrent_jobs = 1\n[advanced]\ndeadline_seconds = 2'
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
    with pytest.raises(SettingsError, match="start the agent with --registry wss://HOST:8080/ws/node"):
        load({})


def test_an_unknown_key_names_the_nearest_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.toml:2: 'acept_public_jobs' .* did you mean"):
        _load(tmp_path, "# mine\nacept_public_jobs = true")


def test_an_unknown_key_in_a_table_names_the_nearest_of_that_table(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.toml:2: 'modelid' .* did you mean 'model_id'"):
        _load(tmp_path, '[[declared_models]]\nmodelid = "x"')


def test_an_unknown_key_that_resembles_none_says_which_command_lists_them(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'qqq' is no setting; `gpu-agent config show` lists all$"):
        _load(tmp_path, "qqq = 1")


def test_an_unknown_key_names_those_that_share_a_word(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'interval' is no setting; alike are: "):
        _load(tmp_path, "interval = 1")


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(tmp_path, "max_concurrent_jobs = -1\n[advanced]\ndeadline_seconds = 0")
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


def test_an_unknown_home_is_refused_with_the_next_step() -> None:
    with pytest.raises(SettingsError, match="state_dir: it begins with ~"):
        load({"registry_url": URL, "state_dir": "~no-such-user/state"})


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


def test_an_unreadable_credential_is_reported_when_it_is_opened(
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
        ('[advanced]\nsys_dir = "\\u0000"', "sys_dir"),
        ('join_token_file = "\\u0000"', "join_token_file"),
    ],
)
def test_a_path_with_a_nul_is_a_fault_of_the_settings(tmp_path: Path, line: str, name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: a path holds no NUL character"):
        _load(tmp_path, line)


@pytest.mark.parametrize("written", ["dcgmi diag -r 1", '["dcgmi", "diag", "-r", "1"]'])
def test_a_variable_holds_a_command_as_words_or_as_a_list(
    written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_AGENT_CHECKS__HOOK", written)
    assert load({"registry_url": URL}).checks.hook == ("dcgmi", "diag", "-r", "1")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('gpu_model = ""', "checks.gpu_model: .*at least 1 character"),
        ("gpu_seconds = 1e300", "checks.gpu_seconds: .*less than or equal to 86400"),
        ("hook_seconds = 86401", "checks.hook_seconds: .*less than or equal to 86400"),
    ],
)
def test_a_check_that_could_never_fail_is_a_fault_of_the_settings(
    tmp_path: Path, line: str, complaint: str
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        _load(tmp_path, f"[checks]\n{line}")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("gpu_count = true", "checks.gpu_count: write a number, got True"),
        ('gpu_count = "8"', "checks.gpu_count: write a number, without quotes, got '8'"),
        ("pcie_width = true", "checks.pcie_width: write a number, got True"),
        ("pcie_width = 3", "checks.pcie_width: a PCIe link has 1, 2, 4, 8, 12, 16 or 32 lanes, got 3"),
        ('pcie_speed_gts = "32"', "checks.pcie_speed_gts: write a number, without quotes, got '32'"),
        ("min_bandwidth_gb_s = true", "checks.min_bandwidth_gb_s: write a number, got True"),
        ("gpu_seconds = true", "checks.gpu_seconds: write a number, got True"),
        ('hook_seconds = "60"', "checks.hook_seconds: write a number, without quotes, got '60'"),
        ("hook_while_in_use = 1", "checks.hook_while_in_use: write true or false, got 1"),
        ('hook_while_in_use = "no"', "checks.hook_while_in_use: write true or false, got 'no'"),
        ("hook = 3", "checks.hook: write the command as a list of words, got 3"),
    ],
)
def test_a_check_is_set_by_a_value_of_its_own_type(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(complaint)):
        _load(tmp_path, f"[checks]\n{line}")


def test_variables_hold_numbers_and_truth_values_of_checks_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AGENT_CHECKS__GPU_COUNT", "8")
    monkeypatch.setenv("gpu_agent_checks__pcie_width", "16")
    monkeypatch.setenv("GPU_AGENT_CHECKS__MIN_BANDWIDTH_GB_S", "20.5")
    monkeypatch.setenv("GPU_AGENT_CHECKS__HOOK_WHILE_IN_USE", "true")
    checks = load({"registry_url": URL}).checks
    assert (checks.gpu_count, checks.pcie_width, checks.min_bandwidth_gb_s) == (8, 16, 20.5)
    assert checks.hook_while_in_use


TOKEN = "gpuj_0123abcd_s3cret"


@pytest.mark.parametrize(
    ("name", "most"),
    [("probe_interval_seconds", 30), ("deadline_seconds", 10), ("nvml_stale_after_seconds", 60)],
)
def test_no_span_lets_a_healthy_node_s_reading_grow_older_than_the_registry_takes(
    tmp_path: Path, name: str, most: int
) -> None:
    table = "[advanced]\n" if name in advanced_names(AgentSettings) else ""
    assert getattr(_load(tmp_path, f"{table}{name} = {most}"), name) == most
    because = f"{name}: at most {most} s: a registry takes a GPU reading older than 60 s for a sick node"
    with pytest.raises(SettingsError, match=f"{because}, got {most}.5"):
        _load(tmp_path, f"{table}{name} = {most}.5")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("10.0.0.1:8080", "ws://10.0.0.1:8080/ws/node"),
        ("10.0.0.1", "ws://10.0.0.1:8080/ws/node"),
        ("localhost:8080", "ws://localhost:8080/ws/node"),
        ("scheduler.example/ws/node", "ws://scheduler.example:8080/ws/node"),
        ("http://10.0.0.1:8080", "ws://10.0.0.1:8080/ws/node"),
        ("https://registry.example", "wss://registry.example/ws/node"),
    ],
)
def test_a_url_without_ws_is_an_error_that_shows_the_corrected_form(written: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"write {meant}, got"):
        load({"registry_url": written})


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("ws://", "names no host"),
        ("ws://user:secret@host:8080/ws/node", "no credentials go into a URL"),
        ("ws://host:8080/ws/node?token=secret", "no credentials go into a URL"),
        ("http://user:secret@host:8080", "no credentials go into a URL"),
        ("user:secret@host", "no credentials go into a URL"),
        ("ws://user:secret\u2100@host", "no credentials go into a URL"),
        ("https://host/ws/node?Token=secret", "no credentials go into a URL"),
        ("ws://host:99999/ws/node", "Port out of range"),
        ("ws://host:8080/ws/node#x", "no fragment"),
    ],
)
def test_other_faults_of_a_url_are_named(written: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as refused:
        load({"registry_url": written})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("written", ["ws://host:8080", "ws://host:8080/"])
def test_a_url_without_a_path_gets_the_protocol_s(written: str) -> None:
    assert load({"registry_url": written}).registry_url == "ws://host:8080/ws/node"


def test_a_path_of_the_operator_s_own_stays() -> None:
    assert load({"registry_url": "wss://host/farm/ws"}).registry_url == "wss://host/farm/ws"


TWO = ("wss://a:8080/ws/node", "wss://b/ws/node")


@pytest.mark.parametrize(
    "text",
    [
        'registry_urls = ["wss://a:8080", "wss://b"]',
        'registry_url = ["wss://a:8080/", "wss://b/ws/node"]',
        'registry_urls = "wss://a:8080, wss://b"',
    ],
)
def test_a_registry_may_have_several_addresses(text: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    assert load({}, config=path).registry_urls == TWO


@pytest.mark.parametrize("variable", ["GPU_AGENT_REGISTRY_URL", "GPU_AGENT_REGISTRY_URLS"])
def test_a_variable_or_an_option_replaces_the_addresses_of_the_file_by_either_name(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('registry_urls = ["ws://c", "ws://d"]')
    monkeypatch.setenv(variable, "wss://a:8080,wss://b")
    assert load({}, config=path).registry_urls == TWO
    assert load({"registry_url": URL}, config=path).registry_urls == (URL,)
    monkeypatch.setenv(variable, "wss://b")
    assert load({}, config=path).registry_url == TWO[1]


def test_one_layer_states_the_addresses_by_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('registry_url = "wss://a"\nregistry_urls = ["wss://b"]\n')
    with pytest.raises(
        SettingsError, match=f"{path}: registry_url and registry_urls are names of one setting"
    ):
        load({}, config=path)
    path.write_text("")
    monkeypatch.setenv("GPU_AGENT_REGISTRY_URL", "wss://a")
    monkeypatch.setenv("GPU_AGENT_REGISTRY_URLS", "wss://b")
    with pytest.raises(SettingsError, match="GPU_AGENT_REGISTRY_URLS set the same; unset one"):
        load({}, config=path)


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        (["wss://a", "http://b:1"], "write ws://b:1/ws/node, got"),
        (["http://a", "wss://user:secret@b"], "no credentials go into a URL"),
        ("http://a,wss://b/?token=secret", "no credentials go into a URL"),
        (["wss://a", "wss://a/"], "wss://a/ws/node is there twice"),
        (["wss://a", "ws://b"], "write wss:// in all of them"),
        ("wss://a,b", "write each of several addresses whole, as in wss://A,wss://B"),
        ([], "the list is empty"),
        (["wss://a", 5], "or a list of its addresses"),
        (5, "or a list of its addresses"),
    ],
)
def test_a_fault_of_one_of_several_addresses_is_named(written: object, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as refused:
        load({"registry_url": written})
    assert "secret" not in str(refused.value)


def test_settings_for_tls_ask_for_wss_in_all_addresses() -> None:
    with pytest.raises(SettingsError, match="tls_ca_file is set and registry_url begins with ws://"):
        load({"registry_url": ["ws://a", "ws://b"], "tls_ca_file": "/ca.pem"})


def test_a_comma_in_the_path_of_one_address_stays() -> None:
    assert load({"registry_url": "wss://host/a,b"}).registry_urls == ("wss://host/a,b",)


def test_a_simulation_that_names_no_product_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"simulate: .*H100-.*[^.], got '8xNothing'"):
        load({"registry_url": URL, "simulate": "8xNothing"})


def test_lists_and_labels_can_be_written_in_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AGENT_HUB_ROOTS", "/a:/b")
    monkeypatch.setenv("GPU_AGENT_LABELS", "zone=a, rack = 7")
    settings = load({"registry_url": URL})
    assert settings.hub_roots == (Path("/a"), Path("/b"))
    assert settings.owner.labels == {"zone": "a", "rack": "7"}


def test_a_label_without_a_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AGENT_LABELS", "zone")
    with pytest.raises(SettingsError, match="write name=value"):
        load({"registry_url": URL})


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"zone": ""},
        {"zone": "a\x1b[31m"},
        {"zone": "x" * 2000},
        {f"label-{n}": "x" for n in range(300)},
    ],
    ids=["no name", "no value", "steers a terminal", "too long", "too many"],
)
def test_labels_that_no_registry_would_take_are_refused_here(labels: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="labels"):
        load({"registry_url": URL, "labels": labels})


@pytest.mark.parametrize(
    "stated",
    [{"labels": {"zone": TOKEN}}, {"labels": {TOKEN: "a"}}, {"endpoint": f"http://h/?t={TOKEN}"}],
    ids=["a label's value", "a label's name", "the endpoint"],
)
def test_no_token_gets_into_values_that_the_registry_shows(stated: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="this holds a token"):
        load({"registry_url": URL, **stated})


@pytest.mark.parametrize("query", ["token=x", "a=1&api_key=x", "Password=x", "client-secret=x", "auth=x"])
def test_a_registry_url_with_a_secret_is_refused(query: str) -> None:
    with pytest.raises(SettingsError, match="no credentials go into a URL"):
        load({"registry_url": f"ws://host:8080/ws/node?{query}"})


def loaded(folder: Path, text: str = "") -> PublicJobsSettings:
    path = folder / "agent.toml"
    path.write_text(text)
    return load({"registry_url": URL}, config=path).public_jobs


def test_what_is_not_set_asks_for_nothing(tmp_path: Path) -> None:
    limits = loaded(tmp_path)
    assert limits == PublicJobsSettings()
    assert (limits.schedule, limits.max_temperature_c, limits.pause_while_in_use) == ((), None, False)


def test_a_table_of_the_file_is_read_and_a_variable_replaces_one_key_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_AGENT_PUBLIC_JOBS__MAX_TEMPERATURE_C", "70")
    limits = loaded(tmp_path, '[public_jobs]\nschedule = ["sat-sun"]\nmax_temperature_c = 80\n')
    assert (limits.schedule, limits.max_temperature_c) == (("sat-sun",), 70)


def test_lists_are_written_with_signs_between_in_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_AGENT_PUBLIC_JOBS__SCHEDULE", "mon,tue 18:00-08:00; sat-sun;")
    monkeypatch.setenv("GPU_AGENT_PUBLIC_JOBS__OWN_PROGRAMS", "ollama, vllm")
    limits = loaded(tmp_path)
    assert limits.schedule == ("mon,tue 18:00-08:00", "sat-sun")
    assert limits.own_programs == ("ollama", "vllm")


def test_a_fault_names_the_line_of_the_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.toml:2: public_jobs\.schedule\.0: .*'fry' is no day"):
        loaded(tmp_path, '[public_jobs]\nschedule = ["mon-fry"]\n')


def test_an_unknown_key_of_the_table_names_its_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.toml:2: 'max_temperature' .* 'max_temperature_c'"):
        loaded(tmp_path, "[public_jobs]\nmax_temperature = 80\n")


@pytest.mark.parametrize("name", ["Mars/Olympus", "../../etc/passwd", "", "x\0y"])
def test_a_time_zone_that_the_machine_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="write it like Europe/Berlin"):
        PublicJobsSettings(time_zone=name)


def test_a_machine_without_time_zones_differs_from_a_wrong_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tzdata", None)
    zoneinfo.reset_tzpath([tmp_path])
    ZoneInfo.clear_cache()
    try:
        with pytest.raises(ValidationError, match=r"this machine has no time zones; install .* tzdata"):
            PublicJobsSettings(time_zone="Europe/Berlin")
    finally:
        zoneinfo.reset_tzpath()


NAMED = {"registry_url": "ws://r"}


@pytest.mark.parametrize("group", ["", "a b", "a\n", "-x"])
def test_what_can_be_no_group_is_refused_with_the_settings(group: str) -> None:
    with pytest.raises(SettingsError, match="a group is a name or a number"):
        load({**NAMED, "socket_group": group})


def test_the_place_of_a_unit_is_taken_unless_another_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert systemd_socket_path() is None
    assert load(NAMED).socket is None
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/gpu-agent:/run/more")
    assert load(NAMED).socket == Path("/run/gpu-agent/agent.sock")
    assert load({**NAMED, "socket": "/x"}).socket == Path("/x")
