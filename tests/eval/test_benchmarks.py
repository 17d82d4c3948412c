"""The public benchmarks' layouts, made here, run end to end against numbers counted by hand."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assistant.dialogue.class_list import class_of
from assistant.sam.mask_ops import tight_box
from eval import __main__ as command
from eval import metrics, models
from eval.label_maps import find_layout
from tests.helpers.colour_finder import BOXES, COLOURS, FakeAssistant, H, W, rectangle, rle

GREY = (200, 200, 200)


def picture(path, colours=("red", "blue")):
    pixels = np.full((H, W, 3), 200, np.uint8)
    for colour in colours:
        x0, y0, x1, y1 = BOXES[colour]
        pixels[y0:y1, x0:x1] = COLOURS[colour]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=100, subsampling=0)


def run(monkeypatch, out, *words, assistant=None):
    monkeypatch.setattr(models, "open_assistant", lambda settings: assistant or FakeAssistant())
    code = command.main([*map(str, words), "--out", str(out)])
    file = out / "result.json"
    return code, json.loads(file.read_text()) if file.exists() else None


def polygon(x0, y0, x1, y1, label="target"):
    """The rectangle's pixels [x0, x1) x [y0, y1): ReasonSeg's reader draws corners inclusively."""
    return {
        "label": label,
        "points": [[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]],
        "shape_type": "polygon",
        "labels": [label],
        "image_name": "x.jpg",
        "group_id": None,
        "group_ids": [],
        "flags": {},
    }


def reasonseg_item(folder, name, text, shapes, sentence, colours=("red", "blue"), encoding="utf-8"):
    picture(folder / f"{name}.jpg", colours)
    row = {"text": [text, "a rephrasing that is not asked"], "is_sentence": sentence, "shapes": shapes}
    (folder / f"{name}.json").write_bytes(json.dumps(row, ensure_ascii=False).encode(encoding))


@pytest.fixture
def reasonseg(tmp_path):
    folder = tmp_path / "ReasonSeg/val"
    # red is found whole; the right half is to be ignored, and painted later: smaller polygons lie on top
    reasonseg_item(
        folder, "a", "the red one", [polygon(14, 4, 24, 24, "Ignore_region"), polygon(*BOXES["red"])], False
    )
    # written in cp1252; nothing is answered to it
    reasonseg_item(
        folder,
        "b",
        "caf\u00e9",
        [polygon(*BOXES["blue"]), polygon(0, 0, 60, 40, "flag")],
        True,
        encoding="cp1252",
    )
    # nothing outlined, nothing said: 1 for LISA, 0 for Seg-Zero
    reasonseg_item(folder, "c", "the green one", [], True)
    # a polygon that leaves the picture
    reasonseg_item(folder, "d", "is there blue?", [polygon(30, 10, 80, 30)], False)
    return tmp_path / "ReasonSeg"


def test_reasonseg_under_both_protocols_by_hand(monkeypatch, reasonseg, tmp_path, capsys):
    code, result = run(monkeypatch, tmp_path / "out", "reasonseg", "--root", reasonseg, "--protocol", "both")
    assert (
        code == 0 and result["n"] == 4 and result["protocol"] == "both" and result["benchmark"] == "reasonseg"
    )
    # a: target 20x20 px of which 10x20 are ignored, answered whole: 1 either way, 400 px under seg-zero, 200 under lisa.
    # b: 0 of 400. c: 1 and 0. d: the answer is 20x20 of a target cut to 30x20: 400 / 600.
    lisa, seg_zero = result["figures"]["protocols"]["lisa"], result["figures"]["protocols"]["seg-zero"]
    assert result["gIoU"] == lisa["gIoU"] == pytest.approx((1 + 0 + 1 + 400 / 600) / 4)
    assert result["cIoU"] == lisa["cIoU"] == pytest.approx((200 + 0 + 0 + 400) / (200 + 400 + 0 + 600))
    assert seg_zero["gIoU"] == pytest.approx((1 + 0 + 0 + 400 / 600) / 4)
    assert seg_zero["cIoU"] == pytest.approx((400 + 0 + 0 + 400) / (400 + 400 + 0 + 600))
    assert result["by"]["length: short"]["gIoU"] == pytest.approx((1 + 400 / 600) / 2)
    assert result["by"]["length: long"]["gIoU"] == pytest.approx(1 / 2)
    assert result["N_acc"] == 1 and result["T_acc"] == pytest.approx(2 / 3)
    # The proposals hold red in halves and blue whole.
    assert lisa["oracle_gIoU"] == pytest.approx((1 + 1 + 1 + 400 / 600) / 4)
    assert [b["name"] for b in result["bad"]] == ["d, d.jpg"] and "leave the picture" in result["bad"][0][
        "error"
    ]
    printed = capsys.readouterr().out
    assert "protocol lisa" in printed and "protocol seg-zero" in printed and "length: long" in printed
    assert (tmp_path / "out/report.html").stat().st_size > 10_000


def test_one_protocol_alone_fills_the_fields(monkeypatch, reasonseg, tmp_path):
    _, result = run(monkeypatch, tmp_path / "out", "reasonseg", "--root", reasonseg, "--protocol", "seg-zero")
    assert result["protocol"] == "seg-zero" and result["gIoU"] == pytest.approx((1 + 400 / 600) / 4)
    assert result["cIoU"] == pytest.approx(800 / 1400) and result["ci95"]["gIoU"][0] <= result["gIoU"]


def test_items_that_cannot_be_used_are_listed_by_name(monkeypatch, reasonseg, tmp_path, capsys):
    folder = reasonseg / "val"
    (folder / "e.json").write_text("{")
    reasonseg_item(folder, "f", "red", [polygon(*BOXES["red"])], False)
    (folder / "f.jpg").unlink()
    _, result = run(monkeypatch, tmp_path / "out", "reasonseg", "--root", reasonseg)
    assert result["n"] == 4 and {b["name"] for b in result["bad"]} == {"e.json", "f.json", "d, d.jpg"}
    assert run(monkeypatch, tmp_path / "strict", "reasonseg", "--root", reasonseg, "--strict")[0] == 2
    assert run(monkeypatch, tmp_path / "none", "reasonseg", "--root", reasonseg, "--split", "test")[0] == 2
    assert "no folder" in capsys.readouterr().err.splitlines()[-1]


def test_llmseg40k(monkeypatch, tmp_path):
    picture(tmp_path / "coco/train2017/x.jpg")
    pair = lambda question, mask, answer: {"question": question, "answer": answer, "rle_seg": rle(mask)}
    rows = {
        "x.jpg": {
            "from_dataset": "coco",
            "qa_pairs": [
                pair("red", rectangle(*BOXES["red"]), "the red thing"),
                pair("green", np.zeros((H, W), bool), "there is none"),
                pair("blue", rectangle(30, 10, 40, 30), "a part"),
                {"question": "no mask"},
            ],
        }
    }
    (tmp_path / "val.json").write_text(json.dumps(rows))
    _, result = run(monkeypatch, tmp_path / "out", "llmseg40k", "--root", tmp_path)
    assert result["n"] == 3 and result["gIoU"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert result["cIoU"] == pytest.approx(600 / 800) and result["ncIoU"] == pytest.approx(
        600 / 800, abs=0.01
    )
    assert result["N_acc"] == 1 and result["T_acc"] == 1 and result["bad"][0]["name"] == "x.jpg, pair 4"


@pytest.fixture
def refer(tmp_path):
    picture(tmp_path / "images/train2014/p.jpg")
    outline = lambda box: [[box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]]
    table = {
        "images": [{"id": 7, "file_name": "p.jpg", "height": H, "width": W}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {"id": k, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": outline(BOXES[c])}
            for k, c in ((1, "red"), (2, "blue"))
        ],
    }
    ref = lambda k, ann, *sentences, split="val": {
        "ref_id": k,
        "ann_id": ann,
        "category_id": 1,
        "image_id": 7,
        "split": split,
        "file_name": "p.jpg",
        "sentences": [
            {"sent_id": 10 * k + n, "sent": s, "tokens": s.split(), "raw": s} for n, s in enumerate(sentences)
        ],
    }
    for name, refs, file in (
        (
            "refcoco",
            [ref(1, 1, "red", "a thing"), ref(2, 2, "the blue one"), ref(3, 2, "x", split="train")],
            "refs(unc).p",
        ),
        ("refcocog", [ref(1, 1, "red")], "refs(umd).p"),
        (
            "grefcoco",
            [
                ref(1, [1, 2], "red and blue"),
                ref(2, [-1], "green"),
                ref(3, [-1], "surely green"),
                ref(4, [2], "nothing of ours"),
                ref(5, [1, 99], "broken ref"),
            ],
            "grefs(unc).json",
        ),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "instances.json").write_text(json.dumps(table))
        if file.endswith(".p"):
            (tmp_path / name / file).write_bytes(pickle.dumps(refs, protocol=2))
        else:
            (tmp_path / name / file).write_text(json.dumps(refs))
    return tmp_path


def test_refcoco_from_its_pickle(monkeypatch, refer):
    _, result = run(monkeypatch, refer / "out", "refcoco", "--root", refer)
    assert (
        result["n"] == 3
        and result["gIoU"] == pytest.approx(2 / 3)
        and result["cIoU"] == pytest.approx(800 / 1200)
    )
    assert run(monkeypatch, refer / "g", "refcocog", "--root", refer)[1]["gIoU"] == 1


def test_a_pickle_that_would_run_code_is_refused(monkeypatch, refer, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    (refer / "refcoco/refs(unc).p").write_bytes(pickle.dumps([Evil()]))
    assert run(monkeypatch, refer / "out", "refcoco", "--root", refer)[0] == 2
    assert "not a pickle of plain data" in capsys.readouterr().err


def test_grefcoco_by_the_rules_of_rela(monkeypatch, refer):
    _, result = run(monkeypatch, refer / "out", "grefcoco", "--root", refer)
    # red and blue: 1. green: said absent, 1. surely green: 25 px where nothing is, 0. nothing said of blue: 0.
    assert result["n"] == 4 and result["gIoU"] == pytest.approx(2 / 4)
    assert result["cIoU"] == pytest.approx(800 / (800 + 25 + 400))
    assert result["N_acc"] == pytest.approx(1 / 2) and result["T_acc"] == pytest.approx(1 / 2)
    assert (
        result["figures"]["Pr@0.7"] == result["figures"]["Pr@0.9"] == pytest.approx(1 / 2)
    )  # of what is there
    assert result["bad"][0]["name"] == "ref 5"


def test_boxes(monkeypatch, tmp_path):
    picture(tmp_path / "images/p.jpg")
    row = lambda text, box, hops=1, **more: (
        {
            "image": "p.jpg",
            "width": W,
            "height": H,
            "expression": text,
            "box": box,
            "empty": box is None,
            "hops": hops,
            "type": ["colour"],
            "distractors": "1",
        }
        | more
    )
    rows = [
        row("the red one", [4, 4, 24, 24]),
        row("the blue one", [30, 10, 80, 30], hops=3),  # leaves the picture
        row("blue", [30, 10, 60, 30], hops=2),
        row("red", [10, 10, 24, 24]),
        row("green", None),
        row("surely green", None),
        row("red", [4, 4, 24, 24], image="gone.jpg"),
        {"expression": "x"},
    ]
    (tmp_path / "expressions.json").write_text(json.dumps(rows))
    _, result = run(monkeypatch, tmp_path / "out", "boxes", "--root", tmp_path)
    # red 400/400, blue 400/600, red 196/400 (wrong); green absent, surely green not
    assert result["n"] == 5 and result["figures"]["acc@50"] == pytest.approx(2 / 3)
    assert result["figures"]["mean_box_iou"] == pytest.approx((1 + 400 / 600 + 196 / 400) / 3)
    assert (
        result["N_acc"] == 1 / 2
        and result["T_acc"] == 1
        and result["figures"]["right"] == pytest.approx(3 / 5)
    )
    # single proposals: half of red (.5), blue (400/600), the right half of red against [10, 10, 24, 24]: 140/256
    assert result["figures"]["oracle_acc@50, all proposals"] == 1
    assert (
        result["by"]["hops: 2"]["acc@50"] == 1
        and result["by"]["hops: 1"]["n"] == 4
        and result["gIoU"] is None
    )
    assert [b["name"] for b in result["bad"]] == ["row 2, p.jpg", "row 7, gone.jpg", "row 8, None"]
    assert run(monkeypatch, tmp_path / "strict", "boxes", "--root", tmp_path, "--strict")[0] == 2


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
        ([0, 0, 1, 1], [1, 0, 2, 1], 0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0),
        ([0, 0, 4, 4], [1, 1, 3, 3], 1 / 4),
    ],
)
def test_box_iou(a, b, expected):
    assert metrics.box_iou(a, b) == metrics.box_iou(b, a) == pytest.approx(expected)


def test_the_tight_box_of_a_mask():
    assert (
        tight_box(rectangle(3, 4, 10, 12)) == [3, 4, 10, 12]
        and tight_box(np.zeros((H, W), bool)) is None
    )


# semantic


def label_map(values):
    """The coloured picture's true labels: `values` of (elsewhere, red, blue)."""
    label = np.full((H, W), values[0], np.uint8)
    label[rectangle(*BOXES["red"])], label[rectangle(*BOXES["blue"])] = values[1:]
    return label


