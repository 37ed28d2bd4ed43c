"""Grafana's dashboards: of the fleet, of one machine, of the registry. One table of panels each.

    python -m tools.dashboards              write docs/monitoring/fleet.json, node.json and registry.json

To add a panel: a row here, and `make reference`. Tests ask a real Prometheus each expression.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from tools.grafana import COLUMNS, GREEN, PLAIN, RED, YELLOW, Dashboard, Panel, Query, Steps, text

FOLDER = Path(__file__).parent.parent / "docs" / "monitoring"
_INTERVAL = "$__rate_interval"

_BAD_ABOVE_0: Steps = ((None, GREEN), (1, RED))
_ODD_ABOVE_0: Steps = ((None, GREEN), (1, YELLOW))
_GOOD_FROM_1: Steps = ((None, RED), (1, GREEN))
_HOT: Steps = ((None, GREEN), (80, YELLOW), (90, RED))
_FULL: Steps = ((None, GREEN), (90, YELLOW), (98, RED))
_LATE: Steps = ((None, GREEN), (0.05, YELLOW), (0.5, RED))

_YES_OR_NO = {"0": ("no", RED), "1": ("yes", GREEN)}
_SCRAPE_LABELS = ("Time", "__name__", "job", "instance", "Value")


def stat(title: str, expr: str, description: str, *, steps: Steps = PLAIN, unit: str = "short") -> Panel:
    """Make a panel of one figure."""
    return Panel(
        title=title,
        description=description,
        kind="stat",
        queries=(Query(expr),),
        unit=unit,
        steps=steps,
        width=4,
        height=4,
    )


def state(title: str, expr: str, description: str) -> Panel:
    """Make a panel that names the label of the one series that is 1."""
    return Panel(
        title=title,
        description=description,
        kind="stat",
        queries=(Query(f"{expr} == 1", f"{{{{{title.rsplit(maxsplit=1)[-1].lower()}}}}}"),),
        width=4,
        height=4,
    )


def alerts(filters: str = "") -> Panel:
    """Make the table of alerts that fire now, by Prometheus' own record of them."""
    return Panel(
        title="Alerts that fire",
        description="From the rules in alerts.yml. Empty while all is well. What to do: "
        "*Alerts* in the documentation.",
        kind="table",
        queries=(Query(f'ALERTS{{alertstate="firing"{filters}}}'),),
        hidden=("Time", "__name__", "alertstate", "Value"),
        width=COLUMNS,
        height=7,
    )


_AT = 'instance=~"$instance"'
_GPU = "GPU {{gpu}} {{GPU_I_PROFILE}}"

