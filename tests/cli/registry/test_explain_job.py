import json
import shlex
import time
from typing import Any

import pytest

from gpu_agent.cli.command import Failure
from gpu_agent.cli.main import main
from gpu_agent.cli.registry import explain
from gpu_agent.cli.registry.job_options import (
    job_options,
    job_request,
    job_words,
    life_options,
    life_request,
)
from gpu_agent.wire.api import JobRequest
from tests.cli.conftest import Served
from tests.cli.given import given
from tests.cli.stand_in import Refusal, standing_in
from tests.programs import Registry


def explained(served: Served, *words: str) -> int:
    return main(["registry", "explain", "job", *words, "--server", served.api])


def test_each_node_answers_with_need_and_have(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(served, "--model", "m") == 0
    said = capsys.readouterr().out
    assert all(
        word in said
        for word in (served.able, "eligible", served.new, "status_not_ready", "1 eligible; excluded")
    )


def test_of_a_large_fleet_the_nearest_nodes_are_printed_and_the_others_counted(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(*words: str) -> list[str]:
        assert explained(served, "--gpus", "9", *words) == 0
        said = capsys.readouterr().out
        return [one for one in said.splitlines() if one.startswith("node-") or "more" in one]

    nodes = len(rows())
    assert nodes > 1
    monkeypatch.setattr(explain, "MOST_NODES", 1)
    first, rest = rows()
    assert (first.startswith("node-"), rest) == (True, f"{nodes - 1} more excluded: --all shows them")
    assert len(rows("--all")) == nodes
    assert explained(served, "--gpus", "9", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["excluded"]) == nodes


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "no-node/has-this"], "model_not_available"),
        (["--feature", "emotion_detection"], "feature_not_supported"),
        (["--public"], "not_in_public_pool"),
        (["--gpus", "2"], "gpu_unavailable"),
        (["--gpu-name", "H100"], "gpu_unavailable"),
        (["--min-gpu-memory-mb", "99999"], "gpu_unavailable"),
        (["--label", "zone=a"], "label_mismatch"),
        (["--node", "node-OTHER"], "not_allowed"),
        (["--min-compute-capability", "8.0"], "gpu_unavailable"),
    ],
)
def test_each_demand_is_part_of_the_request(
    served: Served, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explained(served, "--json", *words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {one["node_id"]: one["reason"] for one in answer["excluded"]}[served.able] == reason


def test_a_label_without_a_value_is_refused_with_an_example(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explained(served, "--label", "zone") == 4
    assert "zone=a" in capsys.readouterr().err


def test_an_empty_registry_says_how_to_start_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    with Registry() as registry:
        assert main(["registry", "explain", "job", "--server", registry.api]) == 0
    assert "gpu-agent run --registry" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--gpus", "--min-gpu-memory-mb"])
@pytest.mark.parametrize(
    ("number", "words"), [("0", "at least 1"), ("-1", "at least 1"), ("x", "whole number")]
)
def test_a_number_that_makes_no_sense_is_a_wrong_argument(
    option: str, number: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "explain", "job", f"{option}={number}"]) == 4
    assert words in capsys.readouterr().err


PATH = "POST /v1/dispatch/select"


def test_the_node_that_a_job_would_get_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    place = {"nodes": [{"node_id": "node-7", "gpu_uuids": ["GPU-1"], "endpoint": None}]}
    with standing_in({PATH: place}) as registry:
        assert (
            main(
                [
                    "registry",
                    "explain",
                    "job",
                    "--pick",
                    "--model",
                    "m",
                    "--gpus",
                    "2",
                    "--server",
                    registry.api,
                ]
            )
            == 0
        )
        assert capsys.readouterr().out == "node-7, GPUs GPU-1\n"
        assert main(["registry", "explain", "job", "--pick", "--json", "--server", registry.api]) == 0
        assert json.loads(capsys.readouterr().out)["nodes"][0]["gpu_uuids"] == ["GPU-1"]
        assert registry.bodies(PATH)[0] == {"required_models": ["m"], "gpu_count": 2}


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_node_for_a_job_is_exit_7(form: list[str]) -> None:
    with standing_in({PATH: Refusal(409, "NO_AVAILABLE_NODE")}) as registry:
        assert main(["registry", "explain", "job", "--pick", *form, "--server", registry.api]) == 7


def window(**more: object) -> dict[str, Any]:
    return {
        "window_start": time.time() - 60,
        "window_end": time.time(),
        "failed": 3,
        "counts": {"model_not_available": 6, "cordoned": 3},
        "examples": {"model_not_available": [{"node_id": "n", "need": "model m", "have": "not installed"}]},
        "last_jobs": ["job-1"],
        **more,
    }


def said(capsys: pytest.CaptureFixture[str], *windows: dict[str, Any], form: tuple[str, ...] = ()) -> str:
    with standing_in({"GET /v1/exclusions": {"windows": windows}}) as registry:
        assert main(["registry", "explain", "exclusions", *form, "--server", registry.api]) == 0
    return capsys.readouterr().out


def test_each_reason_of_each_minute_is_a_line_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [" ".join(line.split()) for line in said(capsys, window()).splitlines()]
    assert lines[0] == "FROM FAILED REASON TIMES FOR EXAMPLE"
    assert lines[1].endswith("3 model_not_available 6 n needs model m; has not installed")
    assert lines[2].endswith("3 cordoned 3")


def test_a_registry_without_nodes_is_reported_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no node known" in said(capsys, window(counts={}, examples={}))


def test_an_hour_without_failures_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "found a node" in said(capsys)


def test_json_is_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = json.loads(said(capsys, window(), form=("--json",)))["windows"]
    assert shown["counts"] == window()["counts"]


ALL = [
    *("--model", "m", "--model", "n", "--feature", "f", "--public", "--gpus", "2", "--gpu-name", "H100"),
    *("--min-gpu-memory-mb", "8000", "--label", "zone=a", "--label", "rack=7=b", "--node", "node-1"),
    *("--affinity", "chat-9", "--priority", "-5", "--gpu-sharing", "exclusive", "--nodes", "3"),
    *("--min-compute-capability", "8.0", "--exclude-node", "node-2", "--exclude-node", "node-3"),
    *("--label", "zone=b", "--ttl", "2m", "--wait", "30s"),
]


def demands(*words: str) -> dict[str, object]:
    arguments = given([*job_options(), *life_options()], *words)
    return {**job_request(arguments), **life_request(arguments)}


def test_each_demand_that_the_api_knows_can_be_stated() -> None:
    stated = demands(*ALL)
    assert {"job_id", *stated} == set(JobRequest.model_fields)
    job = JobRequest.model_validate({"job_id": "j", **stated})
    assert job.required_models == ("m", "n")
    assert job.labels == {"zone": ("a", "b"), "rack": "7=b"}
    assert (job.priority, job.nodes, job.excluded_nodes) == (-5, 3, ("node-2", "node-3"))
    assert (job.ttl_seconds, job.wait_seconds, job.min_compute_capability) == (120.0, 30.0, "8.0")


def test_the_options_of_a_request_state_the_same_demands() -> None:
    words = shlex.split(job_words(demands(*ALL)))
    life = {"ttl_seconds": 120.0, "wait_seconds": 30.0}
    assert demands(*words) | life == demands(*ALL)


def test_a_job_for_several_nodes_is_explained_with_how_many_it_needs(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explained(served, "--model", "m", "--nodes", "2") == 0
    assert "1 eligible of 2 that the job needs; excluded: 1 " in capsys.readouterr().out


def test_what_is_not_demanded_is_left_to_the_registry() -> None:
    assert demands() == {}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--label", "zone"), "zone=a"),
        (("--label", "=a"), "zone=a"),
        (("--gpus", "0"), "at least 1"),
        (("--min-gpu-memory-mb", "x"), "whole number"),
        (("--priority", "high"), "whole number"),
        (("--min-compute-capability", "eight"), "8.0"),
        (("--gpu-sharing", "time"), "exclusive"),
    ],
)
def test_a_demand_that_makes_no_sense_is_refused_with_how_to_write_it(
    words: tuple[str, ...], hint: str
) -> None:
    with pytest.raises(Failure, match=hint):
        demands(*words)


def test_a_jobs_id_is_no_demand_and_the_queue_is_named_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "explain", "job", "b"]) == 4
    said = capsys.readouterr().err
    assert (
        "gpu-agent: registry explain job takes no argument, but got 'b': describe the job with --gpus" in said
    )
    assert "`gpu-agent registry queue` shows why" in said
