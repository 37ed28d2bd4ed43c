import argparse
import json
import time

import pytest

from gpu_agent.cli.answers import CLAIM
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.registry.placing import held_in_words, place_in_words, placed
from tests.cli.conftest import Served
from tests.cli.stand_in import Refusal, standing_in


def test_a_place_says_all_that_a_job_needs() -> None:
    place = {"node_id": "n", "gpu_uuids": ["GPU-1", "GPU-2"], "endpoint": "10.0.0.1:9000"}
    assert place_in_words(place) == "n, GPUs GPU-1 GPU-2, workers at 10.0.0.1:9000"
    assert place_in_words({"node_id": "n", "gpu_uuids": [], "endpoint": None}) == "n"
    assert held_in_words({"expires_at": time.time() + 60.5}) == "for 60 s unless renewed"


def test_nobody_to_take_the_job_is_an_outcome_of_its_own_with_examples(served: Served) -> None:
    job = {"job_id": "j", "required_models": ["nobody/has-this"]}
    with pytest.raises(Failure, match="1 model_not_available") as refused:
        placed(Api(served.api), "/v1/claims", job, arguments=argparse.Namespace(json=False), shape=CLAIM)
    assert refused.value.code is ExitCode.NOBODY
    assert f"\n  {served.able}: model_not_available (needs model nobody/has-this" in str(refused.value)


def test_for_programs_nobody_is_an_answer_as_the_api_gave_it(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"job_id": "j", "gpu_count": 9}
    assert (
        placed(Api(served.api), "/v1/claims", job, arguments=argparse.Namespace(json=True), shape=CLAIM)
        is None
    )
    assert json.loads(capsys.readouterr().out)["code"] == "NO_AVAILABLE_NODE"


def test_another_refusal_stays_one() -> None:
    with standing_in({"POST /v1/claims": Refusal(503, "REGISTRY_BUSY")}) as registry:
        with pytest.raises(Failure) as refused:
            placed(Api(registry.api), "/v1/claims", {}, arguments=argparse.Namespace(json=True), shape=CLAIM)
        assert refused.value.code is ExitCode.REFUSED