FLEET = Dashboard(
    name="fleet",
    title="GPU fleet",
    description="All machines of a registry: what is there, what is healthy, what is claimed, why jobs wait.",
    rows=(
        (
            "Now",
            (
                stat(
                    "Nodes that take jobs",
                    "sum(gpu_registry_nodes_open)",
                    "Ready, connected and not cordoned.",
                    steps=_GOOD_FROM_1,
                ),
                stat(
                    "Nodes degraded",
                    'sum(gpu_registry_nodes{status="degraded"})',
                    "They live, and something is wrong: they get no jobs.",
                    steps=_ODD_ABOVE_0,
                ),
                stat(
                    "Nodes offline",
                    'sum(gpu_registry_nodes{status="offline"})',
                    "Silent for too long, stopped, or drained.",
                    steps=_ODD_ABOVE_0,
                ),
                stat(
                    "GPUs not usable",
                    'sum(gpu_registry_gpus{health=~"lost|unknown"}) or vector(0)',
                    "Lost, or nothing is known about them.",
                    steps=_BAD_ABOVE_0,
                ),
                stat(
                    "Free slots",
                    'sum(gpu_registry_slots{status="ready"}) '
                    '- sum(gpu_registry_slots_occupied{status="ready"})',
                    "Slots of ready nodes in which no job runs.",
                    steps=_GOOD_FROM_1,
                ),
                stat(
                    "Longest wait",
                    "max(gpu_registry_longest_wait_seconds)",
                    "Of all jobs that wait for capacity.",
                    steps=((None, GREEN), (600, YELLOW), (3600, RED)),
                    unit="s",
                ),
                alerts(),
            ),
        ),
        (
            "Nodes and GPUs",
            (
                Panel(
                    title="Nodes by status",
                    description="Only ready nodes take jobs.",
                    queries=(Query("sum by (status) (gpu_registry_nodes)", "{{status}}"),),
                    stacked=True,
                ),
                Panel(
                    title="GPUs by health",
                    description="By the last report of each node, MIG devices in place of their GPUs.",
                    queries=(Query("sum by (health) (gpu_registry_gpus)", "{{health}}"),),
                    stacked=True,
                ),
                Panel(
                    title="GPU models",
                    description="How many of each model are known, usable or not.",
                    kind="bargauge",
                    queries=(Query("sum by (name) (gpu_registry_gpus)", "{{name}}"),),
                ),
                Panel(
                    title="GPUs with a fault",
                    description="Each reason that an agent gives; *GPU health* in the documentation says "
                    "what to do.",
                    kind="table",
                    queries=(Query("gpu_agent_gpu_health_reason"),),
                    hidden=(
                        *_SCRAPE_LABELS,
                        "device",
                        "pci_bus_id",
                        "parent_UUID",
                        "GPU_I_ID",
                        "GPU_I_PROFILE",
                    ),
                ),
                Panel(
                    title="Changes of status",
                    description="Why nodes changed it, in five minutes.",
                    queries=(
                        Query(
                            "sum by (to, reason_code) (increase(gpu_registry_status_changes_total[5m])) > 0",
                            "{{to}}: {{reason_code}}",
                        ),
                    ),
                ),
                Panel(
                    title="Nodes kept out by operators",
                    description="Cordoned nodes and GPUs, and nodes that are drained or were.",
                    queries=(
                        Query("sum(gpu_registry_nodes_cordoned)", "nodes cordoned"),
                        Query("sum(gpu_registry_nodes_drained)", "nodes drained"),
                        Query("sum(gpu_registry_cordoned_gpus)", "GPUs cordoned"),
                    ),
                ),
            ),
        ),
        (
            "Jobs",
            (
                Panel(
                    title="Slots of ready nodes",
                    description="All, and those in which jobs run.",
                    queries=(
                        Query('sum(gpu_registry_slots{status="ready"})', "all"),
                        Query('sum(gpu_registry_slots_occupied{status="ready"})', "occupied"),
                    ),
                ),
                Panel(
                    title="Claims",
                    description="In force, and idle; GPUs held after a claim's end, GPUs used without one; "
                    "jobs that wait.",
                    queries=(
                        Query("sum(gpu_registry_claims)", "in force"),
                        Query("sum(gpu_registry_claims_idle)", "idle"),
                        Query("sum(gpu_registry_held_gpus)", "GPUs held"),
                        Query("sum(gpu_registry_gpus_used_without_claim)", "GPUs used without a claim"),
                        Query("sum(gpu_registry_waiting_jobs)", "jobs that wait"),
                    ),
                ),
                Panel(
                    title="What happens to claims",
                    description="Granted, released, expired, lost with their node, attached again.",
                    queries=(
                        Query(
                            f"sum by (event) (rate(gpu_registry_claim_events_total[{_INTERVAL}]))",
                            "{{event}}",
                        ),
                    ),
                    unit="cps",
                ),
                Panel(
                    title="Why jobs find no node",
                    description="Nodes excluded for jobs that found none: the five commonest reasons.",
                    queries=(
                        Query(
                            "topk(5, sum by (reason) "
                            f"(rate(gpu_registry_dispatch_exclusions_total[{_INTERVAL}])))",
                            "{{reason}}",
                        ),
                    ),
                    unit="cps",
                ),
            ),
        ),
        (
            "Use of the GPUs",
            (
                Panel(
                    title="Utilization by model",
                    description="The mean over all GPUs of a model, from the agents or from dcgm-exporter.",
                    queries=(Query("avg by (modelName) (DCGM_FI_DEV_GPU_UTIL)", "{{modelName}}"),),
                    unit="percent",
                    most=100,
                ),
                Panel(
                    title="Memory in use by model",
                    description="The share of all memory of a model's GPUs.",
                    queries=(
                        Query(
                            "100 * sum by (modelName) (DCGM_FI_DEV_FB_USED) / "
                            "sum by (modelName) (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)",
                            "{{modelName}}",
                        ),
                    ),
                    unit="percent",
                    most=100,
                ),
                Panel(
                    title="Power by model",
                    description="Drawn by all GPUs of a model together.",
                    queries=(Query("sum by (modelName) (DCGM_FI_DEV_POWER_USAGE)", "{{modelName}}"),),
                    unit="watt",
                    stacked=True,
                ),
                Panel(
                    title="The hottest GPUs",
                    description="Ten of all vendors.",
                    queries=(Query("topk(10, DCGM_FI_DEV_GPU_TEMP)", "{{Hostname}} GPU {{gpu}}"),),
                    unit="celsius",
                    steps=_HOT,
                ),
            ),
        ),
    ),
)

