"""What a model is for and which languages it takes, by what its makers wrote about it.

Precedence: the `architectures` of its `config.json`, then the `model_type`, then the pipeline tag in its
card. A fact that decides nothing is skipped; where nothing decides, the kind is `other`. No kind is guessed
from a name, with one exception: a classifier's head does not say what it classifies, so one with "emotion" in
its name counts as `emotion`.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from gpu_agent.records import dataclass

KINDS = ("asr", "nmt", "tts", "vad", "emotion", "llm", "embedding", "vision", "other")
"""The kinds of the node protocol (§3.1)."""

_HEADS = (
    ("ForSpeechSeq2Seq", "asr"),
    ("ForSpeechToText", "asr"),
    ("ForCTC", "asr"),
    ("ForRNNT", "asr"),
    ("ForTDT", "asr"),
    ("ForTextToSpeech", "tts"),
    ("ForCausalLM", "llm"),
    ("LMHeadModel", "llm"),
    ("ForImageClassification", "vision"),
    ("ForObjectDetection", "vision"),
    ("ForSemanticSegmentation", "vision"),
    ("ForUniversalSegmentation", "vision"),
    ("ForDepthEstimation", "vision"),
)
_CLASSIFIER_HEADS = ("ForSequenceClassification", "ForAudioClassification")

_FAMILIES: dict[str, str] = {
    family: kind
    for kind, families in {
        "asr": "whisper wav2vec2 wav2vec2bert wav2vec2conformer hubert wavlm unispeech unispeechsat sew "
        "speechtotext speech2text moonshine data2vecaudio mctct granitespeech",
        "nmt": "marian m2m100 nllbmoe mbart fsmt plbart seamlessm4t seamlessm4tv2",
        "tts": "vits bark speecht5 xtts parlertts fastspeech2conformer csm dia kokoro",
        "vad": "pyannet silerovad",
        "llm": "llama llama4 mistral mixtral qwen2 qwen2moe qwen3 qwen3moe gemma gemma2 gemma3 gpt2 "
        "gptneox gptj gptoss falcon phi phi3 opt bloom mpt deepseekv2 deepseekv3 cohere cohere2 "
        "glm glm4 olmo olmo2 starcoder2 mamba mamba2 llava qwen2vl qwen25vl",
        "embedding": "mpnet nomicbert",
        "vision": "vit clip siglip dinov2 detr yolos segformer swin convnext sam depthanything",
    }.items()
    for family in families.split()
}
"""Family → kind; `model_type` and the stem of an architecture's class name, both as `_family` writes them."""

_ENCODERS = frozenset(
    f"{family}Model"
    for family in (
        "Bert",
        "Roberta",
        "XLMRoberta",
        "DistilBert",
        "Camembert",
        "DebertaV2",
        "MPNet",
        "NomicBert",
        "ModernBert",
        "New",
        "Gte",
        "JinaBert",
    )
)
_STEM = r"^(.+?)(?:MT)?(?:For[A-Z]|Model|LMHead)"

_TAGS: dict[str, str] = {
    "automatic-speech-recognition": "asr",
    "translation": "nmt",
    "text-to-speech": "tts",
    "text-to-audio": "tts",
    "voice-activity-detection": "vad",
    "text-generation": "llm",
    "text2text-generation": "llm",
    "conversational": "llm",
    "image-text-to-text": "llm",
    "sentence-similarity": "embedding",
    "feature-extraction": "embedding",
    "image-feature-extraction": "vision",
    "image-classification": "vision",
    "zero-shot-image-classification": "vision",
    "object-detection": "vision",
    "image-segmentation": "vision",
    "depth-estimation": "vision",
    "text-to-image": "vision",
    "image-to-text": "vision",
}
_CLASSIFIER_TAGS = ("audio-classification", "text-classification")

_OPUS = r"opus-mt(?:[-_](?:tc|tiny|base|big))*[-_]([A-Za-z_]+?)-([A-Za-z_]+?)(?:[-.].*)?$"
_LANGUAGE = r"^[a-z]{2,3}(?:_[A-Za-z]{2,4})?$"
_CARD_TAG = r"(?m)^pipeline_tag:[ \t]*[\"']?([a-z0-9-]+)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a model's own files say about it."""

    name: str
    architectures: tuple[str, ...] = ()
    model_type: str | None = None
    pipeline_tag: str | None = None
    sentence_encoder: bool = False
    """It has the `modules.json` of a sentence-transformers model."""


def kind_of(facts: Facts) -> str:
    """One of `KINDS`."""
    if facts.sentence_encoder:
        return "embedding"
    for architecture in facts.architectures:
        kind = _of_architecture(architecture, emotion=_is_emotion(facts.name))
        if kind:
            return kind
    family = _FAMILIES.get(_family(facts.model_type or ""))
    return family or _of_tag(facts.pipeline_tag or "", facts.name) or "other"


def languages_of(name: str) -> tuple[str | None, str | None]:
    """Source and target language of an `opus-mt-xx-yy` model; a group such as ROMANCE is no language."""
    match = re.search(_OPUS, name) if "opus-mt" in name else None
    if match is None:
        return None, None
    source, target = match.groups()
    return _language(source), _language(target)


def pipeline_tag_of(card: str) -> str | None:
    """The pipeline tag in the front matter of a model card."""
    if not card.startswith("---"):
        return None
    matter, _, _ = card[3:].partition("\n---")
    match = re.search(_CARD_TAG, matter)
    return match.group(1) if match else None


def stated_kind(value: object) -> str:
    """A kind that a person wrote down; one that the protocol does not know is `other`."""
    return value if isinstance(value, str) and value in KINDS else "other"


def strings_in(value: object) -> Iterable[str]:
    """The strings of a JSON list, whatever else it holds."""
    return (item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


@lru_cache(maxsize=256)  # the same few in thousands of models
def _of_architecture(architecture: str, *, emotion: bool) -> str | None:
    """A language model without its head gives embeddings: that is how such encoders are published."""
    for head, kind in _HEADS:
        if architecture.endswith(head):
            return kind
    if architecture.endswith(_CLASSIFIER_HEADS):
        return "emotion" if emotion else "other"
    if architecture in _ENCODERS:
        return "embedding"
    stem = re.match(_STEM, architecture)
    family = _FAMILIES.get(_family(stem.group(1))) if stem else None
    return "embedding" if family == "llm" and architecture.endswith("Model") else family


def _family(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _of_tag(tag: str, name: str) -> str | None:
    if tag in _CLASSIFIER_TAGS and _is_emotion(name):
        return "emotion"
    return _TAGS.get(tag)


def _is_emotion(name: str) -> bool:
    return "emotion" in name.lower()


def _language(code: str) -> str | None:
    return code if re.match(_LANGUAGE, code) else None
