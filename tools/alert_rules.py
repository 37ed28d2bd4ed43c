"""Prometheus' alert rules for both components: one table, and the files that are written from it.

    python -m tools.alert_rules     write docs/monitoring/alerts.yml and tables of docs/reference/alerts.md

To add a rule: a row here, a case in tests/monitoring/test_alert_rules.py, and `make reference`. A summary
says what is wrong, in words for the person that it wakes, and where; the next step is the same each time.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.page_links import linked

ROOT = Path(__file__).parent.parent
RULES = ROOT / "docs" / "monitoring" / "alerts.yml"
DOCUMENT = ROOT / "docs" / "reference" / "alerts.md"

_HEAD = """\
# Alerts on GPU machines, their agents, a registry and its instances. Written by tools/alert_rules.py.
# The rules expect the scrape jobs gpu-agent and gpu-registry: see docs/howto/monitoring.md.
"""
_MARK = re.compile(r"(<!-- generated: alerts of (\w+) -->\n).*?(<!-- end generated -->)", re.DOTALL)
_RANGE = re.compile(r"\[(\d+)([smhd])\]")
_SECONDS = re.compile(r"<(\d+) s>")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SHORTEST_RANGE_SECONDS, SHORTEST_AGE_SECONDS = 5, 4
"""In a copy with shorter times: a rate needs two samples, and a busy machine reads its GPUs late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One alert."""

    name: str
    severity: Literal["critical", "warning"]
    """`critical`: look now, jobs fail or a machine is out; `warning`: look today."""
    expr: str
    """In PromQL; `<60 s>` stands for a number of seconds that a copy with shorter times shortens too."""
    for_seconds: int = 0
    summary: str
    next_step: str
    docs: str
    """The page, as it lies below docs/ and on a machine that has the package."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rules about one subject."""

    name: str
    rules: tuple[Rule, ...]


_GPU = "GPU {{ $labels.gpu }} of {{ $labels.Hostname }}"
_AT = "{{ $labels.instance }}"
_HEALTH = "docs/reference/gpu-health.md"
_TROUBLE = "docs/howto/troubleshooting.md"
_STATUSES = "docs/reference/statuses.md"
_DISPATCH = "docs/explanation/dispatch.md"
_INSTANCES = "docs/howto/three-machines.md"
_NOT_OF_ONE_GPU = "nvml_hung|collector_hung|driver_broken|nvml_child_died|no_driver"
"""Reasons that all GPUs of a machine have at once: rules of the driver report them once."""
_OF_A_BROKEN_DRIVER = "driver_broken|nvml_child_died|no_driver"
"""Reasons of a driver that answers and cannot be read, or is gone: the age of its readings grows, too."""
_REFUSED_FOR_GOOD = (
    "GPU_REQUIRED|INVALID_CAPABILITY_SCHEMA|NODE_ID_CONFLICT|INVALID_MESSAGE|UNAUTHORIZED|FORBIDDEN|"
    "SIMULATED_NODE_REFUSED|INTERNAL_ERROR"
)
"""The codes that end only when somebody changes something."""

