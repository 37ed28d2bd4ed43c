import json
import threading
from collections.abc import Mapping

import httpx
import pytest

from gpu_agent.cli.client.http import Api
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.main import main
from gpu_agent.cli.output.text import plain_text
from gpu_agent.cli.registry.claims import claim_page, claim_table, lease_in_words, request_slot, slot_in_words
from gpu_agent.cli.registry.node_targets import gpu_uuid
from gpu_agent.wire.api import ClaimDetail, ClaimView, NodeDetail, QueueView
from tests.cli.answers import model_of
from tests.cli.conftest import Served
from tests.cli.stand_in import Refusal, standing_in
from tests.programs import eventually
from tests.waiting import patience


def test_a_slot_is_reserved_and_the_same_job_gets_the_same(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["registry", "claim", "create", "job-1", "--model", "m", "--server", served.api]) == 0
        assert f"job-1 has a slot on {served.able}" in capsys.readouterr().out
    assert (
        main(["registry", "claim", "create", "job-1", "--model", "m", "--json", "--server", served.api]) == 0
    )
    assert json.loads(capsys.readouterr().out)["node_id"] == served.able
    assert len(served.registry.get("/v1/claims")["claims"]) == 1


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_node_for_a_job_is_exit_7(served: Served, form: list[str]) -> None:
    assert main(["registry", "claim", "create", "job-1", "--gpus", "9", *form, "--server", served.api]) == 7


def test_claims_are_listed_with_their_nodes_and_ends(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "claim", "list", "--server", served.api]) == 0
    assert "No claim is held." in capsys.readouterr().out
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "claim", "list", "--server", served.api]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("ENDS IN", "job-1", served.able, "9 min"))
    assert main(["registry", "claim", "list", "--json", "--server", served.api]) == 0
    assert [claim["job_id"] for claim in json.loads(capsys.readouterr().out)["claims"]] == ["job-1"]


def test_the_claims_of_one_node_are_listed(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "claim", "list", "--node", served.new, "--server", served.api]) == 0
    assert f"No claim is held on {served.new}." in capsys.readouterr().out
    assert main(["registry", "claim", "list", "--node", served.able, "--server", served.api]) == 0
    assert "job-1" in capsys.readouterr().out


def test_an_unknown_node_is_refused_rather_than_listed_without_claims(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "claim", "list", "--node", f"{served.able}x", "--server", served.api]) == 6
    said = capsys.readouterr()
    assert said.out == ""
    assert f"did you mean {served.able}" in said.err


