"""Masks on demand: the language model names what is meant, and a concept segmenter finds its instances.

    pipeline = ConceptPipeline(opener, StructuredLLM(llm), load_concepts("facebook/sam3", opener.segmenter))
    reply, selections = pipeline.ask([Turn("what keeps the rain off?")], pipeline.opener.open(image), 0.5)

1. The model reads the question with the image, and writes for each target a name, whether it sees it, one to
   three noun phrases, and what singles out the instances that are meant, if anything does.
2. The segmenter looks for the phrases, the plainest first, until one is found. Where every instance is meant
   and model and segmenter agree, that is the answer: one call of the model.
3. Otherwise the instances are outlined and numbered, and the model picks: two calls.
4. For what it sees and nothing is found for, it is asked for other words once, and then to point at proposals
   of everything mode or to write boxes (`assistant.mllm.zero_shot`).

The SAM 3 agent (Carion et al. 2025, appendix "SAM 3 Agent") examines every mask by a call of its own. A
target's confidence joins three probabilities (`assistant.mllm.calibration`): the model's that it sees the
target, the segmenter's that the concept is in the image, and the score of its surest instance.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from assistant.grammar import Turn, plain_turn
from assistant.mllm.calibration import Confidence, Evidence, geometric_mean
from assistant.mllm.concept_prompts import (
    CONCEPTS_PROMPT,
    CONCEPTS_SCHEMA,
    OTHER_CONCEPTS_PROMPT,
    PICK_PROMPT,
    ConceptTarget,
    pick_schema,
    read_concepts,
    read_picks,
)
from assistant.mllm.set_of_mark import draw_sheet
from assistant.mllm.structured_answer import StructuredAnswer, StructuredModel
from assistant.mllm.zero_shot import ZeroShotPipeline, ask_in_form, reply_text
from assistant.pipeline import AttentionProbe, ImageOpener, Pipeline, Reply, Selection
from assistant.sam.concepts import CLEAR_PRESENCE, ConceptSegmenter, Instances, look_for
from assistant.sam.image_opener import SamOpenedImage

CLEAR_SCORE = 0.5  # of an instance, from which it is taken for one; what is less sure is shown to the model
MARKS_PER_SHEET = 20  # instances that a model reads on one picture
MAX_MARKS = 60


@dataclass
class _Found:
    """A target with what was found for it.

    Attributes:
        target: As the model named it.
        instances: For the first phrase that is in the image; None where there was none.
        chosen: Indices of the instances that are meant; None for all.
        searched: The phrases that were looked for.
    """

    target: ConceptTarget
    instances: Instances | None = None
    chosen: list[int] | None = None
    searched: list[str] = field(default_factory=list)

    @property
    def evidence(self) -> Evidence:
        """What tells whether the target is in the image."""
        picked = None if self.chosen is None else bool(self.chosen)
        if self.instances is None:
            return Evidence(self.target.probability, 0.0, 0.0, picked)
        score = float(self.instances.scores.max(initial=0.0))
        return Evidence(self.target.probability, self.instances.presence, score, picked)

    @property
    def is_clear(self) -> bool:
        """Whether model and segmenter agree, and nothing has to be singled out."""
        if self.instances is None:
            return not self.target.seen
        is_sure = self.instances.presence >= CLEAR_PRESENCE and self.instances.scores.min() >= CLEAR_SCORE
        return self.target.seen and is_sure and (not self.target.which or len(self.instances) == 1)


@dataclass
class _Costs:
    """All answers to one question; `last` carries what they took together."""

    last: StructuredAnswer | None = None
    thoughts: list[str] = field(default_factory=list)

    def add(self, answer: StructuredAnswer) -> StructuredAnswer:
        """Count an answer, and give it back."""
        if self.last is not None:
            answer.add_cost(self.last)
        self.last = answer
        return answer


class ConceptPipeline(Pipeline[SamOpenedImage]):
    """Answers with a model that names and a segmenter that finds; see `pipeline.Pipeline`.

    Args:
        opener: Opens the images that are asked about.
        model: On this machine or on a server.
        concepts: Finds instances in what `opener` opens.
        verify: Whether each target that is pointed at without the segmenter is shown to the model again.
        confidence: How sure what is known of a target makes it, see `assistant.mllm.calibration`.
    """

    concepts: ConceptSegmenter[SamOpenedImage]

    def __init__(
        self,
        opener: ImageOpener[SamOpenedImage],
        model: StructuredModel,
        concepts: ConceptSegmenter[SamOpenedImage],
        verify: bool = False,
        confidence: Confidence = geometric_mean,
    ):
        self.opener = opener
        self.model = model
        self.concepts = concepts
        self.confidence = confidence
        self.pointing = ZeroShotPipeline(opener, model, verify=verify)

    def networks(self) -> dict[str, nn.Module]:
        """See `pipeline.Pipeline`."""
        return self.pointing.networks() | self.concepts.networks()

    def attention_probe(self) -> AttentionProbe:
        """The probe of a local model. Raises BadInput for a model on a server, which exposes no attention."""
        return self.pointing.attention_probe()

    def ask(
        self,
        turns: list[Turn],
        opened: SamOpenedImage,
        threshold: float,
        *,
        verify: bool | None = None,
        stream: Callable[[str], Any] | None = None,
        **options: Any,
    ) -> tuple[Reply, list[Selection]]:
        """See `pipeline.Pipeline`; the arguments are those of `ZeroShotPipeline.ask`."""
        turns = [plain_turn(turn) for turn in turns]
        images = [self.model.image_fit.fit(opened.image)]
        turns = [replace(turns[0], images=images), *turns[1:]]
        costs = _Costs()
        passes = self.concepts.passes
        found = [_Found(target) for target in self._name(turns, CONCEPTS_PROMPT, costs, options)]
        for each in found:
            self._look_for(each, opened)
        self._look_for_other_words(found, turns, opened, costs, options)
        unclear = [each for each in found if each.instances is not None and not each.is_clear]
        if unclear:
            self._pick(unclear, turns, opened, costs, options)
        selections = [(each.target.phrase, self._selection(each)) for each in found]
        selections = self._point_at_rest(selections, found, turns, opened, threshold, verify, costs, options)
        selections.sort(key=lambda pair: pair[1].seen)  # stable: the text tells last what is not outlined
        text = reply_text(selections, threshold)
        if stream:
            stream(text)
        assert costs.last is not None
        reply = Reply(
            text,
            costs.last.tokens,
            reasoning="\n".join(part for part in (costs.last.reasoning, *costs.thoughts) if part),
            calls=costs.last.calls,
            read_tokens=costs.last.read_tokens,
            image_tokens=costs.last.image_tokens,
            passes=self.concepts.passes - passes,
        )
        return reply, [selection for _, selection in selections]

    def _name(
        self, turns: list[Turn], system: str, costs: _Costs, options: dict[str, Any]
    ) -> list[ConceptTarget]:
        """The targets that the model names. Raises BadInput where its answer has another form."""
        targets, answer, thought = ask_in_form(
            self.model, turns, system, CONCEPTS_SCHEMA, read_concepts, options
        )
        costs.add(answer)
        costs.thoughts.append(thought)
        return targets

    def _look_for(self, found: _Found, opened: SamOpenedImage) -> None:
        """Look for a target's phrases, for which nothing is found yet."""
        found.instances, searched = look_for(self.concepts, opened, found.target.concepts)
        found.searched += [phrase for phrase in searched if phrase not in found.searched]

    def _look_for_other_words(
        self,
        found: list[_Found],
        turns: list[Turn],
        opened: SamOpenedImage,
        costs: _Costs,
        options: dict[str, Any],
    ) -> None:
        """Ask once for other words for what the model sees and nothing is found for, and look for those."""
        missing = {
            each.target.phrase.lower(): each for each in found if each.target.seen and not each.instances
        }
        if not missing:
            return
        phrases = ", ".join(
            f'"{each.target.phrase}" ({", ".join(each.target.concepts)})' for each in missing.values()
        )
        assert costs.last is not None
        asked = Turn(turns[-1].question, costs.last.text, turns[-1].images)
        again = [*turns[:-1], asked, Turn(OTHER_CONCEPTS_PROMPT.format(phrases=phrases))]
        for target in self._name(again, CONCEPTS_PROMPT, costs, options):
            each = missing.get(target.phrase.lower()) or (
                next(iter(missing.values())) if len(missing) == 1 else None
            )
            if each is not None:
                which = target.which or each.target.which
                each.target = replace(each.target, seen=target.seen, concepts=target.concepts, which=which)
                each.target.probability = target.probability
                self._look_for(each, opened)

    def _pick(
        self,
        unclear: list[_Found],
        turns: list[Turn],
        opened: SamOpenedImage,
        costs: _Costs,
        options: dict[str, Any],
    ) -> None:
        """Let the model choose among numbered instances."""
        numbers: dict[int, tuple[_Found, int]] = {}
        for each in unclear:
            assert each.instances is not None
            for index in range(min(len(each.instances), MAX_MARKS - len(numbers))):
                numbers[len(numbers) + 1] = each, index
        listed = "\n".join(_candidates_line(each, numbers) for each in unclear)
        question = f"{turns[-1].question}\n\n{listed}"
        images = [*turns[0].images, *self._sheets(opened, numbers)]
        first = replace(turns[0], images=images)
        picking = (
            [first, *turns[1:-1], Turn(question)] if len(turns) > 1 else [replace(first, question=question)]
        )
        answer = costs.add(self.model.ask(picking, PICK_PROMPT, pick_schema(list(numbers)), **options))
        picks = read_picks(answer)
        for each in unclear:
            written = (picks or {}).get(each.target.phrase.lower())
            if written is None and picks and len(unclear) == 1:  # a server may name it otherwise
                written = next(iter(picks.values()))
            if written is None:
                continue  # what the segmenter found stands
            each.chosen = [
                numbers[n][1] for n in dict.fromkeys(written) if n in numbers and numbers[n][0] is each
            ]

    def _sheets(self, opened: SamOpenedImage, numbers: dict[int, tuple[_Found, int]]) -> list[np.ndarray]:
        """The image with the numbered instances, on as many pictures as they need."""
        marks: list[tuple[int | None, np.ndarray]] = []
        for number, (each, index) in numbers.items():
            assert each.instances is not None
            marks.append((number, each.instances.mask(index)))
        starts = range(0, len(marks), MARKS_PER_SHEET)
        sheets = [draw_sheet(opened.image, marks[start : start + MARKS_PER_SHEET]) for start in starts]
        return [self.model.image_fit.fit(sheet) for sheet in sheets]

    def _selection(self, found: _Found) -> Selection:
        """What a target selects, with its confidence."""
        target, instances = found.target, found.instances
        confidence = self.confidence(found.evidence)
        if instances is None:
            return Selection(confidence, [], searched=found.searched)
        mask = instances.union(found.chosen)
        if not mask.any() or not (target.seen or found.chosen):
            return Selection(confidence, [], searched=found.searched)
        chosen = range(len(instances)) if found.chosen is None else found.chosen
        masks = [instances.mask(index) for index in chosen]
        return Selection(confidence, [], mask=mask, searched=found.searched, instances=masks)

    def _point_at_rest(
        self,
        selections: list[tuple[str, Selection]],
        found: list[_Found],
        turns: list[Turn],
        opened: SamOpenedImage,
        threshold: float,
        verify: bool | None,
        costs: _Costs,
        options: dict[str, Any],
    ) -> list[tuple[str, Selection]]:
        """For what the model still sees and nothing shows: let it point, at proposals or with boxes."""
        rest = [k for k, each in enumerate(found) if each.target.seen and not selections[k][1].has_mask]
        if not rest:
            return selections
        names = ", ".join(found[k].target.phrase for k in rest)
        pointing = [replace(turns[0], question=f"Where is this: {names}?", answer="")]
        reply, pointed = self.pointing.ask(pointing, opened, threshold, verify=verify, **options)
        costs.add(
            StructuredAnswer(
                reply.written,
                tokens=reply.tokens,
                calls=reply.calls,
                read_tokens=reply.read_tokens,
                image_tokens=reply.image_tokens,
            )
        )
        for k, selection in zip(rest, pointed, strict=False):
            if selection.has_mask or selection.seen:
                selections[k] = (selections[k][0], replace(selection, searched=found[k].searched))
        return selections


def _candidates_line(found: _Found, numbers: dict[int, tuple[_Found, int]]) -> str:
    """What the model is told of a target's candidates."""
    marks = ", ".join(str(number) for number, (each, _) in numbers.items() if each is found)
    which = f" ({found.target.which})" if found.target.which else ""
    return f'"{found.target.phrase}"{which}: candidates {marks}'