MACHINES = Group(
    "machines",
    (
        Rule(
            name="GpuLost",
            severity="critical",
            expr='gpu_agent_gpu_health{health="lost"} == 1',
            summary=f"{_GPU} is lost: no job can use it",
            next_step="Run `gpu-agent status` there: it names the reason and the action, most often a "
            "reboot.",
            docs=_HEALTH,
        ),
        Rule(
            name="GpuNotUsable",
            severity="critical",
            expr="gpu_agent_gpu_health_reason "
            'and on (instance, UUID) gpu_agent_gpu_health{health="unknown"} == 1 '
            f'unless on (instance, UUID) gpu_agent_gpu_health_reason{{reason=~"{_NOT_OF_ONE_GPU}"}}',
            for_seconds=120,
            summary=f"{_GPU} takes no jobs: {{{{ $labels.reason }}}}",
            next_step="Look up the reason on the page: it says what to do.",
            docs=_HEALTH,
        ),
        Rule(
            name="GpuDegraded",
            severity="warning",
            expr="gpu_agent_gpu_health_reason unless on (instance, UUID) "
            'gpu_agent_gpu_health{health=~"lost|unknown"} == 1',
            for_seconds=300,
            summary=f"{_GPU} works with a fault: {{{{ $labels.reason }}}}",
            next_step="Look up the reason on the page. Drain the node before you reset or reseat the GPU.",
            docs=_HEALTH,
        ),
        Rule(
            name="GpuPcieReplays",
            severity="warning",
            expr="rate(DCGM_FI_DEV_PCIE_REPLAY_COUNTER[10m]) * 60 > 8",
            for_seconds=300,
            summary=f"the PCIe link of {_GPU} repeats {{{{ $value | printf `%.0f` }}}} packets a minute",
            next_step="Reseat the GPU and check its riser. DCGM, too, calls more than 8 a minute a fault.",
            docs="docs/reference/gpus.md",
        ),
        Rule(
            name="GpuDriverHangs",
            severity="critical",
            expr="gpu_agent_gpu_reading_age_seconds > <60 s> "
            f'unless on (instance) gpu_agent_gpu_health_reason{{reason=~"{_OF_A_BROKEN_DRIVER}"}}',
            summary=f"no {{{{ $labels.vendor }}}} GPU of {_AT} has been read for a minute: the driver hangs",
            next_step="Look for Xid lines in `dmesg` there. Reboot the machine if the driver stays silent.",
            docs=_TROUBLE,
        ),
        Rule(
            name="GpuDriverBroken",
            severity="critical",
            expr='gpu_agent_driver{outcome="driver_broken"} == 1 '
            'unless on (instance) (gpu_agent_gpu_health_reason{reason=~"nvml_hung|collector_hung"} '
            f'unless on (instance) gpu_agent_gpu_health_reason{{reason=~"{_OF_A_BROKEN_DRIVER}"}}) '
            'or gpu_agent_driver{outcome="no_driver"} == 1 '
            'and on (instance) gpu_agent_gpu_health_reason{reason="no_driver"}',
            for_seconds=60,
            summary=f"the GPU driver of {_AT} does not work",
            next_step="Run `gpu-agent probe` there: it says why, and what to do.",
            docs=_TROUBLE,
        ),
        Rule(
            name="MachineCheckFails",
            severity="warning",
            # A check's scope is a GPU's UUID where it is of one: a lost GPU fails them all.
            expr="gpu_agent_check_ok == 0 unless on (instance, scope) label_replace("
            'gpu_agent_gpu_health{health="lost"} == 1, "scope", "$1", "UUID", "(.*)")',
            for_seconds=600,
            summary=f"the check {{{{ $labels.check }}}} of {_AT} fails ({{{{ $labels.scope }}}})",
            next_step="Run `gpu-agent status` there: it says what the check found.",
            docs="docs/howto/return-to-service.md",
        ),
        Rule(
            name="AgentNotConnected",
            severity="critical",
            expr="gpu_agent_connected == 0",
            for_seconds=120,
            summary=f"the agent of {_AT} has no session with a registry: the machine gets no jobs",
            next_step="Run `gpu-agent status` there, then `gpu-agent doctor`: they say why.",
            docs=_TROUBLE,
        ),
        Rule(
            name="AgentCannotStoreItsIdentity",
            severity="warning",
            expr="gpu_agent_state_ok == 0",
            for_seconds=300,
            summary=f"the state directory of {_AT} cannot be written: after a restart the node has another "
            "id",
            next_step="Make room on its disk, or mount it writable again. `gpu-agent status` names the "
            "directory.",
            docs=_TROUBLE,
        ),
        Rule(
            name="AgentSettingsNotInForce",
            severity="warning",
            expr="gpu_agent_settings_ok == 0",
            for_seconds=600,
            summary=f"the agent of {_AT} runs with other settings than those in its file",
            next_step="`gpu-agent status` there says which line is wrong, or that a restart is needed.",
            docs="docs/reference/settings.md",
        ),
        Rule(
            name="AgentGone",
            severity="critical",
            expr='up{job="gpu-agent"} == 0',
            for_seconds=120,
            summary=f"{_AT} answers no scrape: the machine or its agent is down",
            next_step="Reach the machine. There, `systemctl status gpu-agent` and `gpu-agent doctor` say "
            "why.",
            docs=_TROUBLE,
        ),
    ),
)
REGISTRY = Group(
    "registry",
    (
        Rule(
            name="RegistryGone",
            severity="critical",
            expr='up{job="gpu-registry"} == 0',
            for_seconds=120,
            summary=f"the registry at {_AT} answers no scrape: it is down, or refuses the scraper's token",
            next_step="Run `systemctl status gpu-registry` there. Jobs that run go on meanwhile.",
            docs=_TROUBLE,
        ),
        Rule(
            name="RegistryNotReady",
            severity="critical",
            expr="gpu_registry_ready == 0",
            for_seconds=60,
            summary=f"the registry at {_AT} is not ready",
            next_step="Ask its /readyz: each check says what it lacks.",
            docs=_TROUBLE,
        ),
        Rule(
            name="RegistryDoesNotStore",
            severity="critical",
            expr="rate(gpu_registry_save_failures_total[5m]) > 0",
            for_seconds=120,
            summary=f"the registry at {_AT} cannot store changes: it refuses claims and registrations",
            next_step="Look for `store_failing` in its log. Free or replace the disk; what waited is then "
            "stored.",
            docs=_TROUBLE,
        ),
        Rule(
            name="RegistryStoreSlow",
            severity="warning",
            expr="histogram_quantile(0.99, sum by (job, instance, le) "
            "(rate(gpu_registry_commit_seconds_bucket[5m]))) > 1",
            for_seconds=300,
            summary=f"commits of the registry at {_AT} take over a second: every claim waits for one",
            next_step="Look at the load of its disk, or at etcd's members and the network between them.",
            docs="docs/explanation/durability.md",
        ),
        Rule(
            name="RegistryLoopStalls",
            severity="warning",
            expr="histogram_quantile(0.99, sum by (job, instance, le) "
            "(rate(gpu_registry_event_loop_lag_seconds_bucket[5m]))) > 0.5",
            for_seconds=300,
            summary=f"the registry at {_AT} is late by over half a second: nodes may seem silent",
            next_step="Give it more CPU, or end what else runs on the machine. Then think of gateways.",
            docs="docs/explanation/scale.md",
        ),
        Rule(
            name="RegistryFaults",
            severity="warning",
            expr='sum by (job, instance) (increase(gpu_registry_http_failures_total{status="500"}[15m])) > 0',
            summary=f"the registry at {_AT} failed to answer a request: a bug",
            next_step="Report it with the lines of that moment from the registry's log.",
            docs="docs/reference/logs.md",
        ),
        Rule(
            name="RegistryCertificateExpires",
            severity="warning",
            expr="gpu_registry_certificate_expires_timestamp_seconds - time() < 14 * 86400",
            summary=f"the certificate of {_AT} ends in {{{{ $value | humanizeDuration }}}}: then nodes "
            "refuse it",
            next_step="Renew it. The registry takes the new files by itself.",
            docs="docs/howto/security.md",
        ),
        Rule(
            name="NodeLost",
            severity="critical",
            expr="sum by (job, instance) "
            '(increase(gpu_registry_status_changes_total{reason_code="heartbeat_timeout"}[10m])) > 0',
            summary="{{ $value | printf `%.0f` }} node(s) fell silent in the last 10 minutes; their "
            "claims are lost",
            next_step="`gpu-agent registry node list --status offline` names them. Are the machines up?",
            docs=_STATUSES,
        ),
        Rule(
            name="ManyNodesLost",
            severity="critical",
            expr="sum by (job, instance) "
            '(increase(gpu_registry_status_changes_total{reason_code="heartbeat_timeout"}[10m])) '
            "> 0.1 * sum by (job, instance) (gpu_registry_nodes) > 2",
            summary="over a tenth of all nodes fell silent within 10 minutes",
            next_step="Look for one cause: a switch, a rack's power, DNS, a firewall, the registry's own "
            "network.",
            docs=_STATUSES,
        ),
        Rule(
            name="NodesDegraded",
            severity="warning",
            expr='gpu_registry_nodes{status="degraded"} > 0',
            for_seconds=600,
            summary="{{ $value }} node(s) are degraded and get no jobs",
            next_step="`gpu-agent registry node list --status degraded` names each with its reason.",
            docs=_STATUSES,
        ),
        Rule(
            name="NoNodeTakesJobs",
            severity="critical",
            expr="gpu_registry_nodes_open == 0 and on (job, instance) "
            "sum by (job, instance) (gpu_registry_nodes) > 0",
            for_seconds=120,
            summary="no node may take jobs",
            next_step="`gpu-agent registry node list` shows why each is out: offline, degraded, drained, "
            "cordoned.",
            docs=_TROUBLE,
        ),
        Rule(
            name="GpusNotUsable",
            severity="warning",
            expr='sum by (job, instance, name) (gpu_registry_gpus{health=~"lost|unknown"}) > 0',
            for_seconds=600,
            summary="{{ $value }} GPU(s) {{ $labels.name }} take no jobs",
            next_step="`gpu-agent registry node show ID` names each GPU's reason. The same agents' own "
            "alerts say more.",
            docs=_HEALTH,
        ),
        Rule(
            name="JobsWaitLong",
            severity="warning",
            expr="gpu_registry_longest_wait_seconds > <3600 s>",
            summary="a job has waited for {{ $value | humanizeDuration }}",
            next_step="`gpu-agent registry queue` names it, and `registry explain job` with its "
            "demands what it lacks.",
            docs=_DISPATCH,
        ),
        Rule(
            name="ClaimsLost",
            severity="warning",
            expr='sum by (job, instance) (increase(gpu_registry_claim_events_total{event="lost"}[10m])) > 0',
            summary="{{ $value | printf `%.0f` }} claim(s) were lost with their nodes in the last 10 minutes",
            next_step="The schedulers must start these jobs again. `claim_lost` in the events names them.",
            docs=_DISPATCH,
        ),
        Rule(
            name="ClaimsIdle",
            severity="warning",
            expr="gpu_registry_claims_idle > 0",
            for_seconds=300,
            summary="{{ $value }} claim(s) hold GPUs that nobody uses",
            next_step="`claim_idle` in the events names job and owner. Ask them, or release the claim.",
            docs=_DISPATCH,
        ),
        Rule(
            name="GpusUsedWithoutClaim",
            severity="warning",
            expr="gpu_registry_gpus_used_without_claim > 0",
            for_seconds=300,
            summary="programs run on {{ $value }} GPU(s) that nobody claimed",
            next_step="`gpu_used_without_claim` in the events names node and GPU. Jobs there may lack "
            "memory.",
            docs=_DISPATCH,
        ),
        Rule(
            name="GpusHeld",
            severity="warning",
            expr="gpu_registry_held_gpus > 0",
            for_seconds=3600,
            summary="{{ $value }} GPU(s) stay held, for their claims ended and their jobs still run",
            next_step="End these jobs on their nodes, or release the claim where nothing runs any more.",
            docs=_DISPATCH,
        ),
        Rule(
            name="AlarmsNotDelivered",
            severity="warning",
            expr="increase(gpu_registry_notify_failures_total[15m]) > 0 "
            "unless on (job, instance, receiver) increase(gpu_registry_notify_messages_total[15m]) > 0",
            for_seconds=300,
            summary=f"the receiver {{{{ $labels.receiver }}}} of the registry at {_AT} takes no alarms",
            next_step="`gpu-agent registry notify list` says why, `registry notify test` tries again.",
            docs="docs/howto/alarms.md",
        ),
        Rule(
            name="NodesRefused",
            severity="warning",
            expr="sum by (job, instance, code) "
            f'(increase(gpu_registry_node_refusals_total{{code=~"{_REFUSED_FOR_GOOD}"}}[15m])) > 0',
            summary="the registry refuses a node: {{ $labels.code }}",
            next_step="Look for `node_register_refused` in its log, and run `gpu-agent doctor` on that "
            "machine.",
            docs="docs/reference/protocol.md",
        ),
        Rule(
            name="JoinTokensRefused",
            severity="warning",
            expr="sum by (job, instance, reason) "
            '(increase(gpu_registry_handshake_refusals_total{reason!="web_page"}[15m])) > 5',
            summary="{{ $value | printf `%.0f` }} nodes' connections were refused in 15 minutes: "
            "{{ $labels.reason }}",
            next_step="Look for `handshake_refused` in its log. An address of yours needs a new join token; "
            "another one tries yours.",
            docs="docs/howto/operating.md",
        ),
        Rule(
            name="OperatorsRefused",
            severity="warning",
            expr="sum by (job, instance) "
            '(increase(gpu_registry_http_failures_total{status="401"}[15m])) > 20',
            summary="{{ $value | printf `%.0f` }} requests came with a wrong operator token in 15 minutes",
            next_step="`operator_unauthorized` in the log names the addresses. Is it a script with an old "
            "token?",
            docs="docs/howto/operating.md",
        ),
    ),
)
INSTANCES = Group(
    "instances",
    (
        Rule(
            name="RegistryHasNoLeader",
            severity="critical",
            expr="sum by (job) (gpu_registry_instance_leads) == 0",
            for_seconds=30,
            summary="no instance of the registry leads: every change is refused",
            next_step="Look at etcd first: have its members a quorum, room and a network?",
            docs=_INSTANCES,
        ),
        Rule(
            name="RegistryHasSeveralLeaders",
            severity="critical",
            expr="sum by (job) (gpu_registry_instance_leads) > 1",
            for_seconds=60,
            summary="{{ $value }} instances of the registry say that they lead",
            next_step="Compare `store` in their settings: with another etcd or prefix an instance leads a "
            "registry of its own. Where it is the same, stop all but the one with the highest term.",
            docs=_INSTANCES,
        ),
        Rule(
            name="RegistryInstanceAlone",
            severity="warning",
            expr="gpu_registry_instance_linked == 0",
            for_seconds=30,
            summary=f"the instance {_AT} has no link to the leader: nodes leave it",
            next_step="Its log says why (`leader_not_reached`). Is `instance_listen` of the leader "
            "reachable?",
            docs=_INSTANCES,
        ),
        Rule(
            name="RegistryInstanceBehind",
            severity="warning",
            expr="gpu_registry_instance_copy_lag_seconds > <10 s>",
            for_seconds=60,
            summary=f"the copy of {_AT} is behind: a takeover there would first read all from etcd",
            next_step="Look at the load of that machine, and at its network to etcd.",
            docs="docs/explanation/scale.md",
        ),
        Rule(
            name="RegistryLeaderChangesOften",
            severity="warning",
            expr="sum by (job) (increase(gpu_registry_instance_takeovers_total[1h])) > 3",
            summary="the registry's leader changed {{ $value | printf `%.0f` }} times in an hour",
            next_step="Look at the leaders' logs, at etcd's disks and at the network between them.",
            docs=_INSTANCES,
        ),
    ),
)
GROUPS = (MACHINES, REGISTRY, INSTANCES)


