from gpu_agent.cli.lines import plain
from gpu_agent.cli.nodes.verdict_sheet import counted, verdict_lines

EXCLUDED = {"node_id": "node-2", "reason": "gpu_unavailable", "need": "2 GPUs", "have": "1 usable GPU"}


def test_the_able_come_first_and_the_others_say_why_not() -> None:
    assert [plain(one) for one in verdict_lines(["node-1"], [EXCLUDED], None)] == [
        "NODE    VERDICT          WHY",
        "node-1  able",
        "node-2  gpu_unavailable  needs 2 GPUs; has 1 usable GPU",
    ]


def test_reasons_are_counted() -> None:
    assert counted({"cordoned": 2, "disconnected": 1}) == "2 cordoned, 1 disconnected"
