"""Everyday questions in people's own words, asked about any COCO-format folder.

python -m eval everyday --root coco/val --out runs/eval/everyday --preset pocket

The questions come from the patterns in `everyday.toml`, whose `train` half may be used to choose a model's
settings and whose `held` half only measures. The truth of a pattern is decided from the outlines of the
folder: every instance of the categories that answer it, or the one on the left, or none. Beside the scores of
every benchmark of questions (`eval.questions.summary`) it tells how many denials are of things that the
question does not name, how many counts are right, and how often the main thing of a photo is named rightly.

Of people the folder only knows that they are people: whoever answers "the woman" with any person is right.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.grammar import reply_for
from assistant.record import Record, RecordTarget
from assistant.sam.mask_ops import encode_rle
from eval.annotated_images import AnnotatedImage, Instance, read_annotated_images
from eval.questions.question import Question
from eval.questions.run import QuestionOptions, run_questions
from eval.settings import EvalSettings, eval_settings

VERSION = 1
PATTERNS_FILE = Path(__file__).with_suffix(".toml")
SPLITS = ("held", "train")
PRESENT_PER_PATTERN = 2  # photos that show what a pattern asks for
ABSENT_PER_PATTERN = 1  # photos that do not
SLOT_FACTOR = 3  # so many times as many for a pattern with a slot, which stands for many questions
# Share of the photo that an answer's outlines cover at least: what is smaller is seen by few people.
MIN_TARGET_SHARE = 0.005
MIN_CENTRE_DISTANCE = 0.08  # of the image's side, from the next instance: "the left one" is then only one
MIN_SIZE_RATIO = 1.5  # to the next instance, for "the biggest one"
MAX_PICKED_FROM = 6  # instances of a category that one is picked from
MAX_COUNTED = 9
MIN_MAIN_SHARE = 0.12  # of the photo that its main thing covers
MIN_MAIN_RATIO = 2.0  # to the next category
NUMBER_WORDS = {
    word: k
    for k, word in enumerate("no one two three four five six seven eight nine ten eleven twelve".split())
}
IRREGULAR_PLURALS = {"person": "people", "sheep": "sheep", "knife": "knives", "mouse": "mice"}
UNCOUNTABLE = ("scissors", "skis", "broccoli")  # of COCO's categories
# Kinds of questions whose truth is more than "what has these names, if anything".
NOTHING_KINDS = ("talk", "elsewhere")


@dataclass(frozen=True)
class Pattern:
    """A question as people ask it.

    Attributes:
        kind: The kind of question.
        split: "train" or "held".
        question: The question; "{name}" and "{plural}" stand for a category.
        things: The categories of each thing that is asked for; () where the question has a slot for it.
        maybe: Categories that an image must not show.
        pick: The instance that is meant: "left", "biggest", ...; "" for all.
    """

    kind: str
    split: str
    question: str
    things: tuple[tuple[str, ...], ...] = ()
    maybe: tuple[str, ...] = ()
    pick: str = ""

    @property
    def has_slot(self) -> bool:
        """Whether a category is filled in."""
        return "{" in self.question

    def filled(self, category: str) -> Pattern:
        """The pattern with a category in its slot."""
        question = re.sub(r"\ba (?={name})", "an " if category[0] in "aeiou" else "a ", self.question)
        question = question.format(name=category, plural=_plural(category))
        return Pattern(self.kind, self.split, question, ((category,),), self.maybe, self.pick)


@dataclass(frozen=True)
class EverydayOptions:
    """What this benchmark asks beside `EvalSettings`.

    Attributes:
        split: "held", "train" or "all".
        kinds: The kinds of questions to ask; () for all.
    """

    split: str = "held"
    kinds: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's own options."""
    parser.add_argument(
        "--split", default="held", choices=[*SPLITS, "all"], help="which patterns (default: held)"
    )
    parser.add_argument("--kind", action="append", default=[], help="ask this kind of question only; repeat")


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    run(eval_settings(args), EverydayOptions(args.split, tuple(args.kind)))


def run(settings: EvalSettings, options: EverydayOptions) -> None:
    """Ask every pattern of a few photos that show what it asks for and of one that does not."""
    patterns = [
        pattern
        for pattern in read_patterns(PATTERNS_FILE)
        if options.split in (pattern.split, "all") and (not options.kinds or pattern.kind in options.kinds)
    ]
    if not patterns:
        raise BadInput(f"there are no patterns of kind {', '.join(options.kinds)}")
    images = read_annotated_images(settings.root)
    questions = list(everyday_questions(patterns, images))
    run_questions(settings, QuestionOptions(), "everyday", VERSION, questions, figures=everyday_figures)


def _plural(word: str) -> str:
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    return f"{word}es" if word.endswith(("s", "x", "z", "ch", "sh")) else f"{word}s"


def _is_countable(category: str) -> bool:
    """Whether English has "a" and a plural for a category."""
    return category not in UNCOUNTABLE


# -------------------------------------------------------------------------------- questions


