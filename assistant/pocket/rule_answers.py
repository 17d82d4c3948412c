"""Answers of the pocket preset to questions that rules understand: all but a thing, the background, counting.

    answer_except(Except(["cup"]), context)       # (Reply, [Selection]): "I see everything except the cup."

Each function returns a reply in the grammar and a selection for each of its markers, as `Pipeline.ask` does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from assistant.dialogue.instances import share
from assistant.grammar import marked
from assistant.pipeline import Reply, Selection
from assistant.pocket.honest_reply import Item, write_reply
from assistant.pocket.named_targets import (
    MIN_NAME_CONFIDENCE,
    MIN_SEEN_CONFIDENCE,
    NOT_OFFERED,
    SURROUNDINGS,
    NamedTarget,
    main_target,
    offer,
)
from assistant.pocket.opening import PocketOpenedImage
from assistant.pocket.question_kinds import Count, Except, Talk
from assistant.pocket.region_encoder import EncodedRegions

Answered = tuple[Reply, list[Selection]]
MIN_EXCEPTED_SHARE = 0.5  # of a region in what is excepted, from which the region is left out
MAX_NAMED = 8  # things that are outlined when all are asked for
# Of a name, from which a thing is outlined then. On six photos that were looked at, flute, carrot, fish and
# bird were seen by mistake with .46 to .62.
MIN_LISTED_PROBABILITY = 0.65
NOTHING_RECOGNISED = "I do not recognise what this shows. Please name or describe something in the photo."


@dataclass
class RuleContext:
    """An image as the rules see it.

    Attributes:
        opened: The image.
        regions: Its encoded regions.
        seen: What is seen without being asked for.
        ask: Asks the language model a question; returns the items and the reply.
        name: Outlines the things with these names, of which at least one is given; the same of those there.
        outlines: All that an item may be shown to cover, (H, W) bool.
    """

    opened: PocketOpenedImage
    regions: EncodedRegions
    seen: list[NamedTarget]
    ask: Callable[[str], tuple[list[Item], Reply]]
    name: Callable[[Sequence[str]], tuple[list[Item], Reply]]
    outlines: Callable[[Item], np.ndarray]

    def things(self) -> list[int]:
        """Indices of the proposals that are surely things, whether they have a name or not."""
        surrounding = {
            index for thing in self.seen if thing.name in SURROUNDINGS for index in thing.proposals
        }
        named = {index for thing in self.seen for index in thing.proposals}
        likely = torch.nonzero(self.regions.objectness.sigmoid() >= MIN_SEEN_CONFIDENCE).flatten().tolist()
        return sorted((named | set(likely)) - surrounding)


def _reply(text: str, selections: list[Selection], tokens: int = 0) -> Answered:
    return Reply(text, tokens, [True] * len(selections)), selections


def answer_talk(kind: Talk, context: RuleContext) -> Answered:
    """A short reply that points at nothing."""
    return _reply(f"{kind.reply} {offer(context.seen) if kind.offers else ''}".strip(), [])


def answer_except(kind: Except, context: RuleContext) -> Answered:
    """The union of all likely things without those that are excepted, which may be absent."""
    found: list[Item] = []
    tokens = 0
    for thing in kind.things:
        items, reply = context.ask(f"where is the {thing}?")
        found += items
        tokens += reply.tokens
    excepted = np.zeros(context.opened.size, bool)
    for item in found:
        if item.present:
            excepted |= context.outlines(item)
    proposals = context.opened.proposals
    kept = [k for k in context.things() if share(proposals.mask(k), excepted) < MIN_EXCEPTED_SHARE]
    mask = proposals.union(kept) & ~excepted
    absent = [item for item in found if not item.present]
    reply, selections = write_reply(absent, "", Reply("", tokens)) if absent else (Reply("", tokens), [])
    if not mask.any():
        rest = "I see nothing else that stands out."
        return Reply(f"{reply.text} {rest}".strip(), tokens, reply.markers), selections
    name = f"everything except the {' and the '.join(kind.things)}" if kind.things else "everything"
    text = f"{reply.text} I see {marked(name, True)}.".strip()
    return Reply(text, tokens, [*reply.markers, True]), [*selections, Selection(1.0, [], [], mask)]


def answer_background(context: RuleContext) -> Answered:
    """All that no likely thing covers."""
    mask = ~context.opened.proposals.union(context.things())
    if not mask.any():
        return _reply("Things cover the whole photo: I see no background between them.", [])
    return _reply(f"I see the {marked('background', True)}.", [Selection(1.0, [], [], mask)])


def answer_count(kind: Count, context: RuleContext) -> Answered:
    """What is counted; the answer tells a number for each target, see `Reply.tells_numbers`."""
    items, asked = context.ask(f"find all {kind.things}.")
    reply, selections = write_reply(items, offer(context.seen), asked)
    reply.tells_numbers = True
    return reply, selections


def answer_all(context: RuleContext) -> Answered:
    """Everything that is seen, each thing with its name; without one, what may be asked."""
    sure = [target for target in context.seen if target.probability >= MIN_LISTED_PROBABILITY]
    names = [target.name for target in sure if target.name not in NOT_OFFERED][:MAX_NAMED]
    items, asked = context.name(names) if names else ([], Reply("", 0))
    return write_reply(items, "", asked) if items else answer_main_target(context)


def answer_main_target(context: RuleContext) -> Answered:
    """The name of the thing that stands out most; without one, what may be asked."""
    proposals = context.opened.proposals
    thing = main_target(context.seen, proposals)
    if thing is None:
        return _reply(NOTHING_RECOGNISED, [])
    name = f"{marked(thing.name, True)} ({thing.probability:.0%})"
    is_sure = thing.probability >= MIN_NAME_CONFIDENCE
    text = f"This looks like: {name}." if is_sure else f"I am not sure what this is, perhaps: {name}."
    others = offer([other for other in context.seen if other.name != thing.name]).replace(
        "can", "can also", 1
    )
    selection = Selection(thing.confidence, thing.proposals, instances=[proposals.union(thing.proposals)])
    return _reply(f"{text} {others}".strip(), [selection])
