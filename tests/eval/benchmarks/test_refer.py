"""The refer sets' layouts, counted by hand."""

import json
import os
import pickle

import pytest

from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import BOXES, H, W, save_image


def annotation(number, colour):
    x0, y0, x1, y1 = BOXES[colour]
    return {
        "id": number,
        "image_id": 7,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
    }


def ref(number, annotations, *sentences, split="val"):
    return {
        "ref_id": number,
        "ann_id": annotations,
        "category_id": 1,
        "image_id": 7,
        "split": split,
        "file_name": "p.jpg",
        "sentences": [
            {"sent_id": 10 * number + k, "sent": sentence, "tokens": sentence.split(), "raw": sentence}
            for k, sentence in enumerate(sentences)
        ],
    }


@pytest.fixture
def refer(tmp_path):
    save_image(tmp_path / "images/train2014/p.jpg")
    instances = {
        "images": [{"id": 7, "file_name": "p.jpg", "height": H, "width": W}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [annotation(1, "red"), annotation(2, "blue")],
    }
    refcoco = [ref(1, 1, "red", "a thing"), ref(2, 2, "the blue one"), ref(3, 2, "x", split="train")]
    grefcoco = [
        ref(1, [1, 2], "red and blue"),
        ref(2, [-1], "green"),
        ref(3, [-1], "surely green"),
        ref(4, [2], "nothing of ours"),
        ref(5, [1, 99], "broken ref"),
    ]
    for name in ("refcoco", "refcocog", "grefcoco"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refcoco, protocol=2))
    (tmp_path / "refcocog/refs(umd).p").write_bytes(pickle.dumps([ref(1, 1, "red")], protocol=2))
    (tmp_path / "grefcoco/grefs(unc).json").write_text(json.dumps(grefcoco))
    return tmp_path


def test_refcoco_from_its_pickle(monkeypatch, refer):
    _, result = run_benchmark(monkeypatch, refer / "out", "refcoco", "--root", refer)
    assert result["n"] == 3 and result["gIoU"] == pytest.approx(2 / 3)
    assert result["cIoU"] == pytest.approx(800 / 1200)
    assert run_benchmark(monkeypatch, refer / "g", "refcocog", "--root", refer)[1]["gIoU"] == 1


def test_a_pickle_that_would_run_code_is_refused(monkeypatch, refer, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    (refer / "refcoco/refs(unc).p").write_bytes(pickle.dumps([Evil()]))
    assert run_benchmark(monkeypatch, refer / "out", "refcoco", "--root", refer)[0] == 2
    assert "not a pickle of plain data" in capsys.readouterr().err


def test_grefcoco_by_the_rules_of_rela(monkeypatch, refer):
    _, result = run_benchmark(monkeypatch, refer / "out", "grefcoco", "--root", refer)
    # red and blue: 1. green: called absent, 1. surely green: 25 px where nothing is, 0. nothing of blue: 0.
    assert result["n"] == 4 and result["gIoU"] == pytest.approx(2 / 4)
    assert result["cIoU"] == pytest.approx(800 / (800 + 25 + 400))
    assert result["N_acc"] == pytest.approx(1 / 2) and result["T_acc"] == pytest.approx(1 / 2)
    # Of the present targets.
    assert result["figures"]["Pr@0.7"] == result["figures"]["Pr@0.9"] == pytest.approx(1 / 2)
    assert result["bad"][0]["name"] == "ref 5"
