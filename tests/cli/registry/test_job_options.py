import argparse

import pytest

from gpu_agent.cli.registry.job_options import add_demands, demands_of
from gpu_agent.server.operator.models import JobRequest

ALL = [
    *("--model", "m", "--model", "n", "--feature", "f", "--public", "--gpus", "2", "--gpu-name", "H100"),
    *("--min-gpu-memory-mb", "8000", "--label", "zone=a", "--label", "rack=7=b", "--node", "node-1"),
    *("--affinity", "chat-9", "--priority", "-5"),
]


def demands(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_demands(parser)
    return demands_of(parser.parse_args(words))


def test_each_demand_that_the_api_knows_can_be_stated() -> None:
    stated = demands(*ALL)
    assert {"job_id", *stated} == set(JobRequest.model_fields)
    job = JobRequest.model_validate({"job_id": "j", **stated})
    assert job.required_models == ("m", "n")
    assert job.labels == {"zone": "a", "rack": "7=b"}
    assert job.priority == -5


def test_what_is_not_demanded_is_left_to_the_registry() -> None:
    assert demands() == {"gpu_count": 1}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--label", "zone"), "zone=a"),
        (("--label", "=a"), "zone=a"),
        (("--gpus", "0"), "at least 1"),
        (("--min-gpu-memory-mb", "x"), "whole number"),
        (("--priority", "high"), "whole number"),
    ],
)
def test_a_demand_that_makes_no_sense_is_refused_with_how_to_write_it(
    words: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        demands(*words)
    assert hint in capsys.readouterr().err
