from tools.metrics_docs import DOCUMENT, generated


def test_the_metrics_page_is_generated_from_the_code() -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == generated(written), "run `make reference`"
    assert "`gpu_registry_heartbeats_total` | counter |" in written
    assert "`gpu_agent_connected` | gauge |" in written
