"""Few-shot episodes, folds and figures, counted by hand; the whole benchmark on a matcher that knows."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.errors import BadInput
from assistant.few_shot.similarity import Look, Reference
from eval import __main__ as command
from eval import models
from eval.benchmarks import fewshot
from eval.benchmarks.fewshot import Table, coco20i, coco_folder, draw_episodes, fold_of, pascal, scores

H, W = 60, 80


def coco(root, pictures, crowd=()):
    """A COCO-format folder of eight categories; pictures: [{category id: box xyxy}]."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for k, boxes in enumerate(pictures):
        Image.fromarray(np.full((H, W, 3), 40 + k, np.uint8)).save(root / f"images/{root.name}{k}.png")
        images.append({"id": k, "file_name": f"{root.name}{k}.png", "height": H, "width": W})
        for category, (x0, y0, x1, y1) in boxes.items():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": k,
                    "category_id": category,
                    "iscrowd": int((k, category) in crowd),
                    "segmentation": [[float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]],
                }
            )
    names = [{"id": c, "name": f"thing {c}"} for c in (9, 1, 2, 3, 4, 5, 6, 7)]  # out of order on purpose
    (root / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": names})
    )
    return root


BIG, OTHER, SMALL = (10, 10, 60, 50), (0, 0, 40, 40), (0, 0, 20, 20)


def test_the_folds_are_the_published_ones():
    assert [fewshot.VOC[c] for c in range(20) if fold_of("pascal5i", c) == 1] == [
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
    ]
    second = [fewshot.COCO[c] for c in range(80) if fold_of("coco20i", c) == 1]
    assert (
        len(second) == 20
        and second[:3] == ["bicycle", "bus", "traffic light"]
        and len(set(fewshot.COCO)) == 80
    )


def test_episodes_depend_on_the_seed_alone_and_never_show_the_query(tmp_path):
    root = coco(
        tmp_path / "a",
        [{1: BIG}, {1: OTHER, 2: BIG}, {1: BIG, 5: BIG}, {5: OTHER}, {3: BIG}, {7: SMALL, 6: BIG}],
    )
    data = coco_folder(root)
    assert data.names == [f"thing {c}" for c in (1, 2, 3, 4, 5, 6, 7, 9)]
    assert data.holding == {
        0: [0, 1, 2],
        1: [1],
        4: [2, 3],
        2: [4],
        5: [5],
    }  # what is smaller than 32 x 32 px is no episode
    one = draw_episodes("coco-format", data, data, 0, 1, 50, seed=3)
    assert one == draw_episodes("coco-format", data, data, 0, 1, 50, seed=3)
    assert one != draw_episodes("coco-format", data, data, 0, 1, 50, seed=4)
    assert {e.category for e in one} == {0, 4} and all(e.query not in e.references for e in one)
    two = draw_episodes("coco-format", data, data, 0, 2, 50, seed=3)
    assert {len(e.references) for e in two} == {1, 2}  # all there are, where there are fewer
    assert all(len(set(e.references)) == len(e.references) for e in two)
    with pytest.raises(BadInput, match="fold 2 has no category"):
        draw_episodes("coco-format", data, data, 2, 1, 5, 0)


def test_queries_and_references_may_come_from_two_folders_but_not_be_the_same_picture(tmp_path):
    queries, sources = (
        coco_folder(coco(tmp_path / "a", [{1: BIG}])),
        coco_folder(coco(tmp_path / "b", [{1: BIG}, {1: OTHER}])),
    )
    drawn = draw_episodes("coco-format", queries, sources, 0, 1, 30, 0)
    assert {e.references for e in drawn} == {(0,), (1,)}
    sources.paths[0] = tmp_path / "elsewhere/a0.png"  # the same picture in another folder
    assert {e.references for e in draw_episodes("coco-format", queries, sources, 0, 1, 30, 0)} == {(1,)}


def test_crowds_do_not_count(tmp_path):
    data = coco_folder(coco(tmp_path / "a", [{1: BIG}, {1: BIG}], crowd={(1, 1)}))
    mask, ignore = data.read(1, 0)
    assert (
        not mask.any() and ignore.sum() == 50 * 40 and data.read(0, 0)[1] is None and data.holding == {0: [0]}
    )


