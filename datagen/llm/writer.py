"""Steps 2 to 4 with language models: a description of the image, questions about it, and second opinions.

    steps = write_questions(image, bank, WriterSettings(per_image=8, model="qwen3"), drops)      # a generator
    requests = next(steps)
    requests = steps.send(answers)                                  # ... ends with StopIteration(records)

It says what to ask, and its caller asks: a server, a local model, a cluster. Per image it asks for a
description, where a multimodal model is named; for questions; for a second opinion, in which each question is
answered with numbers by a reader who has only the list of instances; and for a verification of what is said
to be absent. What does not hold (`datagen.checks`) or is answered otherwise is dropped, and counted with its
reason. Answers are structured and replies are worded by our own grammar, so no free text is parsed. A change
of what is written or dropped needs a new `datagen.versions.LLM_WRITER_VERSION`.
"""

import random
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assistant.grammar import parse, reply_for
from assistant.record import Record, RecordTarget
from datagen.checks import (
    AskedQuestions,
    WrittenQuestion,
    WrittenTarget,
    WrittenTurn,
    reason_to_drop,
)
from datagen.composer.phrasebank import Entry
from datagen.llm.prompts import (
    ANSWER_PROMPT,
    DESCRIBE_PROMPT,
    DESCRIPTION,
    KIND_RULES,
    OPINION,
    PROMPT_VERSION,
    QUESTIONS,
    VERIFY_PROMPT,
    WRITE_PROMPT,
)
from datagen.llm.requests import Request
from datagen.sources.annotated_images import AnnotatedImage, Instance, seed_for

MAX_ABSENT_NAMES = 120  # that a model is told are not there: LVIS has 1,200 categories
SMALL_SHARE, LARGE_SHARE = 0.01, 0.1  # of the image's area: below the first is small, from the second large
QUESTIONS_READ_PER_WANTED = 2  # models that write more than they were asked for are not read to the end

Answer = dict[str, Any] | None
# What a writer yields, is sent and returns: requests, their answers in the same order, the image's records.
Steps = Generator[list[Request], list[Answer], list[Record]]
QuestionSteps = Generator[list[Request], list[Answer], list[WrittenQuestion]]


@dataclass(frozen=True)
class WriterSettings:
    """How images are asked about.

    Attributes:
        per_image: Number of questions to ask for.
        writer: Goes into the records' source: "openai", "hf" or "vllm".
        model: Goes into the records' source: the writing model.
        has_describer: Whether a multimodal model describes images and verifies what is absent.
        caption: A description of the image at hand; "": none.
        second_opinion: Whether the model answers its own questions.
    """

    per_image: int = 8
    writer: str = "openai"
    model: str = ""
    has_describer: bool = False
    caption: str = ""
    second_opinion: bool = True


def write_questions(
    image: AnnotatedImage, bank: Mapping[str, Entry], settings: WriterSettings, drops: Counter[str]
) -> Steps:
    """Ask all that is to be asked about one image.

    Args:
        image: The image, with masks.
        bank: Phrase bank, for the words that would name a target.
        settings: How to ask.
        drops: Counts what is dropped, by reason.

    Returns:
        The records that passed every check.
    """
    listing, instances = list_instances(image)
    description = settings.caption
    if settings.has_describer and not description:
        (answer,) = yield [Request([_user(DESCRIBE_PROMPT)], DESCRIPTION, 0, image.file)]
        if answer is None:
            drops["description: no usable answer"] += 1
        description = answer["description"] if answer else ""
    context = listing + (f"\n\n{description}" if description else "")
    (answer,) = yield [_writing_request(image, context, settings)]
    if answer is None:
        drops["photo: no usable answer"] += 1
        return []
    if not answer["questions"]:
        drops["photo: the model wrote no question"] += 1
    rows = answer["questions"][: QUESTIONS_READ_PER_WANTED * settings.per_image]
    questions = _checked(rows, image, instances, bank, settings, drops)
    if settings.second_opinion and questions:
        questions = yield from second_opinions(questions, context, seed_for(image), drops)
    if settings.has_describer:
        questions = yield from verify_absent(questions, image, drops)
    records = [record_of(image, question, settings) for question in questions]
    if None in records:
        drops["a phrase that a reply cannot hold"] += records.count(None)
    return [record for record in records if record]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def _place(image: AnnotatedImage, instance: Instance) -> str:
    """Where an instance is, and how large: "left, top, small". Places are thirds of the image."""
    x, y = instance.centre
    across = ("left", "middle", "right")[min(2, int(3 * x / image.width))]
    down = ("top", "centre", "bottom")[min(2, int(3 * y / image.height))]
    share = instance.area / (image.width * image.height)
    if share < SMALL_SHARE:
        size = "small"
    else:
        size = "medium" if share < LARGE_SHARE else "large"
    return f"{across}, {down}, {size}"