NODE = Dashboard(
    name="node",
    title="GPU machine",
    description="One machine, by its agent: the session, the driver, each GPU. NVIDIA's and other "
    "vendors' alike.",
    variable=("instance", "Machine", "label_values(gpu_agent_build_info, instance)"),
    rows=(
        (
            "Now",
            (
                Panel(
                    title="Connected",
                    description="Whether the registry receives this machine's heartbeats.",
                    kind="stat",
                    queries=(Query(f"gpu_agent_connected{{{_AT}}}"),),
                    words=_YES_OR_NO,
                    width=4,
                    height=4,
                ),
                state("Status", f"gpu_agent_node_status{{{_AT}}}", "As the registry gave it last."),
                state("Driver outcome", f"gpu_agent_driver{{{_AT}}}", "What the last look for GPUs found."),
                stat(
                    "Age of the reading",
                    f"max(gpu_agent_gpu_reading_age_seconds{{{_AT}}})",
                    "It grows while the driver hangs; figures are absent then.",
                    steps=((None, GREEN), (30, YELLOW), (60, RED)),
                    unit="s",
                ),
                stat(
                    "Jobs",
                    f"sum(gpu_agent_registry_jobs{{{_AT}}})",
                    "That the registry counts on this machine, claims among them.",
                ),
                stat(
                    "Checks that fail",
                    f"count(gpu_agent_check_ok{{{_AT}}} == 0) or vector(0)",
                    "Admission checks: *Return to service* in the documentation.",
                    steps=_BAD_ABOVE_0,
                ),
                alerts(f", {_AT}"),
                Panel(
                    title="Health of each GPU",
                    description="The health that each has now; a lost GPU stays listed.",
                    kind="table",
                    queries=(Query(f"gpu_agent_gpu_health{{{_AT}}} == 1"),),
                    hidden=(*_SCRAPE_LABELS, "device", "Hostname", "parent_UUID", "GPU_I_ID"),
                ),
                Panel(
                    title="Reasons",
                    description="Why a GPU is not ok; *GPU health* in the documentation says what to do.",
                    kind="table",
                    queries=(Query(f"gpu_agent_gpu_health_reason{{{_AT}}}"),),
                    hidden=(*_SCRAPE_LABELS, "device", "Hostname", "parent_UUID", "GPU_I_ID"),
                ),
            ),
        ),
        (
            "Figures",
            (
                Panel(
                    title="Utilization",
                    description="How much of the time a program ran on the GPU. A GPU in MIG mode "
                    "reports none.",
                    queries=(Query(f"DCGM_FI_DEV_GPU_UTIL{{{_AT}}}", _GPU),),
                    unit="percent",
                    most=100,
                ),
                Panel(
                    title="Memory in use",
                    description="The share of the GPU's memory, or of the MIG device's.",
                    queries=(
                        Query(
                            f"100 * DCGM_FI_DEV_FB_USED{{{_AT}}} / "
                            f"(DCGM_FI_DEV_FB_USED{{{_AT}}} + DCGM_FI_DEV_FB_FREE{{{_AT}}})",
                            _GPU,
                        ),
                    ),
                    unit="percent",
                    most=100,
                    steps=_FULL,
                ),
                Panel(
                    title="Temperature",
                    description="Of the GPU; of AMD's the hottest place in it.",
                    queries=(Query(f"DCGM_FI_DEV_GPU_TEMP{{{_AT}}}", _GPU),),
                    unit="celsius",
                    steps=_HOT,
                ),
                Panel(
                    title="Power",
                    description="Drawn now, and the limit in force.",
                    queries=(
                        Query(f"DCGM_FI_DEV_POWER_USAGE{{{_AT}}}", _GPU),
                        Query(f"max(DCGM_FI_DEV_POWER_MGMT_LIMIT{{{_AT}}})", "highest limit"),
                    ),
                    unit="watt",
                ),
                Panel(
                    title="Clocks",
                    description="Of the multiprocessors and of the memory.",
                    queries=(
                        Query(f"DCGM_FI_DEV_SM_CLOCK{{{_AT}}}", f"{_GPU} processors"),
                        Query(f"DCGM_FI_DEV_MEM_CLOCK{{{_AT}}}", f"{_GPU} memory"),
                    ),
                    unit="rotmhz",
                ),
                Panel(
                    title="What holds the clocks down",
                    description="1 for each reason; only drivers of NVIDIA say it.",
                    queries=(Query(f"gpu_agent_gpu_throttle{{{_AT}}}", f"{_GPU} {{{{reason}}}}"),),
                ),
            ),
        ),
        (
            "Faults",
            (
                Panel(
                    title="Events of the driver",
                    description="Xids and others since the agent started.",
                    queries=(Query(f"gpu_agent_gpu_events_total{{{_AT}}}", f"{_GPU} {{{{event}}}}"),),
                ),
                Panel(
                    title="Last Xid",
                    description="0 while there was none since the agent started.",
                    queries=(Query(f"DCGM_FI_DEV_XID_ERRORS{{{_AT}}}", _GPU),),
                    steps=_BAD_ABOVE_0,
                ),
                Panel(
                    title="PCIe replays",
                    description="Packets that the link repeated in a minute; more than 8 are a fault.",
                    queries=(
                        Query(f"60 * rate(DCGM_FI_DEV_PCIE_REPLAY_COUNTER{{{_AT}}}[{_INTERVAL}])", _GPU),
                    ),
                    steps=((None, GREEN), (8, RED)),
                ),
                Panel(
                    title="Errors of the memory",
                    description="Uncorrected ECC errors since the driver was loaded, and rows that were "
                    "replaced.",
                    queries=(
                        Query(f"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{{_AT}}}", f"{_GPU} uncorrected"),
                        Query(
                            f"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS{{{_AT}}}",
                            f"{_GPU} rows, uncorrectable",
                        ),
                        Query(f"DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS{{{_AT}}}", f"{_GPU} rows, correctable"),
                    ),
                    steps=_ODD_ABOVE_0,
                ),
            ),
        ),
        (
            "Programs and the agent",
            (
                Panel(
                    title="Programs on the GPUs",
                    description="All, and those that belong to no announced job.",
                    queries=(
                        Query(f"gpu_agent_gpu_processes{{{_AT}}}", _GPU),
                        Query(f"gpu_agent_gpu_foreign_processes{{{_AT}}}", f"{_GPU} foreign"),
                    ),
                ),
                Panel(
                    title="Models",
                    description="That were found, by status.",
                    queries=(Query(f"gpu_agent_models{{{_AT}}}", "{{status}}"),),
                ),
                Panel(
                    title="Age of the last heartbeat",
                    description="Since the agent sent one.",
                    queries=(Query(f"gpu_agent_last_heartbeat_age_seconds{{{_AT}}}", "{{instance}}"),),
                    unit="s",
                ),
                Panel(
                    title="State and settings",
                    description="Whether the state directory takes the identity, and the file's settings "
                    "are in force.",
                    queries=(
                        Query(f"gpu_agent_state_ok{{{_AT}}}", "state directory"),
                        Query(f"gpu_agent_settings_ok{{{_AT}}}", "settings"),
                    ),
                    most=1,
                    steps=_GOOD_FROM_1,
                ),
            ),
        ),
    ),
)


