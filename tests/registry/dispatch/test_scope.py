import pytest

from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.scope import (
    EveryJob,
    JobsForOthers,
    JobsOfMoreGpus,
    JobsOfMoreMemory,
    JobsWithModel,
    JobsWithOtherFeatures,
    JobsWithOtherLabels,
    JobsWithOtherModels,
    PublicJobs,
    Scope,
)
from gpu_agent.registry.job import Job
from tests.registry.dispatch.nodes import job

L4S = JobsOfMoreGpus((("NVIDIA L4", 2),))
MEMORY = JobsOfMoreMemory((("NVIDIA L4", 20_000), ("NVIDIA H100", 9_000), ("NVIDIA H100", None)))


@pytest.mark.parametrize(
    ("scope", "covered", "passing"),
    [
        (EveryJob(), [job()], []),
        (
            JobsForOthers("node-A"),
            [job(allowed_nodes=("node-B",)), job(allowed_nodes=())],
            [job(), job(allowed_nodes=("node-A",))],
        ),
        (PublicJobs(), [job(public=True)], [job()]),
        (L4S, [job(gpu_count=3), job(gpu_name="h100")], [job(gpu_count=2, gpu_name="l4"), job(gpu_count=0)]),
        (JobsWithModel("asr"), [job(required_models=("nmt", "asr"))], [job(required_models=("nmt",)), job()]),
        (JobsWithOtherModels(frozenset({"asr"})), [job(required_models=("asr", "nmt"))], [job()]),
        (JobsWithOtherFeatures(frozenset({"f"})), [job(required_features=("g",))], [job()]),
        (
            JobsWithOtherLabels({"zone": "a"}),
            [job(labels={"zone": "b"}), job(labels={"rack": "1"})],
            [job(), job(labels={"zone": "a"})],
        ),
        (
            MEMORY,
            [
                job(min_gpu_memory_mb=20_001),
                job(min_gpu_memory_mb=9_001, gpu_count=2),
                job(min_gpu_memory_mb=9_001, gpu_name="H100"),
            ],
            [job(), job(min_gpu_memory_mb=20_000), job(min_gpu_memory_mb=9_000, gpu_count=2)],
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_a_scope_covers_what_its_words_say(scope: Scope, covered: list[Job], passing: list[Job]) -> None:
    assert all(scope.covers(Demand.of(one)) for one in covered)
    assert not any(scope.covers(Demand.of(one)) for one in passing)


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        (EveryJob(), "every job"),
        (JobsForOthers("node-A"), "jobs whose allowed_nodes leave it out"),
        (PublicJobs(), "public jobs"),
        (L4S, "jobs that need more than 2 GPUs, or GPUs that are no NVIDIA L4"),
        (JobsOfMoreGpus(()), "jobs that need more than 0 GPUs"),
        (JobsOfMoreGpus((("T4", 1),)), "jobs that need more than 1 GPU, or GPUs that are no T4"),
        (
            JobsOfMoreGpus((("H100", 1), ("L4", 2))),
            "jobs that need more than 3 GPUs (1 H100, 2 L4), or GPUs of another name",
        ),
        (JobsWithModel("asr"), "jobs that need model asr"),
        (JobsWithOtherModels(frozenset("ba")), "jobs that need any model but a, b"),
        (JobsWithOtherModels(frozenset()), "jobs that need a model"),
        (JobsWithOtherFeatures(frozenset("f")), "jobs that need any feature but f"),
        (JobsWithOtherFeatures(frozenset()), "jobs that need a feature"),
        (JobsWithOtherLabels({"zone": "a"}), "jobs that ask for any label but zone=a"),
        (JobsWithOtherLabels({}), "jobs that ask for a label"),
        (MEMORY, "jobs that need more than 20000 MiB of GPU memory (on each of 2: 9000)"),
        (JobsOfMoreMemory((("L4", -7),)), "jobs that need more than 0 MiB of GPU memory"),
        (JobsOfMoreMemory((("L4", None),)), "jobs that state a need of GPU memory"),
    ],
    ids=str,
)
def test_a_scope_reads_as_words(scope: Scope, words: str) -> None:
    assert str(scope) == words
