"""Answers the questions of one turn about one image: what is meant, whether it is there, and where.

    names = NamesInImage(pipeline, opened, regions)
    conversation = Conversation(pipeline, turns, opened, regions, names, threshold, options)
    items, reply = conversation.ask("where is the second cup from the left?")

`PocketPipeline` recognises the kinds of questions that rules answer; what is left comes here. A question for
one of several things is measured among the instances of all of them; a question for things that are called by
their names is scored by the language model; the rest it answers in its own words.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from assistant.grammar import Turn, parse
from assistant.mllm.selector import Scores, next_best_proposals
from assistant.pipeline import Reply, Selection
from assistant.pocket.asked_words import asks_whether, refers_back
from assistant.pocket.candidates import (
    Candidate,
    found_item,
    meant_and_present,
    missing_item,
    unknown_item,
)
from assistant.pocket.honest_reply import Item, honest_items, write_reply, written
from assistant.pocket.instance_choice import choose_instance
from assistant.pocket.named_targets import (
    MIN_NAME_CONFIDENCE,
    NamedTarget,
    main_target,
    named_targets,
    with_classes,
)
from assistant.pocket.opening import PocketOpenedImage
from assistant.pocket.presence import (
    DETECTED_SHIFT,
    PERSON_SHIFT,
    SHIFT,
    UNSPOKEN_SHIFT,
    NamePresence,
    sigmoid,
)
from assistant.pocket.question_reading import Asked
from assistant.pocket.region_encoder import EncodedRegions
from assistant.pocket.which_one import Colour, WhichOne, other_nouns, parse_which_one
from assistant.sam.close_up import sharpened
from assistant.sam.instances import separate
from assistant.sam.mask_ops import encode_rle, rle_iou

if TYPE_CHECKING:
    from assistant.pocket.pipeline import PocketPipeline

SAME_THING_IOU = 0.5  # of two masks, from which both names of a kind are taken for one thing


class NamesInImage:
    """How surely each name is in an image; computed once for all questions of a turn.

    Attributes:
        classes: What ImageNet's classifier sees.
    """

    def __init__(self, pipeline: PocketPipeline, opened: PocketOpenedImage, regions: EncodedRegions):
        self.pipeline = pipeline
        self.opened = opened
        self.regions = regions
        encoder = pipeline.llm.encoder
        self._presence = NamePresence(encoder, regions)
        self._plain_names = pipeline.llm.plain_names()
        boxes = torch.from_numpy(opened.proposals.boxes)
        self._probabilities = pipeline.name_probabilities(opened, regions, boxes)
        self.classes = pipeline.classes.evidence(opened.classes, regions.objectness, self._probabilities)

    @functools.cached_property
    def _map_evidence(self) -> Tensor:
        """Of the names of the map; see `SemanticSelector.evidence`."""
        return self.pipeline.map_evidence(self.opened)

    def logit(self, phrase: str, selector_logit: float) -> float:
        """The logit that a target is present.

        It comes from what the image looks like where images taught the name, and from the selector for all
        others, such as those of a tuned adapter.
        """
        pipeline = self.pipeline
        if phrase in pipeline.classes.names:
            return self.classes.logit(phrase)
        row = pipeline.llm.phrase_rows.get(phrase)
        if row is None:  # maybe one with words around the name
            row = pipeline.llm.row_of(phrase)
        if row is not None and row in pipeline.semantic_rows:
            evidence = float(self._map_evidence[pipeline.semantic_rows[row]])
            detection = self._detection(row)
            return self._presence.logit(row, evidence, self._shift(row, detection), detection)
        if row is not None and phrase in pipeline.unspoken:
            return max(self._presence.unmapped_logit(row), self.classes.logit(phrase))
        return selector_logit

    def _detection(self, row: int) -> float | None:
        """The score of the surest detection of the name in a row; None where it is no category."""
        category = self.pipeline.detector_rows.get(row)
        return None if category is None else self._detected.get(category, 0.0)

    @functools.cached_property
    def _detected(self) -> dict[int, float]:
        """{category: score of its surest detection}."""
        found = self.opened.detections  # surest first, so that the surest of a category comes last here
        return dict(zip(reversed(found.categories.tolist()), reversed(found.scores.tolist()), strict=True))

    def _shift(self, row: int, detection: float | None) -> float:
        """The shift of the presence of the name in a row of the encoder."""
        name = self._plain_names.get(row, "")
        if name == "person":
            return PERSON_SHIFT
        if detection is not None:
            return DETECTED_SHIFT
        return UNSPOKEN_SHIFT if name in self.pipeline.unspoken else SHIFT

    @functools.cached_property
    def mapped(self) -> dict[str, float]:
        """{name: logit that it is present}, of all names of the map."""
        pipeline = self.pipeline
        return {
            name: self.logit(name, 0.0)
            for row, name in self._plain_names.items()
            if row in pipeline.semantic_rows
        }

    @functools.cached_property
    def taught(self) -> list[NamedTarget]:
        """The taught names that are seen without being asked for, surest first."""
        whole = self.regions.objectness.sigmoid()
        return named_targets(self._plain_names, self._probabilities, whole, self.mapped)

    @functools.cached_property
    def seen(self) -> list[NamedTarget]:
        """What is seen without being asked for, surest first."""
        return with_classes(self.taught, self.classes, self.pipeline.classes.names)

    @functools.cached_property
    def main_name(self) -> str | None:
        """The name of what the image mainly shows; None where that is not sure."""
        target = main_target(self.seen, self.opened.proposals)
        return target.name if target and target.probability >= MIN_NAME_CONFIDENCE else None

    @functools.cached_property
    def seen_unspoken(self) -> set[str]:
        """The names that are likely there and that the language model was not taught."""
        return {name for name in self.pipeline.unspoken if self.logit(name, -1.0) >= 0}


class _MarkerSelections:
    """Decides the markers of replies and collects a selection for each."""

    def __init__(
        self,
        pipeline: PocketPipeline,
        opened: PocketOpenedImage,
        regions: EncodedRegions,
        names: NamesInImage,
        threshold: float,
    ):
        self.pipeline = pipeline
        self.opened = opened
        self.regions = regions
        self.names = names
        self.threshold = threshold
        self.selections: list[Selection] = []

    def decide(self, state: Tensor, margin: Tensor, phrase: str) -> bool:
        """Whether the target of a marker is present; see `llm.Decision`."""
        selection = self._select(state, margin, phrase)
        self.selections.append(selection)
        return len(self.opened.features) > 0 and selection.confidence >= self.threshold

    def _select(self, state: Tensor, margin: Tensor, phrase: str) -> Selection:
        if not len(self.opened.features):
            return Selection(0.0, [])
        return self.selection(self.scores(state[None], margin[None], [phrase]), phrase)

    def scores(self, states: Tensor, margins: Tensor, phrases: Sequence[str]) -> Scores:
        """What the selector says of M targets, from the LLM's states (M, W) and margins (M,)."""
        return self.pipeline.score_targets(self.regions, states, margins, phrases)

    def selection(self, scores: Scores, phrase: str) -> Selection:
        """The selection of one target."""
        confidence = sigmoid(self.names.logit(phrase, float(scores.presence[0])))
        if phrase in self.pipeline.classes.names:
            return Selection(confidence, self.names.classes.regions(phrase, self.opened.rles))
        chosen = self.pipeline.choose(scores, phrase, self.opened)
        return Selection(confidence, chosen, next_best_proposals(scores, 0, chosen))


