"""How long a cache of 1 000 models takes to scan, against the hub's own library in the same run.

    python benchmarks/model_scan.py [--models 1000] [--files 20] [--rounds 7] [--check]

Each model has the twenty files of a usual one, or as many as stated; one of five holds weights. Both read
the same cache, in turns, so that the machine's moods hit both alike. Its pages are in memory, so processor
time is all the time there is on an idle machine, and that is measured. Ours is scanned cold (a new scanner
that knows nothing, and reports what each model is for besides), again without a change, and once more as the
agent does it, with the kernel's notifications. The ratio is the median of the ratios round by round.
`--check` exits 1 when a target is missed.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

from huggingface_hub import scan_cache_dir

from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.probe.models.inotify import InotifyWatcher
from gpu_agent.probe.models.scanner import ModelScanner
from tests.probe.models.caches import repository, revision, settle

Result = TypeVar("Result")

TARGET_RATIO = 0.2
TARGET_WATCHED_MS = 10.0
BUDGET_SECONDS = 60.0
CARD = b"---\npipeline_tag: text-generation\n---\n" + b"A model. " * 200
CONFIGS = (
    b'{"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"}',
    b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}',
    b'{"architectures": ["MarianMTModel"], "model_type": "marian"}',
    b'{"architectures": ["BertModel"], "model_type": "bert"}',
    b'{"architectures": ["VitsModel"], "model_type": "vits"}',
    b'{"model_type": "of its own"}',
)
TENSORS = 72
OTHERS = (
    ".gitattributes",
    "LICENSE",
    "USE_POLICY.md",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "normalizer.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


def make_cache(hub: Path, count: int, files_each: int) -> None:
    """Write repositories as the hub's library does: blobs, a ref, and a snapshot of links."""
    parts = max(1, files_each // 5)
    for number in range(count):
        config = CONFIGS[number % len(CONFIGS)][:-1] + b', "id": %d}' % number
        files: dict[str, bytes | str] = {
            "config.json": config,
            "README.md": CARD + b"%d" % number,
            **{
                f"model-{part:05}-of-{parts:05}.safetensors": part_of_weights(part, number)
                for part in range(1, parts + 1)
            },
            **{name: f"{name} of {number}" for name in OTHERS[: files_each - parts - 2]},
        }
        repository(hub, f"org{number % 50}/model-{number}").snapshot(revision(number % 90), files)
    settle(hub)


def part_of_weights(part: int, number: int) -> bytes:
    """One part, whole: a header of as many tensors as a part of a usual model has, and a byte of each."""
    header = {
        f"model.layers.{n}.{part}.{number}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]}
        for n in range(TENSORS)
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(TENSORS)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Do it and say how much processor time it took, in milliseconds: both work on one core of several."""
    gc.collect()  # else what others left would be collected in its time
    started = time.process_time()
    result = work()
    return (time.process_time() - started) * 1000, result


def measure(hub: Path, count: int) -> tuple[float, float, float, float]:
    """One round: the baseline, ours cold, again without a change, and the same watched. Milliseconds."""
    baseline, found = timed(lambda: len(scan_cache_dir(hub).repos))  # kept, it would slow all that follows
    scanner = ModelScanner([HubCache([hub])])
    cold, first = timed(lambda: scanner.scan(BUDGET_SECONDS))
    warm, again = timed(lambda: scanner.scan(BUDGET_SECONDS))
    watcher = InotifyWatcher.open()
    if watcher is None:
        raise SystemExit("there is no inotify here, with which the agent scans")
    (state,) = scanner.states
    state.quiet_since = watcher.quiet_since
    watcher.follow(state.watched_paths)
    if watcher.limit:
        raise SystemExit(watcher.limit)
    scanner.scan(BUDGET_SECONDS)  # what changed before it was watched
    watched, last = timed(lambda: scanner.scan(BUDGET_SECONDS))
    watcher.close()
    if not found == len(first.models) == len(again.models) == len(last.models) == count:
        raise SystemExit("a scan missed models: its time means nothing")
    return baseline, cold, warm, watched


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=1000, help="how many models the cache holds")
    parser.add_argument("--files", type=int, choices=range(5, 21), default=20, help="how many files each has")
    parser.add_argument("--rounds", type=int, default=7, help="how many rounds")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        hub = Path(temporary)
        make_cache(hub, arguments.models, arguments.files)
        measure(hub, arguments.models)
        rounds = [measure(hub, arguments.models) for _ in range(arguments.rounds)]
    ratio = statistics.median(cold / baseline for baseline, cold, *_ in rounds)
    baseline, cold, warm, watched = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(f"{arguments.models} models, cold                  median {cold:7.1f} ms")
    print(f"baseline: huggingface_hub.scan_cache  median {baseline:7.1f} ms")
    print(f"ratio, median of rounds               {ratio:.3f} (target <= {TARGET_RATIO})")
    print(f"again, without a change               median {warm:7.1f} ms")
    print(f"the same, watched by the kernel       median {watched:7.1f} ms (target <= {TARGET_WATCHED_MS:g})")
    return int(arguments.check and (ratio > TARGET_RATIO or watched > TARGET_WATCHED_MS))


if __name__ == "__main__":
    sys.exit(main())