def text(*, shorter: int = 1) -> str:
    """Write the rules as Prometheus reads them; `shorter` divides every time, for tests."""
    return _HEAD + "groups:\n" + "".join(line for group in GROUPS for line in _group(group, shorter))


def _group(group: Group, shorter: int) -> Iterator[str]:
    yield f"  - name: {group.name}\n    rules:\n"
    for rule in group.rules:
        yield f"      - alert: {rule.name}\n        expr: {_quoted(expression(rule, shorter=shorter))}\n"
        if rule.for_seconds:
            yield f"        for: {_duration(rule.for_seconds / shorter)}\n"
        yield f"        labels:\n          severity: {rule.severity}\n        annotations:\n"
        for name, words in (
            ("summary", rule.summary),
            ("description", rule.next_step),
            ("docs", rule.docs),
        ):
            yield f"          {name}: {_quoted(words)}\n"


def expression(rule: Rule, *, shorter: int = 1) -> str:
    """Write the rule's expression, with its times divided."""

    def shorten(found: re.Match[str]) -> str:
        seconds = int(found[1]) * _UNIT_SECONDS[found[2]]
        return found[0] if shorter == 1 else f"[{max(SHORTEST_RANGE_SECONDS, seconds // shorter)}s]"

    numbers = _SECONDS.sub(lambda found: f"{_age(int(found[1]), shorter):g}", rule.expr)
    return _RANGE.sub(shorten, numbers)