def save_label(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path)


def own_layout(root):
    picture(root / "images/p.jpg")
    label = label_map((3, 0, 1))
    label[:, 50:] = 9  # no name: does not count
    save_label(root / "labels/p.png", label)
    (root / "names.json").write_text(json.dumps(["red", "blue", "green", "grey wall", "void"]))


def test_semantic_by_hand(monkeypatch, tmp_path):
    own_layout(tmp_path)
    assistant = FakeAssistant()
    _, result = run(
        monkeypatch,
        tmp_path / "out",
        "semantic",
        "--root",
        tmp_path,
        "--per-question",
        "3",
        assistant=assistant,
    )
    assert (
        len(assistant.asked) == 2
        and "red, blue, green?" in assistant.asked[0]
        and "grey wall?" in assistant.asked[1]
    )
    # red 400/400, blue 400/400, green neither true nor said: dropped. The wall is never answered: 0, an error.
    assert result["figures"]["mIoU"] == pytest.approx(2 / 3) and result["by"]["grey wall"]["IoU"] == 0
    assert result["by"]["green"]["IoU"] is None and result["figures"]["classes"] == 3
    wall = H * 50 - 800
    assert result["figures"]["pixel_accuracy"] == pytest.approx(800 / (800 + wall))
    assert result["figures"]["uncovered"] == pytest.approx(wall / (800 + wall))
    assert result["N_acc"] == 1 and result["T_acc"] == pytest.approx(2 / 3)
    assert result["figures"]["classes_not_answered"] == 1 and result["by"]["red"]["oracle_IoU"] == 1
    # What it answered is what another model would have written.
    _, again = run(
        monkeypatch,
        tmp_path / "again",
        "semantic",
        "--root",
        tmp_path,
        "--predictions",
        tmp_path / "out/label_maps",
    )
    assert again["figures"]["mIoU"] == result["figures"]["mIoU"] and again["by"]["red"]["right"] == 400


