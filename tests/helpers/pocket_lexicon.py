"""The lexicon of the pocket preset, taken from WordNet 3.0: what each taught name is a word for.

python -m tests.helpers.pocket_lexicon /usr/share/wordnet     # writes assistant/pocket/wordnet.toml anew

The folder is that of Debian's package wordnet-base (data.noun, index.noun, cntlist.rev). A word stands for a
name where its first sense is a kind of what is named, and no insult: "sofa" and "settee" for a couch.
"""

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from assistant.pocket.heads import Heads
from assistant.pocket.lexicon import WORDNET_FILE
from assistant.pocket.vocabulary import comparable, published_words
from assistant.weights import pocket_file

# The sense of each name, "lemma.number"; several are joined.
SENSES: dict[str, str] = {
    "airplane": "airplane.1",
    "apple": "apple.1",
    "backpack": "backpack.1",
    "banana": "banana.2",
    "baseball bat": "baseball_bat.1",
    "baseball glove": "baseball_glove.1",
    "bear": "bear.1",
    "bed": "bed.1",
    "belt": "belt.2",
    "bench": "bench.1",
    "bicycle": "bicycle.1",
    "bird": "bird.1",
    "boat": "boat.1",
    "boots": "boot.1",
    "book": "book.1 book.2",
    "bottle": "bottle.1",
    "bowl": "bowl.1 bowl.3",
    "bracelet": "bracelet.2",
    "broccoli": "broccoli.2",
    "building": "building.1",
    "bus": "bus.1",
    "cake": "cake.3",
    "car": "car.1",
    "carrot": "carrot.1",
    "cat": "cat.1",
    "cell phone": "telephone.1 cellular_telephone.1",
    "chair": "chair.1",
    "clock": "clock.1",
    "coat": "coat.1",
    "couch": "couch.1",
    "cow": "cattle.1",
    "cup": "cup.1",
    "dining table": "table.2 table.3",
    "dog": "dog.1",
    "donut": "doughnut.1",
    "dress": "dress.1",
    "elephant": "elephant.1",
    "fence": "fence.1",
    "fire hydrant": "fire_hydrant.1",
    "fork": "fork.1",
    "frisbee": "frisbee.1",
    "giraffe": "giraffe.1",
    "glasses": "spectacles.1",
    "gloves": "glove.2",
    "hair drier": "hair_drier.1",
    "handbag": "handbag.1",
    "hat": "hat.1",
    "horse": "horse.1",
    "hot dog": "hot_dog.2",
    "jacket": "jacket.1",
    "jeans": "jean.1",
    "keyboard": "keyboard.1",
    "kite": "kite.3",
    "knife": "knife.1",
    "laptop": "laptop.1",
    "microwave": "microwave.2",
    "motorcycle": "motorcycle.1",
    "mouse": "mouse.4",
    "necklace": "necklace.1",
    "orange": "orange.1",
    "oven": "oven.1",
    "pants": "trouser.1",
    "parking meter": "parking_meter.1",
    "person": "person.1",
    "pizza": "pizza.1",
    "potted plant": "flower.1",
    "refrigerator": "refrigerator.1",
    "remote": "remote.1",
    "road": "road.1",
    "sandals": "sandal.1",
    "sandwich": "sandwich.1",
    "scarf": "scarf.1",
    "scissors": "scissors.1",
    "sheep": "sheep.1",
    "shirt": "shirt.1",
    "shoes": "shoe.1",
    "shorts": "short_pants.1",
    "sink": "sink.1",
    "skateboard": "skateboard.1",
    "skirt": "skirt.2",
    "skis": "ski.1",
    "sky": "sky.1",
    "snowboard": "snowboard.1",
    "socks": "sock.1",
    "spoon": "spoon.1",
    "sports ball": "ball.1",
    "suit": "suit.1",
    "suitcase": "suitcase.1",
    "sunglasses": "sunglasses.1",
    "surfboard": "surfboard.1",
    "sweater": "sweater.1",
    "teddy bear": "teddy.1",
    "tennis racket": "tennis_racket.1",
    "tie": "tie.1",
    "toaster": "toaster.2",
    "toilet": "toilet.2",
    "toothbrush": "toothbrush.1",
    "traffic light": "traffic_light.1",
    "train": "train.1",
    "tree": "tree.1",
    "truck": "truck.1",
    "tv": "tv.2",
    "umbrella": "umbrella.1",
    "vase": "vase.1",
    "wallet": "wallet.1",
    "watch": "watch.1",
    "wine glass": "wineglass.1",
    "zebra": "zebra.1",
}
# Names with very many kinds: of these only words that WordNet's texts use.
BROAD_NAMES = ("bird", "person", "potted plant", "tree")
MAX_WORDS = 2  # of an entry: longer ones are names of rare kinds
# In WordNet's definition of a word that nobody should be called.
INSULT = re.compile(r"ethnic slur|offensive (?:term|name|and)|disparaging|derogatory|obscene", re.I)
HEAD = """\
# Words for the names that the pocket preset was taught: each is a kind of what is named, as WordNet
# 3.0 has it. `python -m tests.helpers.pocket_lexicon FOLDER` writes this file; add words of your own
# to lexicon.toml instead.
#
# WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. This software and database
# is being provided to you, the LICENSEE, by Princeton University under the following license. By
# obtaining, using and/or copying this software and database, you agree that you have read,
# understood, and will comply with these terms and conditions: Permission to use, copy, modify and
# distribute this software and database and its documentation for any purpose and without fee or
# royalty is hereby granted, provided that you agree to comply with the following copyright notice and
# statements, including the disclaimer, and that the same appear on ALL copies of the software,
# database and documentation, including modifications that you make for internal use or for
# distribution. THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO
# REPRESENTATIONS OR WARRANTIES, EXPRESS OR IMPLIED. BY WAY OF EXAMPLE, BUT NOT LIMITATION, PRINCETON
# UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES OF MERCHANTABILITY OR FITNESS FOR ANY PARTICULAR
# PURPOSE OR THAT THE USE OF THE LICENSED SOFTWARE, DATABASE OR DOCUMENTATION WILL NOT INFRINGE ANY
# THIRD PARTY PATENTS, COPYRIGHTS, TRADEMARKS OR OTHER RIGHTS. The name of Princeton University or
# Princeton may not be used in advertising or publicity pertaining to distribution of the software
# and/or database. Title to copyright in this software, database and any associated documentation
# shall at all times remain with Princeton University and LICENSEE agrees to preserve same.

[words]
"""


