"""The alert rules: Prometheus accepts them, each fires when it should, and their metrics exist."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpu_agent.node import metrics as node_metrics
from gpu_agent.server import metrics as server_metrics
from tests.monitoring.promtool import SUFFIXES, needs_promtool, promtool, without_labels
from tools import alert_rules
from tools.alert_rules import GROUPS, RULES, Rule

DOCS = Path(__file__).parents[2]
STEP_SECONDS = 30
"""Between two samples, and between two evaluations."""
BY_NAME = {rule.name: rule for group in GROUPS for rule in group.rules}
EXPOSED = {one.name for one in node_metrics.METRICS} | {
    one.full_name for one in (*server_metrics.METRICS, *server_metrics.INSTANCE_METRICS)
}
OF_PROMETHEUS = {"up"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What makes one alert fire, and end: series with samples in promtool's notation, every half minute."""

    ill: Mapping[str, str]
    sound: Mapping[str, str] = field(default_factory=dict)
    """Others, for which it must not fire."""
    silent_at: str
    """It does not fire yet then."""
    fires_at: str
    gone_at: str
    """The fault is over, and so is the alert; its series are still there."""
    labels: Mapping[str, str] = field(default_factory=dict)
    summary: str


GPU = {"instance": "a", "UUID": "GPU-1", "gpu": "3", "Hostname": "gpu-7"}
LEADER, STANDBY = {"job": "gpu-registry", "instance": "r"}, {"job": "gpu-registry", "instance": "s"}


def series(name: str, labels: Mapping[str, str], /, **more: str) -> str:
    written = ", ".join(f'{key}="{value}"' for key, value in {**labels, **more}.items())
    return f"{name}{{{written}}}"


def of_gpu(name: str, uuid: str = "GPU-1", /, **more: str) -> str:
    return series(name, {**GPU, "UUID": uuid}, **more)


def of_registry(name: str, /, **more: str) -> str:
    return series(f"gpu_registry_{name}", LEADER, **more)