def test_an_overlap_goes_to_the_surer_answer(monkeypatch, tmp_path):
    own_layout(tmp_path)

    class Unsure(FakeAssistant):
        def open(self, image):
            scene = super().open(image)
            ask = scene.ask

            def both(question):
                answer = ask(question)
                for target, sure in zip(answer.targets, (0.6, 0.8)):
                    target.mask, target.confidence = np.ones((H, W), bool), sure
                return answer

            scene.ask = both
            return scene

    _, result = run(monkeypatch, tmp_path / "out", "semantic", "--root", tmp_path, assistant=Unsure())
    assert result["by"]["blue"]["predicted"] == H * 50 and result["by"]["red"]["right"] == 0


def test_a_synonym_in_a_list_answered_in_order_is_bound_by_its_place(monkeypatch, tmp_path):
    own_layout(tmp_path)

    class OtherWords(FakeAssistant):
        def open(self, image):
            scene = super().open(image)
            ask = scene.ask

            def in_other_words(question):
                answer = ask(question)
                answer.targets[0].phrase = "scarlet"
                return answer

            scene.ask = in_other_words
            return scene

    _, result = run(
        monkeypatch,
        tmp_path / "a",
        "semantic",
        "--root",
        tmp_path,
        "--per-question",
        "2",
        assistant=OtherWords(),
    )
    assert result["by"]["red"]["IoU"] == 1  # red and blue were asked, two were answered
    _, result = run(
        monkeypatch,
        tmp_path / "b",
        "semantic",
        "--root",
        tmp_path,
        "--per-question",
        "4",
        assistant=OtherWords(),
    )
    assert (
        result["by"]["red"]["IoU"] == 0 and result["figures"]["phrases_that_are_no_class"] == 1
    )  # four asked, three answered