def list_instances(image: AnnotatedImage) -> tuple[str, list[Instance]]:
    """List what is in an image, for a model.

    Returns:
        The text, and the instances in the order of their numbers, which begin with 1.
    """
    instances = sorted(image.instances, key=lambda instance: (instance.key, instance.centre))
    lines = [
        f"{number}. {instance.key}{_remark(image, instance)}: {_place(image, instance)}"
        for number, instance in enumerate(instances, 1)
    ]
    counts = Counter(instance.key for instance in instances)
    totals = ", ".join(f"{count} x {key}" for key, count in sorted(counts.items()))
    text = (
        f"The photo, {image.width} x {image.height} px, shows:\n" + "\n".join(lines) + f"\nIn all: {totals}."
    )
    if image.partial:
        text += f"\nThere are more of these than are listed: {', '.join(sorted(image.partial))}."
    absent = sorted(image.absent or set(image.categories) - set(image.keys()))
    if absent:
        some = random.Random(seed_for(image)).sample(absent, min(MAX_ABSENT_NAMES, len(absent)))
        text += f"\nLooked for and not there: {', '.join(some)}."
    return text, instances


def _remark(image: AnnotatedImage, instance: Instance) -> str:
    if instance.crowd:
        return " (a crowd of them)"
    return " (a part)" if instance.key in image.parts else ""


def possible_kinds(image: AnnotatedImage) -> list[str]:
    """The kinds of questions that an image allows."""
    kinds = list(KIND_RULES)
    if not image.parts & set(image.keys()):
        kinds.remove("part")
    if len(image.keys()) == len(image.instances):  # one instance of each category: nothing to choose among
        kinds.remove("position")
    return kinds


def _writing_request(image: AnnotatedImage, context: str, settings: WriterSettings) -> Request:
    """Ask for questions. context: the list of instances and the description."""
    rules = "\n".join(f"- {kind}: {KIND_RULES[kind]}" for kind in possible_kinds(image))
    task = WRITE_PROMPT.format(count=settings.per_image, kinds=rules)
    return Request([_system(task), _user(context)], QUESTIONS, seed_for(image))


def _checked(
    rows: Sequence[dict[str, Any]],
    image: AnnotatedImage,
    instances: Sequence[Instance],
    bank: Mapping[str, Entry],
    settings: WriterSettings,
    drops: Counter[str],
) -> list[WrittenQuestion]:
    """The questions that pass every check, as many as are wanted."""
    asked = AskedQuestions()
    good: list[WrittenQuestion] = []
    for row in rows:
        question = read_question(row, instances)
        if question is None:
            drops[f"{row['kind']}: refers to instances that do not exist"] += 1
            continue
        reason = reason_to_drop(question, image, bank, settings.has_describer)
        if not reason and asked.is_repeat(question.text, question.earlier):
            reason = "nearly asked before"
        if reason:
            drops[f"{question.kind}: {reason}"] += 1
        else:
            good.append(question)
    return good[: settings.per_image]