def added_seconds(rule: Rule, *, shorter: int) -> float:
    """How much later a rule fires than its copy with shorter times, by its `for` and its thresholds."""
    ages = [int(seconds) for seconds in _SECONDS.findall(rule.expr)]
    held = rule.for_seconds - rule.for_seconds / shorter
    return held + sum(seconds - _age(seconds, shorter) for seconds in ages)


def _age(seconds: int, shorter: int) -> float:
    return seconds if shorter == 1 else max(SHORTEST_AGE_SECONDS, seconds / shorter)


def _duration(seconds: float) -> str:
    if seconds < 1 or seconds % 1:
        return f"{round(seconds * 1000)}ms"
    for unit in ("h", "m"):
        if seconds % _UNIT_SECONDS[unit] == 0:
            return f"{seconds / _UNIT_SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "''") + "'"


def alerts_table(name: str) -> str:
    """Write one row for each rule of a group."""
    (group,) = (one for one in GROUPS if one.name == name)
    lines = ["| alert | severity | fires when | what to do |", "|---|---|---|---|"]
    for rule in group.rules:
        expr = expression(rule).replace("|", "\\|")
        held = f", for {_duration(rule.for_seconds)}" if rule.for_seconds else ""
        lines.append(
            f"| `{rule.name}` | {rule.severity} | `{expr}`{held} | {rule.next_step} See {rule.docs} |"
        )
    return linked("\n".join(lines) + "\n")


def generated(document: str) -> str:
    """Return the document with its tables written from the code."""
    return _MARK.sub(lambda found: f"{found[1]}{alerts_table(found[2])}{found[3]}", document)


def main() -> int:
    """Write the rules and their page."""
    RULES.parent.mkdir(exist_ok=True)
    RULES.write_text(text(), encoding="utf-8")
    DOCUMENT.write_text(generated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
