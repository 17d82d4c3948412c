"""Questions that follow others: "and the one on the left?", "only the bigger one".

    record = followup(state)        # a record of kind "followup", or why there is none
    record.source["history"]        # [{"question": "Where are the cups?", "answer": "I see the cups [SEG]."}]

The earlier turns are about the same image, with the answers that they should have had.
"""

from collections.abc import Callable

from assistant.record import Record
from datagen.composer import followup_wording, wording
from datagen.composer.positions import PositionOption, position_options
from datagen.composer.state import AskedTarget, ComposerState

OPPOSITES = {
    "left": "right",
    "right": "left",
    "top": "bottom",
    "bottom": "top",
    "biggest": "smallest",
    "smallest": "biggest",
    "nearest": "furthest",
    "furthest": "nearest",
    "middle": "left",
}
BY_PHRASE_SHARE = 0.5  # of the targets of a first turn
ABSENT_SHARE = 0.35  # of the follow-ups about another category, those in which it is absent
THIRD_TURN_SHARE = 0.25  # of the follow-ups about another category, those that come third, not second
ABSENT_FIRST_SHARE = 0.2  # of the first turns before another category, those about something absent
ANOTHER_BY_PHRASE_SHARE = 0.65  # of the follow-ups about another category

OPTION_PREFIX = "then "  # positions in follow-ups are counted apart from those in first questions
Turn = dict[str, str]  # {"question", "answer"}, as source["history"] holds it
Follower = Callable[[ComposerState], Record | None]


def followup(state: ComposerState) -> Record | str:
    """Compose a follow-up in one of several ways, drawn by their weights among those that this image allows.

    Returns:
        A record of kind "followup", or why there is none.
    """
    weights = dict(FOLLOWERS)
    while weights:
        (follower,) = state.rng.choices(list(weights), list(weights.values()))
        if record := follower(state):
            return record
        del weights[follower]
    return "nothing could be asked next"


def _turn(record: Record) -> Turn:
    return {"question": record.question, "answer": record.answer}


def _first_turn(state: ComposerState, target: AskedTarget) -> Turn:
    """An earlier turn about all instances of a category."""
    if target.phrase:
        question = wording.implicit_question(target.phrase, state.split, state.rng)
    else:
        count = max(1, target.object_count)
        question = wording.named_question(target.entry, count, state.split, state.rng)
    return _turn(state.record("named", question, [(target.mention(), target)]))


def _one_of_them(state: ComposerState) -> Record | None:
    """All of them, then one: "where are the cups?", "only the biggest one"."""
    options = position_options(state, OPTION_PREFIX)
    if not options:
        return None
    option = options[state.least_asked_of(sorted(options))]
    everyone = state.target(option.key, by_phrase=state.rng.random() < BY_PHRASE_SHARE)
    question = followup_wording.followup_about_position(
        "then_which", option.position, len(everyone.instances), state.split, state.rng, option.anchor
    )
    return state.record("followup", question, [_singled_out(state, option)], [_first_turn(state, everyone)])


def _singled_out(state: ComposerState, option: PositionOption) -> tuple[str, AskedTarget]:
    """One of several as a target, with what the reply calls it."""
    entry = state.bank[option.key]
    words = wording.position_phrase(option.position, entry.name, option.anchor)
    return words, AskedTarget(entry, [option.instance])


def _position_turn(state: ComposerState, option: PositionOption) -> Turn:
    """An earlier turn about one of several."""
    count = len(state.image.of(option.key))
    question = wording.position_question(
        state.bank[option.key], option.position, count, None, state.split, state.rng, option.anchor
    )
    return _turn(state.record("position", question, [_singled_out(state, option)]))


def _the_others(state: ComposerState) -> Record | None:
    """One of them, then the rest: "the left cup", "and the others?"."""
    options = position_options(state, OPTION_PREFIX)
    if not options:
        return None
    option = options[state.least_asked_of(sorted(options))]
    entry = state.bank[option.key]
    rest = [each for each in state.image.of(option.key) if each is not option.instance]
    question = followup_wording.followup_about_others(len(rest), state.split, state.rng)
    words = f"other {entry.mention(len(rest))}"
    earlier = [_position_turn(state, option)]
    return state.record("followup", question, [(words, AskedTarget(entry, rest))], earlier)


