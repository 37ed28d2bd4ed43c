import pytest

from gpu_agent.cli.main import main
from tests.cli.stand_in import standing_in

LINK = {"path": "/signin?code=abc", "expires_at": 1.0}


def test_on_the_registrys_machine_it_is_a_link_that_signs_in(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with standing_in({"POST /v1/sign-in-links": LINK}) as registry:
        assert main(["registry", "page", "--server", registry.api]) == 0
    assert capsys.readouterr().out == f"{registry.api}/signin?code=abc\n"


def test_from_elsewhere_no_link_is_made_that_would_not_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with standing_in({}) as registry:
        monkeypatch.setattr("gpu_agent.cli.registry.page.is_this_machine", lambda _: False)
        assert main(["registry", "page", "--server", registry.api]) == 0
    assert capsys.readouterr().out == f"{registry.api}/\nSign in there with an operator token.\n"