def quantiles(name: str) -> tuple[Query, ...]:
    """Median and 99th percentile of a histogram of the registry."""
    rate = f"sum by (instance, le) (rate(gpu_registry_{name}_bucket{{{_AT}}}[{_INTERVAL}]))"
    return (
        Query(f"histogram_quantile(0.5, {rate})", "{{instance}} median"),
        Query(f"histogram_quantile(0.99, {rate})", "{{instance}} 99 %"),
    )


REGISTRY = Dashboard(
    name="registry",
    title="GPU registry",
    description="The registry itself: is it ready, does it store, is it late, who is refused, who leads.",
    variable=("instance", "Registry", "label_values(gpu_registry_build_info, instance)"),
    rows=(
        (
            "Now",
            (
                Panel(
                    title="Ready",
                    description="Whether every check of /readyz passes.",
                    kind="stat",
                    queries=(Query(f"min(gpu_registry_ready{{{_AT}}})"),),
                    words=_YES_OR_NO,
                    width=4,
                    height=4,
                ),
                stat(
                    "Heartbeats",
                    f"sum(rate(gpu_registry_heartbeats_total{{{_AT}}}[{_INTERVAL}]))",
                    "Received in a second.",
                    unit="cps",
                ),
                stat(
                    "Connections",
                    f"sum(gpu_registry_connections{{{_AT}}})",
                    "Open ones of nodes.",
                ),
                stat(
                    "Commits that fail",
                    f"sum(increase(gpu_registry_save_failures_total{{{_AT}}}[5m]))",
                    "In five minutes; changes are refused meanwhile.",
                    steps=_BAD_ABOVE_0,
                ),
                stat(
                    "Changes that wait",
                    f"sum(gpu_registry_saves_waiting{{{_AT}}})",
                    "Batches that wait for a commit.",
                    steps=((None, GREEN), (10, YELLOW), (100, RED)),
                ),
                stat(
                    "Certificate ends in",
                    f"min(gpu_registry_certificate_expires_timestamp_seconds{{{_AT}}}) - time()",
                    "Empty without TLS.",
                    steps=((None, RED), (7 * 86_400, YELLOW), (14 * 86_400, GREEN)),
                    unit="s",
                ),
                alerts(f", {_AT}"),
            ),
        ),
        (
            "Speed",
            (
                Panel(
                    title="Lag of the event loop",
                    description="How late it comes to a timer; over 0.05 s it needs more CPU.",
                    queries=quantiles("event_loop_lag_seconds"),
                    unit="s",
                    steps=_LATE,
                ),
                Panel(
                    title="Commits",
                    description="How long the store takes for one.",
                    queries=quantiles("commit_seconds"),
                    unit="s",
                    steps=_LATE,
                ),
                Panel(
                    title="Choosing a node",
                    description="How long it takes to choose one for a job.",
                    queries=quantiles("select_seconds"),
                    unit="s",
                ),
                Panel(
                    title="Requests of operators",
                    description="How long 99 of 100 took, by route.",
                    queries=(
                        Query(
                            "histogram_quantile(0.99, sum by (route, le) "
                            f"(rate(gpu_registry_http_request_seconds_bucket{{{_AT}}}[{_INTERVAL}])))",
                            "{{route}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    title="Requests by answer",
                    description="401: a wrong token. 503: nothing can be stored, or nobody leads. 500: a "
                    "bug.",
                    queries=(
                        Query(
                            "sum by (status) "
                            f"(rate(gpu_registry_http_request_seconds_count{{{_AT}}}[{_INTERVAL}]))",
                            "{{status}}",
                        ),
                    ),
                    unit="reqps",
                ),
                Panel(
                    title="Commits a second",
                    description="Batches of changes that were stored.",
                    queries=(Query(f"rate(gpu_registry_saves_total{{{_AT}}}[{_INTERVAL}])", "{{instance}}"),),
                    unit="cps",
                ),
            ),
        ),
        (
            "Nodes and clients",
            (
                Panel(
                    title="Refusals",
                    description="Answers to nodes that say no, by code.",
                    queries=(
                        Query(
                            f"sum by (code) (increase(gpu_registry_node_refusals_total{{{_AT}}}[5m])) > 0",
                            "{{code}}",
                        ),
                    ),
                ),
                Panel(
                    title="Refused connections",
                    description="By what the node presented.",
                    queries=(
                        Query(
                            "sum by (reason) "
                            f"(increase(gpu_registry_handshake_refusals_total{{{_AT}}}[5m])) > 0",
                            "{{reason}}",
                        ),
                    ),
                ),
                Panel(
                    title="Registrations",
                    description="Accepted in five minutes: many mean that nodes lose their sessions.",
                    queries=(
                        Query(f"sum(increase(gpu_registry_registrations_total{{{_AT}}}[5m]))", "accepted"),
                    ),
                ),
                Panel(
                    title="Clients that follow events",
                    description="Open streams of /v1/events.",
                    queries=(Query(f"gpu_registry_event_subscribers{{{_AT}}}", "{{instance}}"),),
                ),
            ),
        ),
        (
            "Instances, of a registry on several machines",
            (
                Panel(
                    title="Who leads",
                    description="Exactly one does.",
                    queries=(Query(f"gpu_registry_instance_leads{{{_AT}}}", "{{instance}}"),),
                    most=1,
                ),
                Panel(
                    title="Links to the leader",
                    description="An instance without one holds no nodes for long.",
                    queries=(Query(f"gpu_registry_instance_linked{{{_AT}}}", "{{instance}}"),),
                    most=1,
                    steps=_GOOD_FROM_1,
                ),
                Panel(
                    title="Copies behind etcd",
                    description="How much a takeover would have to read first.",
                    queries=(Query(f"gpu_registry_instance_copy_lag_seconds{{{_AT}}}", "{{instance}}"),),
                    unit="s",
                    steps=((None, GREEN), (10, RED)),
                ),
                Panel(
                    title="Takeovers and terms",
                    description="How often each began to lead, and the term that it knows.",
                    queries=(
                        Query(f"gpu_registry_instance_takeovers_total{{{_AT}}}", "{{instance}} takeovers"),
                        Query(f"gpu_registry_instance_term{{{_AT}}}", "{{instance}} term"),
                    ),
                ),
                Panel(
                    title="Node connections",
                    description="That each instance holds.",
                    queries=(Query(f"gpu_registry_instance_node_connections{{{_AT}}}", "{{instance}}"),),
                    stacked=True,
                ),
            ),
        ),
    ),
)
DASHBOARDS = (FLEET, NODE, REGISTRY)


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression with the panel that it is of, as `fleet: Nodes by status`."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                yield f"{dashboard.name}: {panel.title}", query.expr


def main() -> int:
    """Write the dashboards."""
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(text(dashboard), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