class Conversation:
    """Asks the language model about one image, after the turns of a conversation.

    Args:
        pipeline, opened, regions, names, threshold: Of the image.
        turns: Earlier turns, then the one to answer.
        options: See `Pipeline.ask`.
    """

    def __init__(
        self,
        pipeline: PocketPipeline,
        turns: list[Turn],
        opened: PocketOpenedImage,
        regions: EncodedRegions,
        names: NamesInImage,
        threshold: float,
        options: dict[str, Any],
    ):
        self.pipeline = pipeline
        self.turns = turns
        self.opened = opened
        self.regions = regions
        self.names = names
        self.threshold = threshold
        self.stream = options.get("stream")
        self.options = {name: value for name, value in options.items() if name != "stream"}

    def ask(self, question: str) -> tuple[list[Item], Reply]:
        """Ask one question; returns the targets, called by what was asked, and the reply itself."""
        markers = _MarkerSelections(self.pipeline, self.opened, self.regions, self.names, self.threshold)
        earlier = self.turns[:-1] if refers_back(question) else []
        if not earlier and len(self.opened.features):
            if which := parse_which_one(question):
                return self._ask_which_one(which)
            asked = self.pipeline.reader.read(question, self.names.seen_unspoken)
            if asked is not None:
                return self._ask_for(question, asked, markers)
            question = self.pipeline.reader.rewritten(question)
        llm = self.pipeline.llm
        reply = llm.reply([*earlier, Turn(question)], self.regions, decide=markers.decide, **self.options)
        heard = " ".join(text for turn in earlier for text in (turn.question, turn.answer or ""))
        items = honest_items(
            question,
            f"{heard} {question}",
            parse(reply.text),
            markers.selections,
            llm,
            self.pipeline.vocabulary,
        )
        return items, reply

    def name(self, names: Sequence[str]) -> tuple[list[Item], Reply]:
        """Outline the things with these names, of which at least one is given; those that are there."""
        markers = _MarkerSelections(self.pipeline, self.opened, self.regions, self.names, self.threshold)
        items, reply = self._ask_for("", [Asked(name, [name]) for name in names], markers)
        return self._named_once([item for item in items if item.present]), reply

    def _ask_for(
        self, question: str, asked: list[Asked], markers: _MarkerSelections
    ) -> tuple[list[Item], Reply]:
        """Answer a question for things whose names are known: the language model scores them, unasked."""
        llm = self.pipeline.llm
        names = list(dict.fromkeys(name for thing in asked for name in thing.names))
        if not names:
            return [unknown_item(thing) for thing in asked], Reply("", 0)
        if any(thing.similarities for thing in asked):
            answers = llm.score_answers(question, self.regions, names)
        else:
            answers = llm.score_named(self.regions, names)
        scores = markers.scores(answers.states, answers.margins, names)
        candidates = [
            Candidate(
                name,
                float(answers.likelihood[k]),
                self.names.logit(name, float(scores.presence[k])),
            )
            for k, name in enumerate(names)
        ]
        items: list[Item] = []
        for thing in asked:
            found: list[Item] = []
            for name, confidence in meant_and_present(
                thing, candidates, self.threshold, self.names.main_name
            ):
                row = names.index(name)
                selection = markers.selection(Scores(*(part[row : row + 1] for part in scores)), name)
                found.append(found_item(thing, name, replace(selection, confidence=confidence)))
            items += self._named_once(found) or [missing_item(thing, candidates, asks_whether(question))]
        return items, Reply("", 0, states=answers.states, margins=answers.margins)

    def _named_once(self, items: list[Item]) -> list[Item]:
        """The items, in their order, without those that outline what a surer one has named already."""
        if len(items) < 2:
            return items
        masks = [encode_rle(item.selection.covered(self.opened.proposals)) for item in items]
        kept: list[int] = []
        for k in sorted(range(len(items)), key=lambda k: -items[k].selection.confidence):
            if not kept or rle_iou([masks[k]], [masks[i] for i in kept]).max() < SAME_THING_IOU:
                kept.append(k)
        return [items[k] for k in sorted(kept)]

    def _ask_which_one(self, which: WhichOne) -> tuple[list[Item], Reply]:
        """Answer a question for one of several things: all are asked for, and which one it is is measured."""
        items, reply = self.ask(which.question)
        found = [
            (mask, item)
            for item in items
            if item.present
            for mask in self._instances(item.phrase, item.selection)
        ]
        absent = next((item for item in items if not item.present), None)
        chosen = None
        if found:
            others = {
                noun: mask
                for noun in other_nouns(which.conditions)
                if (mask := self._mask_of(noun, found)) is not None
            }
            masks = [mask for mask, _ in found]
            has_colour = any(isinstance(condition, Colour) for condition in which.conditions)
            pixels = self._pixels() if has_colour else None
            chosen = choose_instance(masks, which.conditions, pixels, others)
        if chosen is None:
            item = absent or found[0][1]
            words = which.words.format(item.phrase)
            confidence = min(item.selection.confidence, self.threshold / 2)
            selection = Selection(confidence, [], known=item.selection.known)
            return [replace(item, phrase=words, present=False, selection=selection)], reply
        mask, item = found[chosen]
        selection = item.selection
        others_next = [*selection.proposals, *selection.others]
        selection = Selection(selection.confidence, [], others_next, mask, selection.known, instances=[mask])
        return [replace(item, phrase=which.words.format(item.phrase), selection=selection)], reply

    def _pixels(self) -> np.ndarray | None:
        """(H, W, 3) uint8 RGB, the image; None where the embedding does not hold it."""
        pixels = self.opened.embedding.pixels
        height, width = self.opened.size
        if pixels is None or pixels.shape[:2] == (height, width):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((width, height)))

    def _instances(self, phrase: str, selection: Selection) -> list[np.ndarray]:
        """The instances (H, W) bool of a selection, none of them empty."""
        proposals = self.opened.proposals
        parts = separate(
            selection.covered(proposals), proposals, self.pipeline.wholeness(self.opened, phrase)
        )
        return [part for part in parts if part.any()]

    def outlines(self, item: Item) -> np.ndarray:
        """What an item covers, (H, W) bool, as it is selected and as `Scene` outlines it again."""
        mask = item.selection.covered(self.opened.proposals)
        segmenter, embedding = self.pipeline.opener.segmenter, self.opened.embedding
        for part in item.selection.instances or self._instances(item.phrase, item.selection):
            mask |= sharpened(segmenter, embedding, part)
        return mask

    def _mask_of(self, noun: str, found: Sequence[tuple[np.ndarray, Item]]) -> np.ndarray | None:
        """(H, W) bool of another thing that a question mentions.

        None where it is not there, or where it is of the kind of what is found.
        """
        items, _ = self.ask(f"where is the {noun}?")
        kinds = {item.phrase for _, item in found}
        proposals = self.opened.proposals
        masks = [
            item.selection.covered(proposals) for item in items if item.present and item.phrase not in kinds
        ]
        mask = np.logical_or.reduce(masks) if masks else None
        return mask if mask is not None and mask.any() else None

    def answer(self, questions: list[str], seen: str) -> tuple[Reply, list[Selection]]:
        """Answer questions in one reply; `seen`: what it offers where something was not understood."""
        items: list[Item] = []
        replies = []
        for k, question in enumerate(questions):
            found, reply = self.ask(question)
            if self.stream:
                self.stream(f"{' ' if k else ''}{written(found)}")
            items += found
            replies.append(reply)
        joined = Reply(
            "",
            sum(reply.tokens for reply in replies),
            states=_joined([reply.states for reply in replies]),
            margins=_joined([reply.margins for reply in replies]),
        )
        return write_reply(items, seen, joined)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """The parts that there are, one after the other; None without any."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None