def test_public_layouts_of_label_maps(tmp_path):
    ade = tmp_path / "ade"
    picture(ade / "images/validation/a.jpg")
    save_label(ade / "annotations/validation/a.png", label_map((0, 1, 3)))
    (ade / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
        "1\t.1\t1\t1\t1\twall\n2\t.1\t1\t1\t1\tbuilding, edifice\n3\t.1\t1\t1\t1\tsky\n"
    )
    found = find_layout(ade, "val")
    assert found.names == ["wall", "building", "sky"] and found.pairs[0][0] == ade / "images/validation/a.jpg"
    assert (found.read(found.pairs[0][1]) == label_map((255, 0, 2)).astype(np.int8)).all()

    stuff = tmp_path / "stuff"
    save_label(stuff / "stuffthingmaps_trainval2017/val2017/a.png", label_map((255, 0, 181)))
    (stuff / "labels.txt").write_text(
        "0: unlabeled\n1: person\n12: street sign\n170: wall-other\n171: wall-brick\n182: wood\n"
    )
    found = find_layout(stuff, "val")
    assert (
        found.names == ["person", "wall", "wall brick", "wood"]
        and found.pairs[0][0] == stuff / "val2017/a.jpg"
    )
    assert set(np.unique(found.read(found.pairs[0][1]))) == {-1, 0, 3}

    city = tmp_path / "city"
    save_label(city / "gtFine/val/ulm/ulm_0_gtFine_labelIds.png", label_map((7, 26, 4)))
    found = find_layout(city, "val")
    assert len(found.names) == 19 and found.pairs[0][0] == city / "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png"
    assert set(np.unique(found.read(found.pairs[0][1]))) == {
        found.names.index("road"),
        found.names.index("car"),
        -1,
    }


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