CASES: Mapping[str, Case] = {
    "GpuLost": Case(
        ill={of_gpu("gpu_agent_gpu_health", health="lost"): "0x4 1x40 0x10"},
        sound={
            of_gpu("gpu_agent_gpu_health", "GPU-2", health="lost"): "0x44",
            of_gpu("gpu_agent_gpu_health", "GPU-2", health="degraded"): "1x44",
        },
        silent_at="2m",
        fires_at="2m30s",
        gone_at="23m",
        labels={**GPU, "health": "lost"},
        summary="GPU 3 of gpu-7 is lost: no job can use it",
    ),
    "GpuNotUsable": Case(
        ill={
            of_gpu("gpu_agent_gpu_health", health="unknown"): "0x4 1x40 0x10",
            of_gpu("gpu_agent_gpu_health_reason", reason="gpu_inaccessible"): "_x4 1x40 stale",
        },
        sound={
            of_gpu("gpu_agent_gpu_health", "GPU-2", health="unknown"): "1x44",
            of_gpu("gpu_agent_gpu_health_reason", "GPU-2", reason="nvml_hung"): "1x44",
            of_gpu("gpu_agent_gpu_health_reason", "GPU-2", reason="ecc_uncorrected"): "1x44",
            of_gpu("gpu_agent_gpu_health", "GPU-3", health="unknown"): "0x44",
            of_gpu("gpu_agent_gpu_health_reason", "GPU-3", reason="hw_slowdown"): "1x44",
        },
        silent_at="4m",
        fires_at="5m",
        gone_at="23m",
        labels={**GPU, "reason": "gpu_inaccessible"},
        summary="GPU 3 of gpu-7 takes no jobs: gpu_inaccessible",
    ),
    "GpuDegraded": Case(
        ill={
            of_gpu("gpu_agent_gpu_health", health="lost"): "0x44",
            of_gpu("gpu_agent_gpu_health_reason", reason="hw_slowdown"): "_x4 1x40 stale",
        },
        sound={
            of_gpu("gpu_agent_gpu_health", "GPU-2", health="lost"): "1x44",
            of_gpu("gpu_agent_gpu_health_reason", "GPU-2", reason="xid_79"): "1x44",
        },
        silent_at="6m30s",
        fires_at="7m30s",
        gone_at="23m",
        labels={**GPU, "reason": "hw_slowdown"},
        summary="GPU 3 of gpu-7 works with a fault: hw_slowdown",
    ),
    "GpuPcieReplays": Case(
        ill={of_gpu("DCGM_FI_DEV_PCIE_REPLAY_COUNTER"): "0+10x80 800x30"},
        sound={of_gpu("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "GPU-2"): "5000+3x80"},
        silent_at="4m",
        fires_at="20m",
        gone_at="47m",
        labels=GPU,
        summary="the PCIe link of GPU 3 of gpu-7 repeats 20 packets a minute",
    ),
    "GpuDriverHangs": Case(
        ill={'gpu_agent_gpu_reading_age_seconds{instance="a", vendor="amd"}': "1x8 15+30x40 1x10"},
        sound={
            'gpu_agent_gpu_reading_age_seconds{instance="a", vendor="nvidia"}': "1x44",
            'gpu_agent_gpu_reading_age_seconds{instance="b", vendor="nvidia"}': "1x8 15+30x40",
            series(
                "gpu_agent_gpu_health_reason", {**GPU, "instance": "b"}, reason="driver_broken"
            ): "_x9 1x40",
        },
        silent_at="5m",
        fires_at="6m",
        gone_at="25m",
        labels={"instance": "a", "vendor": "amd"},
        summary="no amd GPU of a has been read for a minute: the driver hangs",
    ),
    "GpuDriverBroken": Case(
        ill={
            'gpu_agent_driver{instance="a", outcome="driver_broken"}': "0x4 1x40 0x10",
            'gpu_agent_gpu_reading_age_seconds{instance="a", vendor="nvidia"}': "1x4 1+30x40 1x10",
            of_gpu("gpu_agent_gpu_health_reason", reason="driver_broken"): "_x4 1x40 stale",
            # One attempt took too long: the reason stays until the GPUs are read.
            of_gpu("gpu_agent_gpu_health_reason", reason="nvml_hung"): "_x10 1x34 stale",
        },
        sound={
            'gpu_agent_driver{instance="b", outcome="no_driver"}': "1x44",
            'gpu_agent_driver{instance="c", outcome="driver_broken"}': "1x44",
            series("gpu_agent_gpu_health_reason", {**GPU, "instance": "c"}, reason="nvml_hung"): "1x44",
        },
        silent_at="3m",
        fires_at="20m",
        gone_at="23m",
        labels={"instance": "a", "outcome": "driver_broken"},
        summary="the GPU driver of a does not work",
    ),
    "MachineCheckFails": Case(
        ill={'gpu_agent_check_ok{instance="a", check="gpu_count", scope="node"}': "1x4 0x80 1x10"},
        sound={
            'gpu_agent_check_ok{instance="a", check="pcie", scope="GPU-1"}': "1x84",
            'gpu_agent_check_ok{instance="a", check="pcie_link", scope="GPU-2"}': "0x84",
            of_gpu("gpu_agent_gpu_health", "GPU-2", health="lost"): "1x84",
        },
        silent_at="12m",
        fires_at="13m",
        gone_at="43m",
        labels={"instance": "a", "check": "gpu_count", "scope": "node"},
        summary="the check gpu_count of a fails (node)",
    ),
    "AgentNotConnected": Case(
        ill={'gpu_agent_connected{instance="a"}': "1x4 0x40 1x10"},
        sound={'gpu_agent_connected{instance="b"}': "1x10 0x2 1x40"},
        silent_at="4m",
        fires_at="5m",
        gone_at="23m",
        labels={"instance": "a"},
        summary="the agent of a has no session with a registry: the machine gets no jobs",
    ),
    "AgentCannotStoreItsIdentity": Case(
        ill={'gpu_agent_state_ok{instance="a"}': "1x4 0x40 1x10"},
        sound={'gpu_agent_state_ok{instance="b"}': "1x44"},
        silent_at="7m",
        fires_at="8m",
        gone_at="23m",
        labels={"instance": "a"},
        summary="the state directory of a cannot be written: after a restart the node has another id",
    ),
    "AgentSettingsNotInForce": Case(
        ill={'gpu_agent_settings_ok{instance="a"}': "1x4 0x80 1x10"},
        sound={'gpu_agent_settings_ok{instance="b"}': "1x84"},
        silent_at="12m",
        fires_at="13m",
        gone_at="43m",
        labels={"instance": "a"},
        summary="the agent of a runs with other settings than those in its file",
    ),
    "AgentGone": Case(
        ill={'up{job="gpu-agent", instance="b"}': "1x4 0x40 1x10"},
        sound={
            'up{job="gpu-agent", instance="a"}': "1x44",
            'up{job="node", instance="b"}': "0x44",
        },
        silent_at="4m",
        fires_at="5m",
        gone_at="23m",
        labels={"job": "gpu-agent", "instance": "b"},
        summary="b answers no scrape: the machine or its agent is down",
    ),
    "RegistryGone": Case(
        ill={series("up", LEADER): "1x4 0x40 1x10"},
        sound={series("up", STANDBY): "1x44", 'up{job="gpu-agent", instance="b"}': "0x44"},
        silent_at="4m",
        fires_at="5m",
        gone_at="23m",
        labels=LEADER,
        summary="the registry at r answers no scrape: it is down, or refuses the scraper's token",
    ),
    "RegistryNotReady": Case(
        ill={of_registry("ready"): "1x4 0x40 1x10"},
        sound={series("gpu_registry_ready", STANDBY): "1x44"},
        silent_at="3m",
        fires_at="4m",
        gone_at="23m",
        labels=LEADER,
        summary="the registry at r is not ready",
    ),
    "RegistryDoesNotStore": Case(
        ill={of_registry("save_failures_total"): "0x4 0+1x40 40x20"},
        sound={series("gpu_registry_save_failures_total", STANDBY): "7x44"},
        silent_at="4m",
        fires_at="6m",
        gone_at="28m",
        labels=LEADER,
        summary="the registry at r cannot store changes: it refuses claims and registrations",
    ),
    "RegistryStoreSlow": Case(
        ill={
            of_registry("commit_seconds_bucket", le="1.0"): "0x60 0x20",
            of_registry("commit_seconds_bucket", le="10.0"): "0+5x60 300x20",
            of_registry("commit_seconds_bucket", le="+Inf"): "0+5x60 300x20",
        },
        sound={
            series("gpu_registry_commit_seconds_bucket", STANDBY, le="0.01"): "0+5x60",
            series("gpu_registry_commit_seconds_bucket", STANDBY, le="+Inf"): "0+5x60",
        },
        silent_at="4m",
        fires_at="10m",
        gone_at="35m30s",
        labels=LEADER,
        summary="commits of the registry at r take over a second: every claim waits for one",
    ),
    "RegistryLoopStalls": Case(
        ill={
            of_registry("event_loop_lag_seconds_bucket", le="0.5"): "0+90x60 5400x20",
            of_registry("event_loop_lag_seconds_bucket", le="1.0"): "0+100x60 6000x20",
            of_registry("event_loop_lag_seconds_bucket", le="+Inf"): "0+100x60 6000x20",
        },
        sound={
            series("gpu_registry_event_loop_lag_seconds_bucket", STANDBY, le="0.05"): "0+100x60",
            series("gpu_registry_event_loop_lag_seconds_bucket", STANDBY, le="+Inf"): "0+100x60",
        },
        silent_at="4m",
        fires_at="10m",
        gone_at="35m30s",
        labels=LEADER,
        summary="the registry at r is late by over half a second: nodes may seem silent",
    ),
    "RegistryFaults": Case(
        ill={of_registry("http_failures_total", status="500"): "0x4 1x40"},
        sound={
            of_registry("http_failures_total", status="401"): "0+9x44",
            series("gpu_registry_http_failures_total", STANDBY, status="500"): "3x44",
        },
        silent_at="2m",
        fires_at="4m",
        gone_at="18m",
        labels=LEADER,
        summary="the registry at r failed to answer a request: a bug",
    ),
    "RegistryCertificateExpires": Case(
        ill={
            of_registry("certificate_expires_timestamp_seconds"): f"{14 * 86_400 + 600}x80 {90 * 86_400}x10"
        },
        sound={series("gpu_registry_certificate_expires_timestamp_seconds", STANDBY): f"{15 * 86_400}x80"},
        silent_at="10m",
        fires_at="11m",
        gone_at="40m30s",
        labels=LEADER,
        summary="the certificate of r ends in 13d 23h 59m 0s: then nodes refuse it",
    ),
    "NodeLost": Case(
        ill={
            of_registry(
                "status_changes_total",
                **{"from": "ready", "to": "offline", "reason_code": "heartbeat_timeout"},
            ): "0x4 1x80"
        },
        sound={
            series(
                "gpu_registry_status_changes_total",
                STANDBY,
                **{"from": "ready", "to": "offline", "reason_code": "unregistered"},
            ): "0+1x84"
        },
        silent_at="2m",
        fires_at="10m",
        gone_at="13m",
        labels=LEADER,
        summary="1 node(s) fell silent in the last 10 minutes; their claims are lost",
    ),
    "ManyNodesLost": Case(
        ill={
            of_registry("status_changes_total", to="offline", reason_code="heartbeat_timeout"): "0x4 5x80",
            of_registry("nodes", status="ready"): "40x4 35x80",
            of_registry("nodes", status="offline"): "0x4 5x80",
        },
        sound={
            series(
                "gpu_registry_status_changes_total", STANDBY, to="offline", reason_code="heartbeat_timeout"
            ): "0x4 5x80",
            series("gpu_registry_nodes", STANDBY, status="ready"): "400x84",
        },
        silent_at="2m",
        fires_at="10m",
        gone_at="13m",
        labels=LEADER,
        summary="over a tenth of all nodes fell silent within 10 minutes",
    ),
    "NodesDegraded": Case(
        ill={of_registry("nodes", status="degraded"): "0x4 2x80 0x10"},
        sound={of_registry("nodes", status="offline"): "9x84"},
        silent_at="12m",
        fires_at="13m",
        gone_at="43m",
        labels={**LEADER, "status": "degraded"},
        summary="2 node(s) are degraded and get no jobs",
    ),
    "NoNodeTakesJobs": Case(
        ill={
            of_registry("nodes_open"): "1x4 0x80 1x10",
            of_registry("nodes", status="ready"): "0x84",
            of_registry("nodes", status="offline"): "3x84",
        },
        sound={
            series("gpu_registry_nodes_open", STANDBY): "0x84",
            series("gpu_registry_nodes", STANDBY, status="ready"): "0x84",
        },
        silent_at="4m",
        fires_at="5m",
        gone_at="43m",
        labels=LEADER,
        summary="no node may take jobs",
    ),
    "GpusNotUsable": Case(
        ill={
            of_registry("gpus", name="NVIDIA L4", health="lost"): "0x4 1x80 0x10",
            of_registry("gpus", name="NVIDIA L4", health="unknown"): "0x4 2x80 0x10",
        },
        sound={of_registry("gpus", name="NVIDIA H100", health="degraded"): "4x84"},
        silent_at="12m",
        fires_at="13m",
        gone_at="43m",
        labels={**LEADER, "name": "NVIDIA L4"},
        summary="3 GPU(s) NVIDIA L4 take no jobs",
    ),
    "JobsWaitLong": Case(
        ill={of_registry("longest_wait_seconds"): "3540+30x20 0x10"},
        sound={series("gpu_registry_longest_wait_seconds", STANDBY): "3600x20"},
        silent_at="1m",
        fires_at="2m",
        gone_at="10m30s",
        labels=LEADER,
        summary="a job has waited for 1h 1m 0s",
    ),
    "ClaimsLost": Case(
        ill={of_registry("claim_events_total", event="lost"): "0x4 2x80"},
        sound={series("gpu_registry_claim_events_total", STANDBY, event="released"): "0+5x84"},
        silent_at="2m",
        fires_at="10m",
        gone_at="13m",
        labels=LEADER,
        summary="2 claim(s) were lost with their nodes in the last 10 minutes",
    ),
    "ClaimsIdle": Case(
        ill={of_registry("claims_idle"): "0x4 3x80 0x10"},
        sound={series("gpu_registry_claims_idle", STANDBY): "0x10 1x5 0x80"},
        silent_at="7m",
        fires_at="8m",
        gone_at="43m",
        labels=LEADER,
        summary="3 claim(s) hold GPUs that nobody uses",
    ),
    "GpusUsedWithoutClaim": Case(
        ill={of_registry("gpus_used_without_claim"): "0x4 1x80 0x10"},
        sound={series("gpu_registry_gpus_used_without_claim", STANDBY): "0x84"},
        silent_at="7m",
        fires_at="8m",
        gone_at="43m",
        labels=LEADER,
        summary="programs run on 1 GPU(s) that nobody claimed",
    ),
    "GpusHeld": Case(
        ill={of_registry("held_gpus"): "0x4 2x200 0x10"},
        sound={series("gpu_registry_held_gpus", STANDBY): "0x4 2x60 0x140"},
        silent_at="62m",
        fires_at="63m",
        gone_at="103m",
        labels=LEADER,
        summary="2 GPU(s) stay held, for their claims ended and their jobs still run",
    ),
    "AlarmsNotDelivered": Case(
        ill={
            of_registry("notify_failures_total", receiver="ops"): "0x4 0+1x80 80x40",
            of_registry("notify_messages_total", receiver="ops"): "7x84 8x40",
        },
        sound={
            of_registry("notify_failures_total", receiver="chat"): "0x4 0+1x80",
            of_registry("notify_messages_total", receiver="chat"): "0+1x84",
        },
        silent_at="7m",
        fires_at="9m",
        gone_at="43m",
        labels={**LEADER, "receiver": "ops"},
        summary="the receiver ops of the registry at r takes no alarms",
    ),
    "NodesRefused": Case(
        ill={of_registry("node_refusals_total", code="NODE_ID_CONFLICT"): "0x4 1x80"},
        sound={of_registry("node_refusals_total", code="REGISTRY_BUSY"): "0+1x84"},
        silent_at="2m",
        fires_at="5m",
        gone_at="18m",
        labels={**LEADER, "code": "NODE_ID_CONFLICT"},
        summary="the registry refuses a node: NODE_ID_CONFLICT",
    ),
    "JoinTokensRefused": Case(
        ill={of_registry("handshake_refusals_total", reason="unknown_token"): "0x4 0+1x80 80x40"},
        sound={
            of_registry("handshake_refusals_total", reason="no_token"): "0x4 1x80",
            of_registry("handshake_refusals_total", reason="web_page"): "0+9x84",
        },
        silent_at="4m",
        fires_at="20m",
        gone_at="58m",
        labels={**LEADER, "reason": "unknown_token"},
        summary="30 nodes' connections were refused in 15 minutes: unknown_token",
    ),
    "OperatorsRefused": Case(
        ill={of_registry("http_failures_total", status="401"): "0+1x84 84x40"},
        sound={series("gpu_registry_http_failures_total", STANDBY, status="401"): "0x4 9x80"},
        silent_at="8m",
        fires_at="20m",
        gone_at="57m",
        labels=LEADER,
        summary="30 requests came with a wrong operator token in 15 minutes",
    ),
    "RegistryHasNoLeader": Case(
        ill={
            series("gpu_registry_instance_leads", LEADER): "1x4 0x40 1x10",
            series("gpu_registry_instance_leads", STANDBY): "0x44",
        },
        sound={'gpu_registry_instance_leads{job="other", instance="t"}': "1x44"},
        silent_at="2m30s",
        fires_at="3m",
        gone_at="23m",
        labels={"job": "gpu-registry"},
        summary="no instance of the registry leads: every change is refused",
    ),
    "RegistryHasSeveralLeaders": Case(
        ill={
            series("gpu_registry_instance_leads", LEADER): "1x55",
            series("gpu_registry_instance_leads", STANDBY): "0x4 1x40 0x10",
        },
        sound={
            'gpu_registry_instance_leads{job="other", instance="t"}': "1x10 1 0x33",
            'gpu_registry_instance_leads{job="other", instance="u"}': "0x10 1 1x33",
        },
        silent_at="3m",
        fires_at="4m",
        gone_at="23m",
        labels={"job": "gpu-registry"},
        summary="2 instances of the registry say that they lead",
    ),
    "RegistryInstanceAlone": Case(
        ill={of_registry("instance_linked"): "1x4 0x40 1x10"},
        sound={series("gpu_registry_instance_linked", STANDBY): "1x44"},
        silent_at="2m30s",
        fires_at="3m",
        gone_at="23m",
        labels=LEADER,
        summary="the instance r has no link to the leader: nodes leave it",
    ),
    "RegistryInstanceBehind": Case(
        ill={of_registry("instance_copy_lag_seconds"): "0x4 30x40 0x10"},
        sound={series("gpu_registry_instance_copy_lag_seconds", STANDBY): "9x44"},
        silent_at="3m",
        fires_at="4m",
        gone_at="23m",
        labels=LEADER,
        summary="the copy of r is behind: a takeover there would first read all from etcd",
    ),
    "RegistryLeaderChangesOften": Case(
        ill={
            of_registry("instance_takeovers_total"): "0x10 1x10 2x10 3x120",
            series("gpu_registry_instance_takeovers_total", STANDBY): "0x15 1x10 2x120",
        },
        sound={'gpu_registry_instance_takeovers_total{job="other", instance="t"}': "9x10 10x120"},
        silent_at="10m",
        fires_at="60m",
        gone_at="72m",
        labels={"job": "gpu-registry"},
        summary="the registry's leader changed 5 times in an hour",
    ),
}

MORE = {
    "GpuDriverBroken": Case(
        ill={
            'gpu_agent_driver{instance="a", outcome="no_driver"}': "0x4 1x40 0x10",
            of_gpu("gpu_agent_gpu_health_reason", reason="no_driver"): "_x4 1x40 stale",
        },
        sound={'gpu_agent_driver{instance="b", outcome="no_driver"}': "1x44"},
        silent_at="3m",
        fires_at="20m",
        gone_at="23m",
        labels={"instance": "a", "outcome": "no_driver"},
        summary="the GPU driver of a does not work",
    ),
}
"""A driver that was removed at work; a machine that never had one is no fault."""


def test_the_files_are_those_that_the_table_gives() -> None:
    assert RULES.read_text(encoding="utf-8") == alert_rules.text()
    page = alert_rules.DOCUMENT.read_text(encoding="utf-8")
    assert page == alert_rules.generated(page)


@needs_promtool
@pytest.mark.parametrize("shorter", [1, 60])
def test_prometheus_accepts_the_rules_and_their_copies_with_shorter_times(
    tmp_path: Path, shorter: int
) -> None:
    rules = tmp_path / "alerts.yml"
    rules.write_text(alert_rules.text(shorter=shorter), encoding="utf-8")
    assert promtool("check", "rules", "--lint-fatal", rules).count("SUCCESS") == 1


def test_every_rule_has_a_case() -> None:
    assert CASES.keys() == BY_NAME.keys()


@needs_promtool
@pytest.mark.parametrize(("name", "case"), [*CASES.items(), *MORE.items()])
def test_an_alert_fires_when_it_should_while_it_should_and_for_nothing_else(
    tmp_path: Path, name: str, case: Case
) -> None:
    rule = BY_NAME[name]
    alert = {
        "exp_labels": {**case.labels, "severity": rule.severity},
        "exp_annotations": {"summary": case.summary, "description": rule.next_step, "docs": rule.docs},
    }
    moments = [
        {"eval_time": case.silent_at, "alertname": name, "exp_alerts": []},
        {"eval_time": case.fires_at, "alertname": name, "exp_alerts": [alert]},
        {"eval_time": case.gone_at, "alertname": name, "exp_alerts": []},
    ]
    samples = [{"series": one, "values": values} for one, values in {**case.ill, **case.sound}.items()]
    interval = f"{STEP_SECONDS}s"
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": interval,
        "tests": [{"interval": interval, "input_series": samples, "alert_rule_test": moments}],
    }
    tests = tmp_path / "tests.yml"
    tests.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    promtool("test", "rules", tests)


@pytest.mark.parametrize("rule", BY_NAME.values(), ids=lambda rule: rule.name)
def test_every_metric_of_a_rule_is_exposed(rule: Rule) -> None:
    named = set(re.findall(r"\b(?:gpu_\w+|DCGM_\w+|up)\b", without_labels(alert_rules.expression(rule))))
    assert named
    assert {SUFFIXES.sub("", name) for name in named} <= EXPOSED | OF_PROMETHEUS


@pytest.mark.parametrize("rule", BY_NAME.values(), ids=lambda rule: rule.name)
def test_a_rule_says_the_next_step_and_names_a_page_that_there_is(rule: Rule) -> None:
    assert (DOCS / rule.docs).is_file()
    assert "{{" not in rule.next_step
    assert rule.next_step.endswith((".", "?"))
