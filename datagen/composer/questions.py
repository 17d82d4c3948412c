"""Step 3, ask, without a model: questions about images with masks, composed from the phrase bank.

    bank, drops = load_bank("coco"), Counter()
    image, *_ = read_images("instances.json", "images", bank, drops)
    for record in compose(image, bank, split="train", per_image=24, seed=0, drops=drops): ...

Kinds (`source["kind"]`): implicit, named, multi, position, part, class, absent, followup. A mask is the union
of all instances of what is meant, crowds included; for a position it is one instance, and only where no two
people would disagree which. Only categories that the data set outlines wherever they are can be absent. The
same image, split, count and seed give the same records. What is tried and given up is counted by reason. A
change of what is composed needs a new `datagen.versions.COMPOSER_VERSION`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from assistant.record import Record
from datagen.composer import wording
from datagen.composer.followups import followup
from datagen.composer.phrasebank import Entry, Group, Phrase
from datagen.composer.positions import position_options
from datagen.composer.state import AskedTarget, ComposerState, count_objects
from datagen.sources.annotated_images import AnnotatedImage

# How often each kind is tried, relative to the others.
KIND_WEIGHTS = {
    "implicit": 7,
    "named": 4,
    "multi": 4,
    "position": 4,
    "part": 6,
    "class": 2,
    "absent": 5,
    "followup": 5,
}
GROUP_SHARE = 0.3  # of the implicit questions, those that several categories may answer; of absent ones, half
PREMISE_SHARE = 0.35  # of the absent questions, those that take it for granted: "the red cup beside the dog"
# Of the absent questions, those that ask whether it is there: so many that the wording alone tells nothing.
EXISTS_SHARE_OF_ABSENT = 0.4
PART_BY_PHRASE_SHARE = 0.8
ABSENT_BY_PHRASE_SHARE = 0.6
POSITION_BY_PHRASE_SHARE = 0.25
MULTI_WITH_ABSENT_SHARE = 0.35
MAX_WORDS_IN_LIST = 9  # of a phrase in a question about several targets
MIN_TARGET_SHARE = 0.001  # of the image's area: smaller targets are not asked about (14 x 14 px of 512 x 384)
MAX_SAME_POSITION = 2  # times that the same one of several is asked for, in other words
TRIES_PER_QUESTION = 12  # before the image is left with fewer questions

Composed = Record | str  # a record, or why there is none


def compose(
    image: AnnotatedImage,
    bank: Mapping[str, Entry],
    split: str,
    per_image: int,
    seed: int,
    drops: Counter[str],
    groups: Sequence[Group] = (),
) -> Iterator[Record]:
    """Compose different questions about an image.

    Args:
        image: The image, with masks.
        bank: Phrase bank with an entry for each of its categories.
        split: "train" or "held".
        per_image: Number of questions, at most.
        seed: Another seed gives other questions.
        drops: Counts what is tried and given up, by reason.
        groups: Questions that several of the bank's categories answer.

    Yields:
        Records; their `image` is the path of the image's file.
    """
    state = ComposerState(image, bank, groups, split, seed)
    if not state.askable:
        drops["photo: nothing in it is outlined throughout"] += 1
        return
    has_parts = any(bank[key].part_of for key in state.askable)
    weights = {kind: weight for kind, weight in KIND_WEIGHTS.items() if kind != "part" or has_parts}
    asked: set[str] = set()
    for _ in range(per_image * TRIES_PER_QUESTION):
        if len(asked) == per_image:
            return
        kind = state.rng.choices(list(weights), list(weights.values()))[0]
        record = COMPOSERS[kind](state)
        if isinstance(record, str):
            drops[f"{kind}: {record}"] += 1
        elif reason := _mask_fault(record):
            drops[f"{kind}: {reason}"] += 1
        elif (words := _words_of(record)) in asked:
            drops[f"{kind}: the question was asked already"] += 1
        else:
            asked.add(words)
            yield record


def _mask_fault(record: Record) -> str | None:
    """Why a target of a record cannot be pointed at, or None."""
    pairs = zip(record.targets, record.source["area_share"], strict=True)
    shares = [share for target, share in pairs if target.rle]
    if not all(shares):
        return "the mask is empty"
    if any(share < MIN_TARGET_SHARE for share in shares):
        return "too small to be seen"
    return None


def _words_of(record: Record) -> str:
    """What a question says, with the turns before it, whichever way it is typed."""
    texts = [*(turn["question"] for turn in record.source["history"]), record.question]
    return " / ".join(text.lower().strip(" .?") for text in texts)


def _by_mention(targets: Sequence[AskedTarget]) -> list[tuple[str, AskedTarget]]:
    """Targets with what a reply calls them."""
    return [(target.mention(), target) for target in targets]


def _group(state: ComposerState, present: bool) -> Composed:
    """A question that several categories answer: "what could I sit on?"."""
    found = state.group_question(present)
    if found is None:
        return "no question about a group of categories is clear here"
    group, question = found
    keys = [key for key in group.categories if key in state.outlined] if present else group.categories[:1]
    targets = [AskedTarget(state.bank[key], state.image.of(key), question) for key in keys]
    if present:
        kind = "implicit" if len(keys) == 1 else "multi"
    else:
        kind = "absent"
    return state.record(kind, wording.as_typed(question.text, state.rng), _by_mention(targets))


def _implicit(state: ComposerState) -> Composed:
    if state.groups and state.rng.random() < GROUP_SHARE:
        return _group(state, present=True)
    target = state.target(state.least_asked_of(state.askable), by_phrase=True)
    if target.phrase is None:
        return "every phrase describes something else in the photo too"
    question = wording.implicit_question(target.phrase, state.split, state.rng)
    return state.record("implicit", question, _by_mention([target]))


def _named(state: ComposerState) -> Composed:
    target = state.target(state.least_asked_of(state.askable), by_phrase=False)
    question = wording.named_question(target.entry, target.object_count, state.split, state.rng)
    return state.record("named", question, _by_mention([target]))


def _part(state: ComposerState) -> Composed:
    parts = [key for key in state.askable if state.bank[key].part_of]
    if not parts:
        return "the data has no parts"
    key = state.least_asked_of(parts)
    target = state.target(key, by_phrase=state.rng.random() < PART_BY_PHRASE_SHARE)
    question = wording.part_question(target.entry, target.phrase, target.object_count, state.split, state.rng)
    return state.record("part", question, _by_mention([target]))


def _absent(state: ComposerState) -> Composed:
    rng = state.rng
    if state.groups and rng.random() < GROUP_SHARE / 2:
        return _group(state, present=False)
    key = state.absent_category()
    if key is None:
        return "nothing is known to be absent from the photo"
    if not state.bank[key].part_of and rng.random() < PREMISE_SHARE:
        anchors = [other for other in state.askable if _is_anchor(state, other)]
        if anchors:
            return _false_premise(state, key, rng.choice(anchors))
    target = state.target(key, by_phrase=rng.random() < ABSENT_BY_PHRASE_SHARE)
    if target.phrase:
        question = wording.implicit_question(target.phrase, state.split, rng, EXISTS_SHARE_OF_ABSENT)
    else:
        count = 1 if target.entry.number == "one" else rng.choice((1, 1, 2))
        question = wording.named_question(target.entry, count, state.split, rng, EXISTS_SHARE_OF_ABSENT)
    return state.record("absent", question, _by_mention([target]))


def _is_anchor(state: ComposerState, key: str) -> bool:
    """Whether something can stand beside the only instance of a category: nothing stands "behind the sky"."""
    entry = state.bank[key]
    is_single = count_objects(state.image.of(key)) == 1
    return is_single and not entry.part_of and entry.number != "mass"


def _false_premise(state: ComposerState, key: str, anchor: str) -> Record:
    """A question that takes an absent category for granted, beside an anchor that is there."""
    target = state.target(key, by_phrase=False)
    question = wording.premise_question(target.entry, state.bank[anchor], state.split, state.rng)
    return state.record("absent", question, _by_mention([target]))


def _multi(state: ComposerState) -> Composed:
    rng = state.rng
    with_absent = rng.random() < MULTI_WITH_ABSENT_SHARE
    present_count = min(rng.choice((2, 2, 3)) - with_absent, len(state.askable))
    if present_count + with_absent < 2:
        return "too few categories for a question about several"
    keys = [state.least_asked_of(state.askable)]
    keys += rng.sample([key for key in state.askable if key not in keys], present_count - 1)
    if with_absent and (absent := state.absent_category()):
        keys.append(absent)
    if len(keys) < 2:
        return "nothing is known to be absent from the photo"
    rng.shuffle(keys)

    def is_clear_in_list(phrase: Phrase) -> bool:
        """Readable in a list, and true of no other target of the question."""
        is_short = len(phrase.text.split()) <= MAX_WORDS_IN_LIST and not re.search(r",| and ", phrase.text)
        return is_short and not set(phrase.also_true_of) & set(keys)

    style = rng.random()  # all by phrase, all by name, or mixed
    targets = []
    for key in keys:
        by_phrase = style < 0.4 or (style > 0.65 and rng.random() < 0.5)
        targets.append(state.target(key, by_phrase, is_clear_in_list))
    parts = [(target.entry, max(1, target.object_count), target.phrase) for target in targets]
    question = wording.multi_question(parts, state.split, rng)
    return state.record("multi", question, _by_mention(targets))


def _position(state: ComposerState) -> Composed:
    options = {
        name: option
        for name, option in position_options(state).items()
        if state.used[name] < MAX_SAME_POSITION
    }
    if not options:
        return "no single instance stands out by its place or size"
    option = options[state.least_asked_of(sorted(options))]
    entry = state.bank[option.key]
    count = len(state.image.of(option.key))
    phrase = None
    if state.rng.random() < POSITION_BY_PHRASE_SHARE:
        phrase = state.phrase_for(
            option.key, lambda phrase: wording.suits_position_question(phrase, state.split)
        )
    question = wording.position_question(
        entry, option.position, count, phrase, state.split, state.rng, option.anchor
    )
    words = wording.position_phrase(option.position, entry.name, option.anchor)
    return state.record("position", question, [(words, AskedTarget(entry, [option.instance], phrase))])


def _class(state: ComposerState) -> Composed:
    rng = state.rng
    present = rng.sample(state.askable, min(len(state.askable), rng.randint(1, 4)))
    absent: list[str] = []
    for _ in range(rng.randint(1, 3)):
        if (key := state.absent_category()) and key not in absent:
            absent.append(key)
    keys = present + absent
    rng.shuffle(keys)
    targets = [state.target(key, by_phrase=False) for key in keys]
    names = [t.entry.plural if t.entry.number == "plural" else t.entry.name for t in targets]
    question = wording.class_question(names, state.split, rng)
    return state.record("class", question, [(target.entry.mention(), target) for target in targets])


COMPOSERS: dict[str, Callable[[ComposerState], Composed]] = {
    "implicit": _implicit,
    "named": _named,
    "multi": _multi,
    "position": _position,
    "part": _part,
    "class": _class,
    "absent": _absent,
    "followup": followup,
}
