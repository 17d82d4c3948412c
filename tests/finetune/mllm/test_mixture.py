"""Which records training draws: by rate, in conversations of similar length, with new class lists."""

import numpy as np
import pytest

from assistant.errors import BadInput
from assistant.grammar import parse
from assistant.record import read_records
from finetune.mllm.class_lists import redraw_list
from finetune.mllm.mixture import Mixture


def test_files_are_mixed_by_their_rates_and_every_record_comes_once_an_epoch(dataset):
    sources = [(dataset[0], 3.0), (dataset[1], 1.0)]
    mixture = Mixture(sources, 4000, max_questions=1)
    assert abs((mixture.source == 0).mean() - 0.75) < 0.03
    drawn = [k for k in range(4000) if mixture.source[k] == 0][:18]  # the first file holds 18 records
    questions = {(asked.image, asked.record.question) for k in drawn for asked in mixture.conversation(k)}
    assert len(questions) == 18
    again = Mixture(sources, 4000, max_questions=1)
    assert all(mixture.conversation(k) == again.conversation(k) for k in range(50))
    batches = [k for step in range(1000) for k in mixture.batch(step, 4)]
    assert sorted(batches) == list(range(4000))


def test_conversations_of_similar_length_come_together_the_same_wherever_a_run_begins(dataset):
    def mixture_of(grouped):
        return Mixture([(dataset[0], 1.0)], 640, seed=3, grouped=grouped)

    def length(mixture, k):
        conversation = mixture.conversation(k)
        return sum(len(asked.record.question) + len(asked.record.answer) for asked in conversation)

    padding = {}
    for grouped in (True, False):
        mixture = mixture_of(grouped)
        batches = [mixture.batch(step, 8) for step in range(80)]
        assert sorted(k for b in batches for k in b) == list(range(640))
        lengths = [[length(mixture, k) for k in b] for b in batches]
        padding[grouped] = sum(max(n) * len(n) - sum(n) for n in lengths)
    assert padding[True] < padding[False] / 3
    whole, later = mixture_of(True), mixture_of(True)
    assert later.batch(77, 8) == whole.batch(77, 8)  # nothing was asked of it before
    drawn = [whole.batch(step, 8) for step in range(8)]
    assert drawn != sorted(drawn, key=lambda b: length(whole, b[0]))


def test_class_lists_are_drawn_anew_answered_in_order_and_may_hold_absent_classes_only(dataset):
    record = read_records(dataset[0])[0]
    present = [r.targets[0] for r in read_records(dataset[0])[:3] if r.targets[0].rle]
    record.question = f"Which of these are there: {present[0].phrase}, {present[1].phrase}?"
    record.targets = present
    known = {t.phrase: t.rle for t in present} | {f"class {k}": None for k in range(12)}
    redrawn = [redraw_list(record, known, np.random.default_rng(k)) for k in range(60)]
    for new in redrawn:
        names = new.question.removeprefix("Which of these are there: ").removesuffix("?").split(", ")
        assert names == [t.phrase for t in new.targets]  # all are answered, in the order of the question
        assert [m.phrase for m in parse(new.answer)] == names
        assert all(t.rle == known[t.phrase] for t in new.targets) and len(names) >= 2
    assert len({new.question for new in redrawn}) > 50
    absent_only = sum(all(t.rle is None for t in new.targets) for new in redrawn)
    assert 0 < absent_only < 20


def test_a_conversation_may_be_about_several_images(dataset):
    mixture = Mixture([(dataset[0], 1.0)], 200, max_questions=3, max_images=2, seed=1)
    counts = set()
    for k in range(200):
        images = [asked.image for asked in mixture.conversation(k)]
        changes = sum(a != b for a, b in zip(images, images[1:], strict=False))
        assert changes == len(set(images)) - 1  # the questions about an image follow each other
        counts.add(len(set(images)))
    assert counts == {1, 2}


def test_a_file_without_records_is_one_line(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BadInput, match="empty.jsonl"):
        Mixture([(tmp_path / "empty.jsonl", 1.0)], 4)