def _the_opposite(state: ComposerState) -> Record | None:
    """One of them, then its opposite: "the left cup", "and the one on the right?"."""
    options = position_options(state, OPTION_PREFIX)
    opposites: dict[str, PositionOption] = {}
    for name, option in options.items():
        opposite = options.get(name.replace(option.position, OPPOSITES.get(option.position, "-"), 1))
        if opposite and opposite.instance is not option.instance:
            opposites[name] = opposite
    if not opposites:
        return None
    name = state.least_asked_of(sorted(opposites))
    opposite = opposites[name]
    count = len(state.image.of(opposite.key))
    question = followup_wording.followup_about_position(
        "then_next", opposite.position, count, state.split, state.rng, opposite.anchor
    )
    earlier = [_position_turn(state, options[name])]
    return state.record("followup", question, [_singled_out(state, opposite)], earlier)


def _another_category(state: ComposerState) -> Record | None:
    """Another category, there or not: "where is the dog?", "and something to sit on?"."""
    rng = state.rng
    first = state.least_asked_of(state.askable)
    if rng.random() < ABSENT_SHARE:
        key = state.absent_category()
    else:
        key = state.least_asked([key for key in state.askable if key != first])
    if key is None:
        return None
    earlier = _turns_before_another(state, key, first)
    target = state.target(key, by_phrase=rng.random() < ANOTHER_BY_PHRASE_SHARE)
    count = max(1, target.object_count)
    question = followup_wording.followup_about_another(target.entry, target.phrase, count, state.split, rng)
    return state.record("followup", question, [(target.mention(), target)], earlier)


def _turns_before_another(state: ComposerState, key: str, first: str) -> list[Turn]:
    """One or two turns before a question about the category `key`; first: the category of the first turn."""
    rng = state.rng
    if rng.random() < THIRD_TURN_SHARE:
        before = rng.choice([_one_of_them, _some_of_them])(state)
        if before and key not in before.source["categories"]:
            return [*before.source["history"], _turn(before)]
    absent = state.absent_category() if rng.random() < ABSENT_FIRST_SHARE else None
    about = absent if absent and absent != key else first
    return [_first_turn(state, state.target(about, by_phrase=rng.random() < BY_PHRASE_SHARE))]


def _some_of_them(state: ComposerState) -> Record | None:
    """Several categories, then some of them: "the cup and the fork", "leave out the fork"."""
    rng = state.rng
    if len(state.askable) < 2:
        return None
    keys = [state.least_asked_of(state.askable)]
    others = [key for key in state.askable if key not in keys]
    keys += rng.sample(others, min(len(state.askable) - 1, rng.choice((1, 1, 2))))
    rng.shuffle(keys)
    targets = [state.target(key, by_phrase=False) for key in keys]
    parts = [(target.entry, target.object_count, target.phrase) for target in targets]
    first_question = wording.multi_question(parts, state.split, rng)
    first = state.record("multi", first_question, [(target.mention(), target) for target in targets])
    named = rng.choice(targets)
    question, leaves_out = followup_wording.followup_about_some(
        named.entry, named.object_count, state.split, rng
    )
    meant = [target for target in targets if (target is named) != leaves_out]
    mentions = [(target.mention(), target) for target in meant]
    return state.record("followup", question, mentions, [_turn(first)])


def _the_same(state: ComposerState) -> Record | None:
    """The same again by a pronoun: "where is the dog?", "cut it out"."""
    key = state.least_asked_of(state.askable)
    target = state.target(key, by_phrase=state.rng.random() < BY_PHRASE_SHARE)
    is_plural = target.object_count > 1 or target.entry.number in ("plural", "set")
    question = followup_wording.followup_about_same(is_plural, target.entry.is_person, state.split, state.rng)
    return state.record("followup", question, [(target.mention(), target)], [_first_turn(state, target)])


# Each way to follow, and how often it is tried relative to the others.
FOLLOWERS: dict[Follower, float] = {
    _one_of_them: 3,
    _the_others: 1.5,
    _the_opposite: 1.5,
    _another_category: 4,
    _some_of_them: 2,
    _the_same: 1,
}
