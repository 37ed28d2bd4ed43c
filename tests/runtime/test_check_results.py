import pytest

from gpu_agent.runtime.check_results import CheckResult, CheckStatus, fail, ok, skipped, warn

SECRET = "gpuj_3f9a01bc_AbCdEfGhIjKlMnOpQrStUvWxYz012345"


@pytest.mark.parametrize(
    ("finding", "verdict", "fix"),
    [
        (ok("DNS", "found"), CheckStatus.OK, None),
        (warn("clock", "late", "set it"), CheckStatus.WARN, "set it"),
        (fail("TCP", "closed", "open it"), CheckStatus.FAIL, "open it"),
        (skipped("TLS", "not tried"), CheckStatus.SKIPPED, None),
    ],
)
def test_what_is_wrong_always_comes_with_its_fix(
    finding: CheckResult, verdict: CheckStatus, fix: str | None
) -> None:
    assert (finding.verdict, finding.fix) == (verdict, fix)


def test_a_token_never_stands_in_a_finding() -> None:
    finding = fail("credential", f"{SECRET} is refused", f"write another than {SECRET}")
    assert SECRET not in repr(finding)
    assert "gpuj_3f9a01bc_" in finding.detail
