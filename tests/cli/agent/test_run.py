import pytest

from gpu_agent.cli.main import main


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([], "--registry wss://"),
        (["--registry", "10.0.0.1:8080"], "ws://10.0.0.1:8080/ws/node"),
        (["--registry", "http://10.0.0.1:8080"], "ws://10.0.0.1:8080/ws/node"),
        (["--registry", "ws://127.0.0.1:1", "--simulate", "8xH10"], "H100-80GB"),
        (["--registry", "ws://127.0.0.1:1", "--config", "/nowhere/agent.toml"], "/nowhere/agent.toml"),
        (["--registry", "ws://127.0.0.1:1", "--log-level", "loud"], "debug"),
    ],
)
def test_a_wrong_setting_is_named_with_the_next_step(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPU_AGENT_REGISTRY_URL", raising=False)
    assert main(["run", *words]) == 4
    assert hint in capsys.readouterr().err
