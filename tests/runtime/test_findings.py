import pytest

from gpu_agent.runtime.findings import Finding, Verdict, fail, ok, skipped, warn

SECRET = "gpuj_3f9a01bc_AbCdEfGhIjKlMnOpQrStUvWxYz012345"


@pytest.mark.parametrize(
    ("finding", "verdict", "mend"),
    [
        (ok("DNS", "found"), Verdict.OK, None),
        (warn("clock", "late", "set it"), Verdict.WARN, "set it"),
        (fail("TCP", "closed", "open it"), Verdict.FAIL, "open it"),
        (skipped("TLS", "not tried"), Verdict.SKIPPED, None),
    ],
)
def test_what_is_wrong_always_comes_with_its_mend(
    finding: Finding, verdict: Verdict, mend: str | None
) -> None:
    assert (finding.verdict, finding.mend) == (verdict, mend)


def test_a_token_never_stands_in_a_finding() -> None:
    finding = fail("credential", f"{SECRET} is refused", f"write another than {SECRET}")
    assert SECRET not in repr(finding)
    assert "gpuj_3f9a01bc_" in finding.detail