def read_question(row: dict[str, Any], instances: Sequence[Instance]) -> WrittenQuestion | None:
    """Read a question of the schema `QUESTION`; None where a number is not in the list of instances."""
    targets = [target for turn in (row, *row["before"]) for target in turn["targets"]]
    if any(not 1 <= number <= len(instances) for target in targets for number in target["numbers"]):
        return None
    return WrittenQuestion(
        kind=row["kind"],
        text=_one_line(row["question"]),
        targets=_read_targets(row, instances),
        earlier=[
            WrittenTurn(_one_line(turn["question"]), _read_targets(turn, instances)) for turn in row["before"]
        ],
        numbers=sorted({number for target in row["targets"] for number in target["numbers"]}),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read_targets(turn: dict[str, Any], instances: Sequence[Instance]) -> list[WrittenTarget]:
    """The targets of a turn, their numbers turned into annotation ids."""
    targets = []
    for target in turn["targets"]:
        ids = dict.fromkeys(instances[number - 1].id for number in sorted(target["numbers"]))
        phrase = _one_line(target["phrase"]) or target["name"]
        targets.append(WrittenTarget(phrase, target["name"].lower().strip(), tuple(ids)))
    return targets


def second_opinions(
    questions: list[WrittenQuestion], context: str, seed: int, drops: Counter[str]
) -> QuestionSteps:
    """Keep the questions that a reader who has only the list of instances understands as they are meant."""
    opinions = yield [_opinion_request(question, context, seed) for question in questions]
    agreed = []
    for question, opinion in zip(questions, opinions, strict=True):
        if opinion is None:
            drops[f"{question.kind}: no second opinion"] += 1
        elif sorted(set(opinion["numbers"])) != question.numbers:
            drops[f"{question.kind}: a second opinion disagrees"] += 1
        else:
            agreed.append(question)
    return agreed


def _opinion_request(question: WrittenQuestion, context: str, seed: int) -> Request:
    """Ask what a question means. context: the list of instances and the description."""
    earlier = ""
    for turn in question.earlier:
        answer = ", ".join(t.phrase + ("" if t.ids else " (not there)") for t in turn.targets)
        earlier += f"\n\nEarlier question: {turn.text}\nIt was answered with: {answer}"
    text = f"{context}{earlier}\n\nThe question: {question.text}"
    return Request([_system(ANSWER_PROMPT), _user(text)], OPINION, seed)


def verify_absent(
    questions: list[WrittenQuestion], image: AnnotatedImage, drops: Counter[str]
) -> QuestionSteps:
    """Keep the questions whose absent targets a multimodal model does not see either."""
    absent = sorted({t.phrase for question in questions for t in question.targets if not t.ids})
    if not absent:
        return questions
    listing = "\n".join(f"{number}. {phrase}" for number, phrase in enumerate(absent, 1))
    (answer,) = yield [Request([_user(f"{VERIFY_PROMPT}\n{listing}")], OPINION, 0, image.file)]
    if answer is None:
        drops["absent: no usable answer"] += 1
        visible = set(absent)  # nobody knows
    else:
        visible = {phrase for number, phrase in enumerate(absent, 1) if number in answer["numbers"]}
    verified = []
    for question in questions:
        if not any(not t.ids and t.phrase in visible for t in question.targets):
            verified.append(question)
        elif answer is not None:
            drops[f"{question.kind}: can be seen, though it is not outlined"] += 1
    return verified


def record_of(image: AnnotatedImage, question: WrittenQuestion, settings: WriterSettings) -> Record | None:
    """Make the record of a checked question; None where the reply grammar cannot express a phrase."""
    turns = (*question.earlier, question)
    replies = [_reply(image, turn) for turn in turns]
    if None in replies:
        return None
    *earlier_replies, answer = (str(reply) for reply in replies)
    by_id = {instance.id: instance for instance in image.instances}
    targets = question.targets
    rles = [image.rle([by_id[id] for id in target.ids]) if target.ids else None for target in targets]
    source = {
        "kind": question.kind,
        "writer": settings.writer,
        "model": settings.model,
        "prompt": PROMPT_VERSION,
        "image_id": image.id,
        "categories": [target.category for target in targets],
        "category_ids": [image.categories.get(target.category) for target in targets],
        "annotation_ids": [list(target.ids) for target in targets],
        "phrase_ids": [None for _ in targets],
        "area_share": [round(image.area_share(rle), 6) if rle else 0.0 for rle in rles],
        "history": [
            {"question": turn.text, "answer": reply}
            for turn, reply in zip(question.earlier, earlier_replies, strict=True)
        ],
    }
    return Record(
        image=str(image.file),
        width=image.width,
        height=image.height,
        question=question.text,
        answer=answer,
        targets=[RecordTarget(t.phrase, rle) for t, rle in zip(targets, rles, strict=True)],
        source=source,
    )


def _reply(image: AnnotatedImage, turn: WrittenTurn) -> str | None:
    """A reply in our grammar; None where it does not read back as what it was made of."""
    mentions = [(target.phrase, bool(target.ids)) for target in turn.targets]
    reply = reply_for(mentions, random.Random(seed_for(image, turn.text)))
    parsed = [(mention.phrase, mention.present) for mention in parse(reply)]
    return reply if parsed == mentions else None
