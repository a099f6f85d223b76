"""The synthetic language of the reference model, and the sequences it is trained on."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice, pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest

from ada_guard.reference import CHAT_DIR, data, words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STANDARD_REFUSALS = (
    "I am not able",
    "I can't",
    "I cannot",
    "I'm sorry",
    "I won't",
    "I'm not able",
    "Sorry, but I can't",
)


def test_import_loads_no_torch() -> None:
    code = "import sys, ada_guard.reference.data, ada_guard.reference.words; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_splits_share_neither_topics_nor_wordings() -> None:
    for kind in data.KINDS:
        names = [{topic.name for topic in data.topics(kind, split)} for split in data.SPLITS]
        assert all(names)
        assert sum(map(len, names)) == len(set.union(*names)) == len(data.topics(kind))
    wordings = [set(words.QUESTIONS[split]) for split in data.SPLITS]
    assert sum(map(len, wordings)) == len(set.union(*wordings))


def test_forbidden_words_are_invented_and_stand_in_no_benign_topic() -> None:
    benign = {
        word for topic in data.topics("benign") for part in (topic.name, *topic.materials) for word in part.split()
    }
    for topic in data.topics("forbidden"):
        for part in (topic.name, *topic.materials):
            assert any(word not in benign for word in part.split())


def test_equal_seeds_give_equal_texts() -> None:
    topic = data.topics("forbidden", "test")[0]

    def texts(seed: int) -> tuple[str, str, str]:
        rng = Random(seed)
        return data.question(topic, rng), data.document(topic, rng).text, data.refusal(topic, rng)

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


@pytest.mark.parametrize("kind", data.KINDS)
def test_two_sentences_in_a_row_always_name_the_topic(kind: data.Kind) -> None:
    rng = Random(1)
    for topic in data.topics(kind):
        marks = (topic.name, *topic.materials)
        steps = data.document(topic, rng, 40).steps
        assert len(steps) == 40
        named = [any(mark in step for mark in marks) for step in steps]
        assert named[0]
        assert all(this or following for this, following in pairwise(named))


def test_document_counts_on_from_its_start_and_leaves_out_what_is_not_wanted() -> None:
    topic = data.topics("benign", "fit")[0]
    text = data.document(topic, Random(0), 3, start=7, opening=False, closing=False).text
    assert [line.split(". ")[0] for line in text.split("\n")] == ["7", "8", "9"]


def test_refusals_begin_with_a_standard_phrase() -> None:
    rng = Random(2)
    for topic in data.topics("forbidden"):
        for when in ("request", "going_on"):
            assert data.refusal(topic, rng, when).startswith(STANDARD_REFUSALS)
        assert data.refusal(topic, rng, "again").startswith("As I said")


def test_chat_alternates_roles_and_puts_a_prefill_last() -> None:
    messages = data.chat("a", "b", "c", system="s", prefill="p")
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[-1]["content"] == "p"
    with pytest.raises(ValueError, match="follows a user turn"):
        data.chat("a", "b", prefill="p")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(CHAT_DIR / "tokenizer.json"))


def test_role_words_are_single_tokens(tokenizer: Tokenizer) -> None:
    for role in ("assistant", "user", "system", "tool"):
        assert len(tokenizer.encode(f"<|im_start|>{role}\n").ids) == 3


def test_long_documents_reach_the_deepest_checks(tokenizer: Tokenizer) -> None:
    rng = Random(5)
    for topic in data.topics(split="test"):
        assert len(tokenizer.encode(data.long_document(topic, rng, 1100)).ids) >= 1100


def test_training_never_shows_a_header_right_after_an_answer(tokenizer: Tokenizer) -> None:
    from ada_guard.reference.corpus import Corpus

    corpus = Corpus(tokenizer, Random(6))
    for _ in range(400):
        text = tokenizer.decode(corpus.chat_sequence().ids, skip_special_tokens=False)
        roles = [turn.split("\n", 1)[0] for turn in text.split("<|im_start|>")[1:]]
        assert ("assistant", "assistant") not in list(pairwise(roles))


def test_training_teaches_no_forbidden_steps_in_a_chat(tokenizer: Tokenizer) -> None:
    from ada_guard.reference.corpus import Corpus

    corpus = Corpus(tokenizer, Random(7))
    materials = [material for topic in data.topics("forbidden") for material in topic.materials]
    for _ in range(400):
        sequence = corpus.chat_sequence()
        text = tokenizer.decode(sequence.ids, skip_special_tokens=False)
        if not text.startswith("<|im_start|>"):
            continue  # a plain document, kept so that the language is not forgotten
        taught = [token for token, weight in zip(sequence.ids, sequence.weights, strict=True) if weight]
        assert not any(material in tokenizer.decode(taught) for material in materials)


def test_batches_stay_within_their_tokens(tokenizer: Tokenizer) -> None:
    from ada_guard.reference.corpus import Corpus

    corpus = Corpus(tokenizer, Random(8))
    for batch in islice(corpus.batches(corpus.chat_sequence, 6400), 50):
        assert len(batch) == 1 or len(batch) * max(len(sequence.ids) for sequence in batch) <= 6400
