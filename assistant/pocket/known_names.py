"""The names that the pocket preset knows, with their kinds and the other words for them.

known_names(["cup", "dog"])     # [KnownName("cup", "tableware", ("beaker", "mug", ...)), ...]
"""

from collections.abc import Iterable

from assistant.pipeline import KnownName
from assistant.pocket.lexicon import published_lexicon
from assistant.pocket.vocabulary import published_words

OTHER_GROUP = "other"  # of a name that the phrase bank lacks, such as that of a tuned adapter


def known_names(names: Iterable[str]) -> list[KnownName]:
    """What is known about some names.

    Args:
        names: The taught names, each in its plain form.

    Returns:
        One entry for each, in the same order. Its words are the synonyms of the phrase bank and those words
        of the lexicon that stand for no other of the names.
    """
    published = published_words()
    words = {name: set(published["synonyms"].get(name, ())) for name in names}
    for word, meant in published_lexicon().items():
        known = [name for name in meant if name in words]
        if len(known) == 1:
            words[known[0]].add(word.strip())
    return [
        KnownName(name, published["groups"].get(name, OTHER_GROUP), tuple(sorted(others - {name})))
        for name, others in words.items()
    ]