def test_a_claim_is_renewed_for_one_more_ttl(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "claim", "renew", "job-1", "--server", served.api]) == 0
    assert f"job-1 keeps its slot on {served.able}" in capsys.readouterr().out
    assert main(["registry", "claim", "renew", "job-1", "--json", "--server", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["job_id"] == "job-1"


def test_a_claim_that_is_not_held_is_exit_6(served: Served) -> None:
    assert main(["registry", "claim", "renew", "job-1", "--server", served.api]) == 6


@pytest.mark.parametrize(("form", "said"), [([], "job-1 has no slot any more\n"), (["--json"], "")])
def test_a_slot_is_released(
    served: Served, form: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "claim", "release", "job-1", *form, "--server", served.api]) == 0
    assert capsys.readouterr().out == said
    assert main(["registry", "claim", "release", "job-1", "--server", served.api]) == 6


def claim(*nodes: Mapping[str, object]) -> ClaimView:
    return model_of(ClaimView, {"nodes": list(nodes)})


def test_a_slot_is_shown_with_all_that_a_job_needs() -> None:
    first = {"node_id": "n", "gpu_uuids": ["GPU-1", "GPU-2"], "endpoint": "10.0.0.1:9000"}
    second = {"node_id": "m", "hostname": "host-m", "gpu_indices": [0, 3]}
    assert slot_in_words(claim(first)) == "n, GPUs GPU-1 GPU-2, workers at 10.0.0.1:9000"
    assert slot_in_words(claim({"node_id": "n"})) == "n"
    assert slot_in_words(claim({"node_id": "n"}, second)) == "n; m (host-m), GPUs #0 #3"
    for left, words in ((60.4, "60 s"), (599.98, "10 min")):
        lease = model_of(ClaimView, {"expires_in_seconds": left})
        assert lease_in_words(lease) == f"for {words} unless renewed"


def test_claims_are_listed_by_host_and_position_and_no_word_is_broken() -> None:
    uuids = [f"GPU-{n:08x}-8f31-4c27-a27e-49fcbd5f3c60" for n in range(8)]
    whole = {
        "node_id": "node-86F8110E",
        "hostname": "alpha",
        "gpu_indices": list(range(8)),
        "gpu_uuids": uuids,
    }
    part = {"node_id": "node-2DE3F86C", "hostname": "beta", "gpu_indices": [3], "gpu_uuids": uuids[3:4]}
    gang = model_of(
        ClaimView, {"job_id": "train-4", "state": "active", "nodes": [whole, part], "expires_in_seconds": 60}
    )
    head, row = (plain_text(one) for one in claim_table([gang], 80, now=0.0))
    assert head.split()[:3] == ["JOB", "STATE", "HOST"]
    assert "alpha, beta" in row
    assert "0 1 2 3 4 5 6 7; 3" in row
    assert "GPU-" not in row


def test_no_node_for_a_job_is_an_outcome_of_its_own_with_examples(served: Served) -> None:
    job = {"job_id": "j", "required_models": ["no-node/has-this"]}
    with pytest.raises(Failure, match="1 model_not_available") as refused:
        request_slot(Api(served.api), "/v1/claims", job, model=ClaimView, as_json=False)
    assert refused.value.code is ExitCode.NO_NODE
    assert f"\n  {served.able}: model_not_available (needs model no-node/has-this" in str(refused.value)
    assert "\nNode by node: gpu-agent registry explain job " in str(refused.value)
    assert "/v1/dispatch/explain" not in str(refused.value)


def test_for_programs_that_is_an_answer_as_the_api_gave_it(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"job_id": "j", "gpu_count": 9}
    assert request_slot(Api(served.api), "/v1/claims", job, model=ClaimView, as_json=True) is None
    assert json.loads(capsys.readouterr().out)["code"] == "NO_AVAILABLE_NODE"


def test_another_refusal_stays_one() -> None:
    with standing_in({"POST /v1/claims": Refusal(503, "REGISTRY_BUSY")}) as registry:
        with pytest.raises(Failure) as refused:
            request_slot(Api(registry.api), "/v1/claims", {}, model=ClaimView, as_json=True)
        assert refused.value.code is ExitCode.REFUSED


def test_a_claim_is_named_by_its_id_when_it_is_renewed_and_released(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "claim", "create", "job-1", "--ttl", "30s", "--server", served.api]) == 0
    said = capsys.readouterr().out
    claim_id = said.split("\nclaim ")[1].split(":")[0]
    assert "for 30 s" in said or "for 29 s" in said
    renew = ["registry", "claim", "renew", "job-1", "--ttl", "10m", "--server", served.api]
    assert main([*renew, "--claim-id", claim_id]) == 0
    said = capsys.readouterr().out
    assert "for 10 min" in said or "for 9 min" in said
    other = ["--claim-id", "f" * 32, "--server", served.api]
    assert main([*renew, *other[:2]]) == 6
    assert main(["registry", "claim", "release", "job-1", *other]) == 6
    said = capsys.readouterr().err
    assert "another claim" in said
    assert "registry claim show JOB" in said
    assert (
        main(["registry", "claim", "release", "job-1", "--claim-id", claim_id, "--server", served.api]) == 0
    )


