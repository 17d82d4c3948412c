"""The words of the pocket preset, taken from the phrase bank.

python -m tests.helpers.pocket_words        # writes assistant/pocket/words.json anew
"""

import json
from typing import Any

from assistant.pocket.heads import Heads
from assistant.pocket.vocabulary import WORDS_FILE
from assistant.weights import pocket_file
from datagen.composer.phrasebank import load_bank

BANKS = ("coco", "street", "clothing", "things")


def bank_words() -> dict[str, Any]:
    """What `words.json` should hold for the published weights: hints and kinds of the taught names only."""
    taught = Heads.load(pocket_file("heads.safetensors")).phrase_rows
    synonyms: dict[str, set[str]] = {}
    hints: dict[str, set[str]] = {}
    kinds: set[str] = set()
    groups: dict[str, str] = {}
    for bank in BANKS:
        for entry in load_bank(bank).values():
            names = [name.lower() for name in (entry.key, entry.name) if name.lower() in taught]
            name = names[0] if names else entry.key.lower()
            groups.setdefault(name, entry.group)
            synonyms.setdefault(name, set()).update(entry.synonyms)
            if names:
                hints.setdefault(name, set()).update(entry.avoid)
                kinds.add(entry.group)
    return {
        "synonyms": {name: sorted(words) for name, words in sorted(synonyms.items()) if words},
        "hints": {name: sorted(words) for name, words in sorted(hints.items()) if words},
        "kinds": sorted(kinds),
        "groups": dict(sorted(groups.items())),
    }


if __name__ == "__main__":
    WORDS_FILE.write_text(json.dumps(bank_words(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