def test_class_counts_agree_with_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(300):
        classes = int(rng.integers(1, 5))
        said, true = rng.integers(-1, classes + 1, (2, *rng.integers(1, 9, 2)))
        expected = np.zeros((3, classes), int)
        for p, t in zip(said.ravel().tolist(), true.ravel().tolist()):
            if not 0 <= t < classes:
                continue
            expected[2, t] += 1
            if 0 <= p < classes:
                expected[1, p] += 1
                expected[0, t] += p == t
        counts = metrics.class_counts(said, true, classes)
        assert (counts == expected).all()
        for k, value in enumerate(metrics.class_ious(counts)):
            union = expected[1, k] + expected[2, k] - expected[0, k]
            assert np.isnan(value) if union == 0 else value == expected[0, k] / union


# other people's models


def test_predictions_of_another_model_and_the_paired_difference(monkeypatch, reasonseg, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name, mask in (
        ("a", rectangle(4, 4, 14, 24)),
        ("b", rectangle(*BOXES["blue"])),
        ("d", np.zeros((H, W), bool)),
    ):
        Image.fromarray(mask.astype(np.uint8) * 255).save(theirs / f"{name}.png")
    Image.fromarray(np.zeros((H, W), np.uint8)).save(theirs / "c.png")
    _, result = run(
        monkeypatch,
        tmp_path / "a",
        "reasonseg",
        "--root",
        reasonseg,
        "--predictions",
        theirs,
        "--protocol",
        "both",
    )
    assert (
        result["gIoU"] == pytest.approx((1 + 1 + 1 + 0) / 4)
        and result["oracle_gIoU"] is None
        and result["curve"] == []
    )
    assert result["figures"]["protocols"]["seg-zero"]["gIoU"] == pytest.approx((200 / 400 + 1 + 0 + 0) / 4)
    assert result["preset"] == "predictions in theirs" and len(result["weights"]["predictions"]) == 64

    table = {
        "a": rle(rectangle(4, 4, 14, 24)),
        "b": [rle(rectangle(30, 10, 40, 30)), rle(rectangle(40, 10, 50, 30))],
        "c": None,
    }
    (tmp_path / "other").mkdir()
    (tmp_path / "other/predictions.json").write_text(json.dumps(table))
    _, other = run(
        monkeypatch, tmp_path / "o", "reasonseg", "--root", reasonseg, "--predictions", tmp_path / "other"
    )
    assert other["n"] == 3 and other["gIoU"] == 1 and "no prediction called d" in other["bad"][0]["error"]

    run(monkeypatch, tmp_path / "b", "reasonseg", "--root", reasonseg)
    capsys.readouterr()
    assert (
        command.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c.json")])
        == 0
    )
    row = json.loads((tmp_path / "c.json").read_text())["tables"]["all"]["gIoU"]
    assert row["difference"] == pytest.approx((0 - 1 + 0 + 400 / 600) / 4) and (
        row["better"],
        row["worse"],
    ) == (1, 1)
    assert row["ci95"][0] < row["difference"] < row["ci95"][1] and "B-A" in capsys.readouterr().out
    same = command.main(
        ["compare", str(tmp_path / "b"), str(tmp_path / "b"), "--out", str(tmp_path / "d.json")]
    )
    row = json.loads((tmp_path / "d.json").read_text())["tables"]["all"]["gIoU"]
    assert same == 0 and row["difference"] == 0 and row["ci95"] == [0, 0]


def test_runs_that_cannot_be_compared(monkeypatch, reasonseg, tmp_path, capsys):
    run(monkeypatch, tmp_path / "a", "reasonseg", "--root", reasonseg)
    own_layout(tmp_path / "maps")
    run(monkeypatch, tmp_path / "b", "semantic", "--root", tmp_path / "maps")
    for other in ("b", "nowhere"):
        assert command.main(["compare", str(tmp_path / "a"), str(tmp_path / other)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_predictions_that_cannot_be_read(monkeypatch, reasonseg, tmp_path, content, capsys):
    (tmp_path / "p").mkdir()
    if content:
        (tmp_path / "p/predictions.json").write_text(content)
    assert (
        run(monkeypatch, tmp_path / "out", "reasonseg", "--root", reasonseg, "--predictions", tmp_path / "p")[
            0
        ]
        == 2
    )
    assert capsys.readouterr().err.startswith("error: ")


# several processes

LAUNCHED = """
import os
import sys
from pathlib import Path
from eval import __main__ as command, models
from tests.helpers.colour_finder import FakeAssistant
models.open_assistant = lambda settings: FakeAssistant()
Path(__file__).with_name(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}").touch()
sys.exit(command.main(sys.argv[1:]))
"""


def test_two_launched_processes_count_every_sample_once(monkeypatch, tmp_path):
    folder = tmp_path / "ReasonSeg/val"
    for k in range(5):  # an odd number: a sampler that pads its shares would count one twice
        reasonseg_item(folder, f"p{k}", "red", [polygon(4, 4, 24 + k, 24)], k % 2 == 0)
    _, alone = run(monkeypatch, tmp_path / "one", "reasonseg", "--root", tmp_path / "ReasonSeg")
    (tmp_path / "launched.py").write_text(LAUNCHED)
    root = Path(__file__).parents[2]
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        str(tmp_path / "launched.py"),
        "reasonseg",
        "--root",
        str(tmp_path / "ReasonSeg"),
        "--out",
        str(tmp_path / "two"),
    ]
    subprocess.run(
        words,
        check=True,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root,
        timeout=240,
        capture_output=True,
    )
    assert len(list(tmp_path.glob("process * of 2"))) == 2
    both = json.loads((tmp_path / "two/result.json").read_text())
    for name in ("n", "gIoU", "cIoU", "ncIoU", "N_acc", "T_acc", "oracle_gIoU", "ci95", "by", "curve"):
        assert both[name] == alone[name], name
    keys = [json.loads(line)["key"] for line in (tmp_path / "two/samples.jsonl").read_text().splitlines()]
    assert sorted(keys) == [f"p{k}" for k in range(5)] and not list((tmp_path / "two").glob("samples.[0-9]*"))


def test_a_run_goes_on_with_another_number_of_processes(monkeypatch, tmp_path):
    from eval.run import Run

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, keys in ((0, "a"), (1, "bc")):
        monkeypatch.setenv("RANK", str(rank))
        part = Run(tmp_path, {})
        assert list(part.mine(list("abcde"))) == list("abcde"[rank::2])
        for key in keys:
            part.add(key, {"rank": rank})
    with (tmp_path / "samples.1.jsonl").open("a") as file:
        file.write('{"key": "d", "ra')  # killed here
    assert part.gather("abc") is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = Run(tmp_path, {})
    assert alone.done.keys() == set("abc")
    alone.add("d", {"rank": 0})
    assert [line["key"] for line in alone.gather("abcd")] == list("abcd")
    assert sorted(p.name for p in tmp_path.glob("samples*")) == ["samples.jsonl"]
    assert Run(tmp_path, {}).done.keys() == set("abcd")