def test_label_pngs_in_the_published_layouts(tmp_path):
    label = np.zeros((H, W), np.uint8)
    label[5:50, 5:60], label[:, 70:] = 7, 255
    voc = tmp_path / "VOC2012"
    for folder, name in (
        (voc / "SegmentationClassAug", "a"),
        (voc / "SegmentationClassAug", "b"),
        (tmp_path / "COCO2014/annotations/val2014", "c"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(folder / f"{name}.png")
    (voc / "JPEGImages").mkdir()
    data = pascal(tmp_path)
    assert (
        data.holding == {6: [0, 1]} and data.names[6] == "car" and data.paths[1] == voc / "JPEGImages/b.jpg"
    )
    mask, ignore = data.read(0, 6)
    assert mask.sum() == 45 * 55 and ignore.sum() == H * 10
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("b\n")
    assert pascal(voc).paths == [voc / "JPEGImages/b.jpg"]
    assert coco20i(tmp_path).names[6] == "train" and coco20i(tmp_path).holding == {6: [0]}
    with pytest.raises(BadInput, match="not VOC2012"):
        pascal(tmp_path / "COCO2014")
    with pytest.raises(BadInput, match="not COCO-20i"):
        coco20i(voc)


def line(fold, category, query, **pairs):
    return {
        "fold": fold,
        "category": category,
        "query": query,
        "references": [],
        "arms": {
            arm: {"pair": p, "background": b, "score": 1.0, "seconds": 0.1} for arm, (p, b) in pairs.items()
        },
    }


def test_figures_are_those_counted_by_hand():
    """mIoU sums over a category before it divides; FB-IoU over everything."""
    same = lambda p, b: dict.fromkeys(fewshot.ARMS, (p, b))
    lines = [
        line(0, "cat", "x", **same((10, 10), (90, 90))),
        line(0, "cat", "y", **same((0, 30), (70, 100))),
        line(0, "dog", "x", **same((5, 10), (85, 90))),
    ]
    table = Table(lines, "text")
    miou, fb = table.scores(np.ones((1, 2)))[0]
    assert miou == pytest.approx((10 / 40 + 5 / 10) / 2) and fb == pytest.approx((15 / 50 + 245 / 280) / 2)
    only_x = table.scores(np.array([[2.0, 0.0]]))[0]
    assert only_x[0] == pytest.approx((1 + 0.5) / 2)
    lines[0]["arms"]["plain"]["pair"] = (0, 10)
    once, drawn = scores(lines, seed=0, resamples=50)
    assert once["text"].shape == (1, 2) and drawn["plain"].shape == (50, 1, 2)
    difference = (drawn["text"] - drawn["plain"])[:, 0, 0]
    assert (difference >= 0).all() and difference.max() > 0  # paired: the same pictures are drawn for both


class Knows:
    """Answers the box OTHER with a name, its left half without, nothing by prototypes; pictures by their grey."""

    class segmenter:
        @staticmethod
        def input_size(size):
            return size

        side = 80

    def open(self, image):
        from assistant.sam.segmenter import Embedding

        embedding = Embedding(torch.zeros(1), image.shape[:2], (H, W))
        return Look(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.ones(4, 4), embedding)

    def given(self, query, references, label):
        assert all(
            isinstance(r, Reference) and r.mask.shape == (4, 4) and r.mask.sum() > 0 for r in references
        )
        return self

    def nameless(self):
        return None

    def match(self, query, given):
        return np.zeros((H, W), bool), 0.0

    def answer(self, query, given):
        mask = np.zeros((H, W), bool)
        mask[:40, : 40 if given else 20] = True
        return mask, 0.9


@pytest.fixture
def knows(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "assistant.few_shot.matcher.Matcher.load", classmethod(lambda cls, file, segmenter: Knows())
    )
    monkeypatch.setattr(models, "open_segmenter", lambda settings: (None, {"sam": "0"}))
    (tmp_path / "reference.safetensors").write_bytes(b"weights")
    return tmp_path / "reference.safetensors"


def test_the_whole_benchmark_runs_resumes_and_names_what_it_cannot_read(tmp_path, knows, capsys):
    root = coco(
        tmp_path / "a", [{1: OTHER}, {1: OTHER}, {2: OTHER}, {2: OTHER}, {2: OTHER, 5: OTHER}, {5: OTHER}]
    )
    out = tmp_path / "out"
    words = [
        "fewshot",
        "--benchmark",
        "coco-format",
        "--root",
        str(root),
        "--fold",
        "0",
        "1",
        "--shots",
        "2",
        "--episodes",
        "8",
        "--weights",
        str(knows),
        "--out",
        str(out),
    ]
    assert command.main([*words, "--limit", "3"]) == 0 and command.main(words) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["version"] == 1 and result["n"] == 16 and "reference of fold 1" in result["weights"]
    figures = result["figures"]
    assert figures["text mIoU"] == 1 and figures["plain mIoU"] == 0.5 and figures["prototype mIoU"] == 0
    assert figures["text - plain mIoU"] == 0.5 and result["ci95"]["text - plain mIoU"] == [0.5, 0.5]
    assert figures["text FB-IoU"] == 1 and result["by"]["fold 1"]["text mIoU"] == 1
    assert len((out / "samples.jsonl").read_text().splitlines()) == 16
    assert "fewshot, version 1" in capsys.readouterr().out and (out / "report.html").stat().st_size > 5000
    (root / "images/a0.png").unlink()
    assert command.main([*words[:-1], str(tmp_path / "again")]) == 0
    result = json.loads((tmp_path / "again/result.json").read_text())
    assert (
        result["bad"]
        and all("no picture" in b["error"] for b in result["bad"])
        and result["n"] + len(result["bad"]) == 16
    )
    assert command.main([*words[:-1], str(tmp_path / "strict"), "--strict"]) == 2


def test_bad_requests_end_with_one_line(tmp_path, knows, capsys):
    root = coco(tmp_path / "a", [{1: OTHER}, {1: OTHER}])
    start = ["fewshot", "--root", str(root), "--out", str(tmp_path / "o"), "--weights", str(knows)]
    assert command.main([*start, "--benchmark", "coco-format", "--shots", "0"]) == 2
    assert command.main([*start, "--benchmark", "coco-format", "--fold", "3"]) == 2
    assert command.main([*start, "--benchmark", "pascal5i"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(s.startswith("error: ") for s in said)