def test_ended_claims_are_listed_on_request(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1"})
    Api(served.api).request("DELETE", "/v1/claims/job-1")
    assert main(["registry", "claim", "list", "--server", served.api]) == 0
    assert "job-1" not in capsys.readouterr().out
    assert main(["registry", "claim", "list", "--ended", "--server", served.api]) == 0
    said = capsys.readouterr().out
    (claim,) = served.registry.get("/v1/claims?ended=true")["claims"]
    assert all(word in said for word in ("STATE", "job-1", "released", "CLAIM", claim["claim_id"]))


def test_the_list_names_nodes_by_id_and_by_hostname(capsys: pytest.CaptureFixture[str]) -> None:
    node = {"node_id": "node-7", "hostname": "gpu-host-1"}
    with standing_in({"GET /v1/claims": {"claims": [{"job_id": "job-1", "nodes": [node]}]}}) as registry:
        assert main(["registry", "claim", "list", "--server", registry.api]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("node-7", "HOST", "gpu-host-1"))
    assert "CLAIM" not in said


@pytest.mark.parametrize(
    ("words", "bounds"),
    [
        (["create", "x", "--wait", "10m"], "'10m' is not between 0s and 5m"),
        (["create", "x", "--ttl", "5s"], "'5s' is not between 10s and 24h"),
        (["renew", "x", "--ttl", "2d"], "'2d' is not between 10s and 24h"),
        (["run", "x", "--ttl", "5s", "--", "true"], "'5s' is not between 10s and 24h"),
    ],
)
def test_a_time_beyond_its_bounds_is_refused_before_any_request(
    words: list[str], bounds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with standing_in({}) as registry:
        assert main(["registry", "claim", *words[:2], "--server", registry.api, *words[2:]]) == 4
        assert registry.asked == []
    assert bounds in capsys.readouterr().err


def test_a_refusal_for_want_of_a_node_names_the_command_that_explains_this_job(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    demands = ["--model", "m", "--gpus", "9", "--label", "zone=a b"]
    assert (
        main(["registry", "claim", "create", "job-1", "--server", served.api, *demands]) == ExitCode.NO_NODE
    )
    said = capsys.readouterr().err
    assert "\nNode by node: gpu-agent registry explain job --model m --gpus 9 --label 'zone=a b'\n" in said


def test_a_claim_is_shown_with_its_history_also_after_its_end(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1", "gpu_count": 1})
    assert main(["registry", "claim", "show", "job-1", "--server", served.api]) == 0
    shown = capsys.readouterr().out
    for word in ("active", served.able, "unless renewed", "exclusive", "HIGHEST"):
        assert word in shown
    Api(served.api).request("DELETE", "/v1/claims/job-1")
    assert main(["registry", "claim", "show", "job-1", "--server", served.api]) == 0
    shown = capsys.readouterr().out
    for word in ("released", "ended"):
        assert word in shown


def test_the_page_of_a_claim_says_what_happened_to_its_gpus() -> None:
    node = {"node_id": "n", "gpu_uuids": ["GPU-1"]}
    use = {"node_id": "n", "gpu_uuid": "GPU-1", "mean_utilization_percent": 41.6}
    claim = {"nodes": [node], "gpu_use": [use], "history": [{"at": 60.0, "text": "GPU 'GPU-1' on n: ecc"}]}
    shown = "\n".join(map(plain_text, claim_page(model_of(ClaimDetail, claim), None, now=60.0)))
    for words in ("GPUs GPU-1", "42%", "GPU 'GPU-1' on n: ecc"):
        assert words in shown


def test_a_claim_that_never_was_is_exit_6_with_the_nearest_job(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "train-bert"})
    assert main(["registry", "claim", "show", "train-bart", "--server", served.api]) == ExitCode.REFUSED
    assert "did you mean train-bert" in capsys.readouterr().err


def test_a_job_waits_in_the_queue_and_claims_what_becomes_free(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api(served.api)
    assert main(["registry", "queue", "--server", served.api]) == 0
    assert capsys.readouterr().out == "No job waits.\n"
    api.request("POST", "/v1/claims", {"job_id": "job-1", "gpu_count": 1})
    codes: list[int] = []
    words = ["registry", "claim", "create", "job-2", "--gpus", "1", "--wait", "1m", "--server", served.api]
    waiting = threading.Thread(target=lambda: codes.append(main(words)), name="waiting")
    waiting.start()
    eventually(lambda: api.request("GET", "/v1/queue")["count"] == 1, within_seconds=5, what="job-2 waits")
    assert main(["registry", "queue", "--server", served.api]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("PRIORITY", "job-2", "capacity_exceeded")), said
    assert main(["registry", "claim", "release", "job-1", "--server", served.api]) == 0
    waiting.join(patience(10))
    assert codes == [0]


def test_a_queued_job_whose_client_gave_up_is_said_in_a_whole_sentence(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api(served.api)
    api.request("POST", "/v1/claims", {"job_id": "job-1", "gpu_count": 1})
    body = {"job_id": "job-2", "gpu_count": 1, "wait_seconds": 60}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.api}/v1/claims", json=body, timeout=patience(1))
    eventually(
        lambda: api.get("/v1/queue", QueueView).model.jobs[0].open_requests == 0,
        within_seconds=5,
        what="the registry sees that the client is gone",
    )
    assert main(["registry", "queue", "--server", served.api]) == 0
    (row,) = [one for one in capsys.readouterr().out.splitlines() if "job-2" in one]
    assert "nobody waits for the answer now" in row
    assert not row.rstrip().endswith(";")


@pytest.mark.parametrize(
    ("named", "uuid"),
    [
        ("1", "GPU-5f2a8c1e-b"),
        ("GPU-5f2a8c1e-b", "GPU-5f2a8c1e-b"),
        ("GPU-77", "GPU-77"),
        ("GPU-7777", "GPU-77770000"),
        ("0:0", "MIG-1"),
        ("GPU-unknown", "GPU-unknown"),
    ],
)
def test_a_gpu_is_named_by_its_number_or_how_its_uuid_begins(named: str, uuid: str) -> None:
    gpus = [
        {"uuid": "GPU-5f2a8c1e-a", "index": 0},
        {"uuid": "GPU-5f2a8c1e-b", "index": 1},
        {"uuid": "GPU-77770000", "index": 2},
        {"uuid": "MIG-1", "index": 0, "parent_uuid": "GPU-5f2a8c1e-a"},
    ]
    node = model_of(NodeDetail, {"node_id": "n", "gpus": gpus})
    assert gpu_uuid(node, named) == uuid
    with pytest.raises(Failure, match="GPU-5f2a8c1e may be GPU-5f2a8c1e-a or GPU-5f2a8c1e-b: write more"):
        gpu_uuid(node, "GPU-5f2a8c1e")


def test_a_gpu_is_cordoned_and_uncordoned(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    words = [served.able, "--gpu", "GPU-x", "--server", served.api]
    assert main(["registry", "node", "cordon", *words, "--reason", "hot"]) == 6
    assert "declares no GPU" in capsys.readouterr().err
    gpu = {"uuid": "GPU-x", "claimed_by": "job-1", "cordoned": "cordoned by ann: hot"}
    path = f"POST /v1/nodes/{served.able}/gpus/GPU-x"
    answers = {
        f"{path}/{action}": {"node_id": served.able, "gpus": [gpu]} for action in ("cordon", "uncordon")
    }
    answers[f"GET /v1/nodes/{served.able}"] = {"node_id": served.able, "gpus": [gpu]}
    with standing_in(answers) as registry:
        words[-1] = registry.api
        assert main(["registry", "node", "cordon", *words]) == 0
        assert "job job-1 has it now, and goes on" in capsys.readouterr().out
        assert main(["registry", "node", "cordon", *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["gpus"][0]["uuid"] == "GPU-x"
        assert main(["registry", "node", "uncordon", *words]) == 0
        assert f"claims may have GPU-x of {served.able} again" in capsys.readouterr().out
