import pytest

from gpu_agent.runtime.redaction import REDACTED, holds_token, sounds_secret, without_secrets


@pytest.mark.parametrize("kind", ["gpuj", "gpun", "gpuo"])
def test_a_token_keeps_its_id_and_loses_its_secret(kind: str) -> None:
    said = without_secrets(f"?token={kind}_0123abcd_AbC-_9&x=1")
    assert said == f"?token={kind}_0123abcd_{REDACTED}&x=1"


def test_words_without_a_token_stay() -> None:
    assert without_secrets("gpu_agent.node, gpuj_ of nothing") == "gpu_agent.node, gpuj_ of nothing"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("proxy http://me:s3cret@proxy:3128 refused", f"proxy http://me:{REDACTED}@proxy:3128 refused"),
        ("socks5://me:s3cret@[::1]:1080", f"socks5://me:{REDACTED}@[::1]:1080"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
    ],
)
def test_a_password_in_a_url_is_taken_out(said: str, shown: str) -> None:
    assert without_secrets(said) == shown


@pytest.mark.parametrize(("text", "holds"), [("x gpun_0123abcd_AbC", True), ("gpun_ of nothing", False)])
def test_a_token_is_seen_wherever_it_stands(text: str, *, holds: bool) -> None:
    assert holds_token(text) is holds


@pytest.mark.parametrize(
    ("name", "secret"),
    [("password", True), ("Api-Key", True), ("hf_token", True), ("zone", False), ("keyboard", False)],
)
def test_names_of_secrets_are_known(name: str, *, secret: bool) -> None:
    assert sounds_secret(name) is secret
