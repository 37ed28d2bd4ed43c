import pytest

from gpu_agent.probe.models.kinds import (
    KINDS,
    Facts,
    kind_of,
    languages_of,
    pipeline_tag_of,
    stated_kind,
    strings_in,
)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("WhisperForConditionalGeneration", "asr"),
        ("Wav2Vec2ForCTC", "asr"),
        ("SpeechT5ForSpeechToText", "asr"),
        ("Speech2TextForConditionalGeneration", "asr"),
        ("MarianMTModel", "nmt"),
        ("M2M100ForConditionalGeneration", "nmt"),
        ("MBartForConditionalGeneration", "nmt"),
        ("NllbMoeForConditionalGeneration", "nmt"),
        ("VitsModel", "tts"),
        ("BarkModel", "tts"),
        ("SpeechT5ForTextToSpeech", "tts"),
        ("ParlerTTSForConditionalGeneration", "tts"),
        ("LlamaForCausalLM", "llm"),
        ("GPT2LMHeadModel", "llm"),
        ("Qwen3MoeForCausalLM", "llm"),
        ("Qwen2_5_VLForConditionalGeneration", "llm"),
        ("MistralModel", "embedding"),
        ("BertModel", "embedding"),
        ("XLMRobertaModel", "embedding"),
        ("ViTForImageClassification", "vision"),
        ("CLIPModel", "vision"),
        ("BertForMaskedLM", "other"),
        ("T5ForConditionalGeneration", "other"),
        ("", "other"),
    ],
)
def test_an_architecture_gives_the_kind(architecture: str, kind: str) -> None:
    assert kind_of(Facts(name="a/b", architectures=(architecture,))) == kind


def test_the_architecture_counts_before_the_type_and_the_type_before_the_tag() -> None:
    facts = Facts(
        name="a/b",
        architectures=("SpeechT5ForTextToSpeech",),
        model_type="whisper",
        pipeline_tag="translation",
    )
    assert kind_of(facts) == "tts"
    assert kind_of(Facts(name="a/b", model_type="m2m_100", pipeline_tag="text-to-speech")) == "nmt"
    assert kind_of(Facts(name="a/b", model_type="t5", pipeline_tag="translation")) == "nmt"


def test_a_classifier_is_emotion_only_by_its_name() -> None:
    heads = ("Wav2Vec2ForSequenceClassification",)
    assert kind_of(Facts(name="a/wav2vec2-emotion", architectures=heads, model_type="wav2vec2")) == "emotion"
    assert kind_of(Facts(name="a/keyword-spotting", architectures=heads, model_type="wav2vec2")) == "other"
    assert kind_of(Facts(name="iic/emotion2vec", pipeline_tag="audio-classification")) == "emotion"


def test_a_sentence_encoder_is_an_embedding_whatever_it_is_built_on() -> None:
    facts = Facts(name="Qwen/Qwen3-Embedding", architectures=("Qwen3ForCausalLM",), sentence_encoder=True)
    assert kind_of(facts) == "embedding"


@pytest.mark.parametrize(
    ("name", "languages"),
    [
        ("Helsinki-NLP/opus-mt-en-de", ("en", "de")),
        ("Helsinki-NLP/opus-mt-tc-big-en-pt", ("en", "pt")),
        ("Helsinki-NLP/opus-mt_tiny_eng-deu", ("eng", "deu")),
        ("Helsinki-NLP/opus-mt-en-ROMANCE", ("en", None)),
        ("me/opus-mt-zh-en-ct2", ("zh", "en")),
        ("facebook/nllb-200-distilled-600M", (None, None)),
    ],
)
def test_opus_names_give_the_languages(name: str, languages: tuple[str | None, str | None]) -> None:
    assert languages_of(name) == languages


@pytest.mark.parametrize(
    ("card", "tag"),
    [
        ("---\nlicense: mit\npipeline_tag: text-to-speech\n---\n# Title", "text-to-speech"),
        ('---\r\npipeline_tag: "translation"\r\n---\r\n', "translation"),
        ("---\nlicense: mit\n---\npipeline_tag: translation", None),
        ("pipeline_tag: translation", None),
        ("", None),
    ],
)
def test_the_tag_is_read_from_the_front_matter_only(card: str, tag: str | None) -> None:
    assert pipeline_tag_of(card) == tag


def test_a_stated_kind_that_the_protocol_does_not_know_is_other() -> None:
    assert [stated_kind(kind) for kind in KINDS] == list(KINDS)
    assert stated_kind("clairvoyance") == stated_kind(7) == "other"


def test_texts_passes_over_what_is_no_text() -> None:
    assert list(strings_in(["a", 1, None, "b"])) == ["a", "b"]
    assert list(strings_in("ab")) == list(strings_in(None)) == []