def read_patterns(file: Path) -> list[Pattern]:
    """Read a file of patterns, in its order."""
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    sets: dict[str, list[str]] = table.pop("sets")

    def categories(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(category for name in names for category in sets.get(name, [name]))

    patterns = []
    for kind, splits in table.items():
        for split in SPLITS:
            for row in splits[split]:
                names = row.get("names", [])
                things = names if names and isinstance(names[0], list) else [names] if names else []
                patterns.append(
                    Pattern(
                        kind,
                        split,
                        row["q"],
                        tuple(categories(thing) for thing in things),
                        categories(row.get("maybe", [])),
                        row.get("pick", ""),
                    )
                )
    return patterns


def everyday_questions(patterns: Sequence[Pattern], images: Sequence[AnnotatedImage]) -> Iterator[Question]:
    """The questions of some patterns about some images, those about one image after each other.

    Which images a pattern is asked of depends on the pattern and the image alone, not on their order.
    """
    shown = {instance.category for image in images for instance in image.instances}
    categories = sorted(category for category in shown if _is_countable(category))
    chosen: dict[Path, list[Question]] = {image.path: [] for image in images}
    for pattern in patterns:
        factor = SLOT_FACTOR if pattern.has_slot else 1
        wanted = {True: factor * PRESENT_PER_PATTERN, False: factor * ABSENT_PER_PATTERN}
        for image in sorted(images, key=lambda image: _rank(pattern.question, image.path.name)):
            if not any(wanted.values()):
                break
            # With one "present" of a slot asked for, the next image is asked about what is absent, and so on.
            for is_present in (True, False):
                if not wanted[is_present]:
                    continue
                question = _question(pattern, image, is_present, categories)
                if question is not None:
                    chosen[image.path].append(question)
                    wanted[is_present] -= 1
                    break
    for asked in chosen.values():
        yield from asked


def _rank(*parts: str) -> str:
    """A fixed pseudo-random order of texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _question(
    pattern: Pattern, image: AnnotatedImage, is_present: bool, categories: Sequence[str]
) -> Question | None:
    """The question of a pattern about an image; None where the image cannot decide it."""
    if pattern.kind in NOTHING_KINDS:
        return None if is_present else _as_question(pattern, image, [("nothing", None)])
    if pattern.kind == "main":
        return _main_question(pattern, image) if is_present else None
    if not pattern.has_slot:
        filled = [pattern]
    else:
        names = sorted(categories, key=lambda name: _rank(pattern.question, image.path.name, name))
        filled = [pattern.filled(name) for name in names]
    for candidate in filled:
        targets = _targets(candidate, image)
        if targets is not None and is_present == any(mask is not None for _, mask in targets):
            return _as_question(candidate, image, targets)
    return None


Targets = list[tuple[str, np.ndarray | None]]  # (phrase, mask or None where it is absent)


def _targets(pattern: Pattern, image: AnnotatedImage) -> Targets | None:
    """What a pattern without a slot asks for; None where the image cannot decide it."""
    shown = {instance.category for instance in image.instances}
    if shown & set(pattern.maybe):
        return None
    if pattern.kind == "all_but":
        return _all_but(pattern, image)
    found: Targets = []
    for thing in pattern.things:
        instances = [instance for instance in image.instances if instance.category in thing]
        if not instances:
            found.append((thing[0], None))
            continue
        meant = _meant(pattern, instances)
        if not meant:
            return None
        mask = np.any([instance.mask() for instance in meant], axis=0)
        if mask.mean() < MIN_TARGET_SHARE:
            return None
        found.append((thing[0], mask))
    needs_presence = pattern.kind in ("position", "size", "several") or bool(pattern.pick)
    return None if needs_presence and all(mask is None for _, mask in found) else found


def _meant(pattern: Pattern, instances: list[Instance]) -> list[Instance]:
    """The instances that are meant among those of the right categories; [] where that is not clear."""
    if pattern.kind == "count":
        countable = len(instances) <= MAX_COUNTED and not any(instance.crowd for instance in instances)
        return instances if countable else []
    if not pattern.pick:
        return instances
    if not 2 <= len(instances) <= MAX_PICKED_FROM or any(instance.crowd for instance in instances):
        return []
    masks = [instance.mask() for instance in instances]
    if pattern.pick in ("biggest", "smallest"):
        areas = np.log([mask.sum() for mask in masks])
        values = -areas if pattern.pick == "biggest" else areas
        margin = np.log(MIN_SIZE_RATIO)
    else:
        axis = 1 if pattern.pick in ("left", "right") else 0
        centres = np.array([np.nonzero(mask)[axis].mean() / mask.shape[axis] for mask in masks])
        values = centres if pattern.pick in ("left", "top") else -centres
        margin = MIN_CENTRE_DISTANCE
    first, second = np.argsort(values)[:2]
    return [instances[first]] if values[second] - values[first] >= margin else []


def _all_but(pattern: Pattern, image: AnnotatedImage) -> Targets | None:
    """All that is outlined but the categories of the pattern, where the image shows both."""
    excepted = [instance.mask() for instance in image.instances if instance.category in pattern.things[0]]
    others = [instance.mask() for instance in image.instances if instance.category not in pattern.things[0]]
    if not excepted or not others:
        return None
    mask = np.any(others, axis=0) & ~np.any(excepted, axis=0)
    return [("everything else", mask)] if mask.mean() >= MIN_TARGET_SHARE else None


def _main_question(pattern: Pattern, image: AnnotatedImage) -> Question | None:
    """A question for the main thing of an image, where one category is by far the largest."""
    areas: dict[str, float] = {}
    for instance in image.instances:
        share = float(instance.mask().mean())
        areas[instance.category] = max(areas.get(instance.category, 0.0), share)
    ranking = sorted(areas, key=lambda category: -areas[category])
    if not ranking or areas[ranking[0]] < MIN_MAIN_SHARE:
        return None
    if len(ranking) > 1 and areas[ranking[0]] < MIN_MAIN_RATIO * areas[ranking[1]]:
        return None
    instances = [instance for instance in image.instances if instance.category == ranking[0]]
    largest = max(instances, key=lambda instance: instance.mask().sum())
    return _as_question(pattern, image, [(ranking[0], largest.mask())])


def _as_question(pattern: Pattern, image: AnnotatedImage, targets: Targets) -> Question:
    """A question with its truth, and in its source what the figures of this benchmark need."""
    shown = [instance for instance in image.instances if instance.category in sum(pattern.things, ())]
    record = Record(
        f"images/{image.path.name}",
        image.width,
        image.height,
        pattern.question,
        reply_for([(phrase, mask is not None) for phrase, mask in targets]),
        [RecordTarget(phrase, None if mask is None else encode_rle(mask)) for phrase, mask in targets],
        {"kind": pattern.kind, "split": pattern.split, "count": len(shown)},
    )
    key = _rank(pattern.question, image.path.name)[:16]
    return Question(key, record, image.path, [f"kind: {pattern.kind}", f"split: {pattern.split}"])


# -------------------------------------------------------------------------------- figures


def everyday_figures(lines: Sequence[dict[str, Any]], questions: Sequence[Question]) -> dict[str, Any]:
    """The figures that only this benchmark has.

    Args:
        lines: The scored lines.
        questions: The question of each.

    Returns:
        `denials`: how many things were said to be absent, and `denials_not_named`: the share of them that the
        question does not name. `unknown`: the share of answers that say that a word is not known.
        `counts_right`: the share of counting questions with the right number; `main_named`: the share of
        "what is this?" that name the right category. `by_kind`: the first two of each kind.
    """
    scored = [
        (line, question) for line, question in zip(lines, questions, strict=True) if "error" not in line
    ]
    kinds = sorted({question.record.source["kind"] for _, question in scored})
    figures: dict[str, Any] = _denials(scored)
    figures["counts_right"] = _share(scored, "count", _is_count_right)
    figures["main_named"] = _share(scored, "main", _is_main_named)
    for kind in kinds:
        figures[f"denials: {kind}"] = _denials(
            [(line, question) for line, question in scored if question.record.source["kind"] == kind]
        )
    return figures


Scored = tuple[dict[str, Any], Question]


def _denials(scored: Sequence[Scored]) -> dict[str, Any]:
    denied = [
        _names(question.record.question, target["phrase"])
        for line, question in scored
        for target in line["answered"]
        if not target["present"] and target["known"]
    ]
    unknown = [any(not target["known"] for target in line["answered"]) for line, _ in scored]
    return {
        "denials": len(denied),
        "denials_not_named": 1 - float(np.mean(denied)) if denied else None,
        "unknown": float(np.mean(unknown)) if unknown else None,
    }


def _share(scored: Sequence[Scored], kind: str, is_right: Callable[..., bool]) -> float | None:
    """The share of the questions of a kind that are answered rightly."""
    right = [is_right(line, question) for line, question in scored if question.record.source["kind"] == kind]
    return float(np.mean(right)) if right else None


def _names(question: str, phrase: str) -> bool:
    """Whether every word of a phrase, but articles, is in a question, in singular or plural."""
    asked = set(re.findall(r"\w+", question.lower()))
    asked |= {_plural(word) for word in asked}
    words = set(re.findall(r"\w+", phrase.lower())) - {"the", "a", "an", "s"}
    return all(word in asked or _plural(word) in asked for word in words)


def _is_count_right(line: dict[str, Any], question: Question) -> bool:
    """Whether the last number of an answer is that of the instances; without a number, whether it denies."""
    words = re.findall(r"\d+|[a-z]+", line["answer"].lower())
    numbers = [int(word) if word.isdigit() else NUMBER_WORDS.get(word, -1) for word in words]
    numbers = [number for number in numbers if number >= 0]
    said = numbers[-1] if numbers else (None if line["said"] else 0)
    return said == question.record.source["count"]


def _is_main_named(line: dict[str, Any], question: Question) -> bool:
    """Whether a present target of an answer bears the name of the truth."""
    name = question.record.targets[0].phrase
    return any(target["present"] and _names(target["phrase"], name) for target in line["answered"])