class Synset(NamedTuple):
    """A meaning: its words, and the more general meanings."""

    lemmas: list[str]
    hypernyms: list[str]


class WordNet:
    """The nouns of WordNet.

    Args:
        folder: With data.noun, index.noun and cntlist.rev.
    """

    def __init__(self, folder: Path):
        self.synsets: dict[str, Synset] = {}
        self.insults: set[str] = set()  # words that are one in any of their meanings
        for line in _lines(folder / "data.noun"):
            listed, _, definition = line.partition("|")
            fields = listed.split()
            count = int(fields[3], 16)
            pointers = fields[5 + 2 * count :]
            hypernyms = [
                pointers[k + 1] for k in range(0, 4 * int(fields[4 + 2 * count]), 4) if pointers[k] in "@i"
            ]
            self.synsets[fields[0]] = Synset(fields[4 : 4 + 2 * count : 2], hypernyms)
            if INSULT.search(definition):
                self.insults.update(self.synsets[fields[0]].lemmas)
        indexed = [line.split() for line in _lines(folder / "index.noun")]
        self.senses = {fields[0]: fields[6 + int(fields[3]) :] for fields in indexed}
        self.counts: dict[str, Counter[str]] = {"noun": Counter(), "other": Counter()}
        for line in (folder / "cntlist.rev").read_text(encoding="latin-1").splitlines():
            key, _, count = line.split()
            lemma, part = key.split("%")
            self.counts["noun" if part.startswith("1:") else "other"][lemma] += int(count)
        self.kinds: dict[str, list[str]] = defaultdict(list)
        for number, synset in self.synsets.items():
            for hypernym in synset.hypernyms:
                self.kinds[hypernym].append(number)

    def sense(self, name: str) -> str:
        """The number of "lemma.k"."""
        lemma, k = name.rsplit(".", 1)
        return self.senses[lemma][int(k) - 1]

    def below(self, number: str) -> set[str]:
        """A meaning and all that are kinds of it."""
        found = {number}
        todo = [number]
        while todo:
            for kind in self.kinds[todo.pop()]:
                if kind not in found:
                    found.add(kind)
                    todo.append(kind)
        return found

    def words(self, number: str, is_broad: bool) -> set[str]:
        """The words whose first sense is a kind of a meaning."""
        return {
            lemma.replace("_", " ")
            for kind in self.below(number)
            for lemma in self.synsets[kind].lemmas
            if lemma not in self.insults
            and self.senses.get(lemma, [""])[0] == kind  # lower-case words only are in the index as they are
            and lemma.count("_") < MAX_WORDS
            and self.counts["other"][lemma] <= self.counts["noun"][lemma]
            and (not is_broad or self.counts["noun"][lemma])
        }


def _lines(file: Path) -> list[str]:
    """The lines of one of WordNet's files, without the licence at the head."""
    return [line for line in file.read_text(encoding="latin-1").splitlines() if not line.startswith("  ")]


def wordnet_words(wordnet: WordNet) -> dict[str, list[str]]:
    """{name: words for it}, without the words that the phrase bank already has."""
    taught = Heads.load(pocket_file("heads.safetensors")).phrase_rows
    known = {
        comparable(word)
        for name, words in published_words()["synonyms"].items()
        if name in taught
        for word in [name, *words]
    }
    known |= {comparable(name) for name in SENSES}
    found = {}
    for name, senses in SENSES.items():
        words = set().union(*(wordnet.words(wordnet.sense(s), name in BROAD_NAMES) for s in senses.split()))
        found[name] = sorted(word for word in words if comparable(word) not in known)
    return {name: words for name, words in found.items() if words}


if __name__ == "__main__":
    listed = wordnet_words(WordNet(Path(sys.argv[1])))
    lines = [f'"{name}" = """\n{"; ".join(words)}"""\n' for name, words in listed.items()]
    WORDNET_FILE.write_text(HEAD + "".join(lines), encoding="utf-8")
    print(sum(map(len, listed.values())), "words")
