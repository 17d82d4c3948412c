"""Class lists on a small set of label maps, counted by hand."""

import numpy as np
import pytest

from assistant.answer import Cost
from assistant.dialogue.class_list import class_of
from assistant.sam.concepts import Instances
from assistant.sam.mask_ops import encode_rle
from tests.helpers.benchmark_data import write_label_maps
from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import FakeAssistant, H, W


class ChangedAnswers(FakeAssistant):
    """Changes every answer before it is read."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def open(self, image):
        scene = super().open(image)
        ask = scene.ask

        def changed(question):
            answer = ask(question)
            self.change(answer)
            return answer

        scene.ask = changed
        return scene


def run_semantic(monkeypatch, out, root, *options, assistant=None):
    return run_benchmark(monkeypatch, out, "semantic", "--root", root, *options, assistant=assistant)[1]


def test_semantic_by_hand(monkeypatch, tmp_path):
    write_label_maps(tmp_path)
    assistant = FakeAssistant()
    result = run_semantic(monkeypatch, tmp_path / "out", tmp_path, "--per-question", "3", assistant=assistant)
    assert len(assistant.asked) == 2
    assert "red, blue, green?" in assistant.asked[0] and "grey wall?" in assistant.asked[1]
    # red 400/400, blue 400/400, green neither true nor said: dropped. The wall is never answered: 0.
    figures = result["figures"]
    assert figures["mIoU"] == pytest.approx(2 / 3) and result["by"]["grey wall"]["IoU"] == 0
    assert result["by"]["green"]["IoU"] is None and figures["classes"] == 3
    wall = H * 50 - 800
    assert figures["pixel_accuracy"] == pytest.approx(800 / (800 + wall))
    assert figures["uncovered"] == pytest.approx(wall / (800 + wall))
    assert result["N_acc"] == 1 and result["T_acc"] == pytest.approx(2 / 3)
    assert figures["classes_not_answered"] == 1 and result["by"]["red"]["oracle_IoU"] == 1
    # What it answered is what another model would have written.
    predictions = tmp_path / "out/label_maps"
    again = run_semantic(monkeypatch, tmp_path / "again", tmp_path, "--predictions", predictions)
    assert again["figures"]["mIoU"] == figures["mIoU"] and again["by"]["red"]["right"] == 400


def test_an_overlap_goes_to_the_answer_with_the_higher_confidence(monkeypatch, tmp_path):
    write_label_maps(tmp_path)

    def cover_everything(answer):
        for target, confidence in zip(answer.targets, (0.6, 0.8), strict=False):
            target.mask, target.confidence = np.ones((H, W), bool), confidence

    assistant = ChangedAnswers(cover_everything)
    result = run_semantic(monkeypatch, tmp_path / "out", tmp_path, assistant=assistant)
    assert result["by"]["blue"]["predicted"] == H * 50 and result["by"]["red"]["right"] == 0


def test_a_synonym_in_a_list_answered_in_order_is_bound_by_its_place(monkeypatch, tmp_path):
    write_label_maps(tmp_path)

    def say_scarlet(answer):
        answer.targets[0].phrase = "scarlet"

    two = ["--per-question", "2"]
    result = run_semantic(monkeypatch, tmp_path / "a", tmp_path, *two, assistant=ChangedAnswers(say_scarlet))
    assert result["by"]["red"]["IoU"] == 1  # red and blue were asked, two were answered
    four = ["--per-question", "4"]
    result = run_semantic(monkeypatch, tmp_path / "b", tmp_path, *four, assistant=ChangedAnswers(say_scarlet))
    # Four were asked, three were answered.
    assert result["by"]["red"]["IoU"] == 0 and result["figures"]["phrases_that_are_no_class"] == 1


class Finder(FakeAssistant):
    """Finds each colour by its name, and the wall everywhere but with a low score; it is asked nothing."""

    def open(self, image):
        scene = super().open(image)
        scene.finds_names, scene.threshold = True, 0.5
        scene.find = lambda name: self.find(scene, name)
        return scene

    def find(self, scene, name):
        wall = name == "grey wall"
        mask = np.ones((H, W), bool) if wall else scene._target(name, False).mask
        rles = [] if mask is None else [encode_rle(mask)]
        scores = np.full(len(rles), 0.6 if wall else 0.8, np.float32)
        boxes = np.zeros((len(rles), 4), np.float32)
        return Instances(rles, boxes, scores, 0.9 * len(rles), (H, W)), Cost(0.25, passes=1)


def test_classes_are_found_by_their_names_without_a_question(monkeypatch, tmp_path):
    write_label_maps(tmp_path)
    assistant = Finder()
    result = run_semantic(monkeypatch, tmp_path / "out", tmp_path, assistant=assistant)
    assert assistant.asked == [] and result["figures"]["mIoU"] == 1 and result["T_acc"] == 1
    assert result["passes_per_query"] == 1 and result["calls_per_query"] == 0
    assert result["seconds_per_query"] == 0.25 and result["read_tokens_per_query"] is None


@pytest.mark.parametrize(
    "phrase, name",
    [
        ("the cars", "car"),
        ("Traffic lights", "traffic light"),
        ("a bus", "bus"),
        ("benches", "bench"),
        ("cart", None),
        ("light", None),
    ],
)
def test_phrases_are_bound_to_classes_by_their_words(phrase, name):
    assert class_of(phrase, ["car", "traffic light", "bus", "bench"]) == name
