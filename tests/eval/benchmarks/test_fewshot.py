"""Few-shot episodes, folds and scores, counted by hand; the benchmark on a matcher that knows the answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.errors import BadInput
from assistant.few_shot.episode import ImageFeatures, Reference, cell_coverage
from assistant.sam.segmenter import Embedding
from eval import __main__ as command
from eval import models
from eval.benchmarks.fewshot_data import (
    COCO_CATEGORIES,
    VOC_CATEGORIES,
    CocoFolder,
    draw_episodes,
    fold_of,
    open_coco20i,
    open_pascal,
)
from eval.benchmarks.fewshot_lists import keep_listed
from eval.benchmarks.fewshot_scores import ARMS, CountTable, score_arms

HEIGHT, WIDTH = 60, 80
# Boxes xyxy in px; the last one is smaller than a category must be.
BIG, OTHER, SMALL = (10, 10, 60, 50), (0, 0, 40, 40), (0, 0, 20, 20)


def write_coco_folder(root: Path, images: list[dict], crowds: set[tuple[int, int]] = frozenset()) -> Path:
    """A COCO-format folder of eight categories, whose ids are out of order on purpose.

    Args:
        root: The folder.
        images: {category id: box xyxy} of each image.
        crowds: (image, category id) of the boxes that are crowds.
    """
    (root / "images").mkdir(parents=True)
    listed = []
    annotations = []
    for k, boxes in enumerate(images):
        file = f"{root.name}{k}.png"
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 + k, np.uint8)).save(root / "images" / file)
        listed.append({"id": k, "file_name": file, "height": HEIGHT, "width": WIDTH})
        for category, (x0, y0, x1, y1) in boxes.items():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": k,
                    "category_id": category,
                    "iscrowd": int((k, category) in crowds),
                    "segmentation": [[float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]],
                }
            )
    categories = [{"id": c, "name": f"category {c}"} for c in (9, 1, 2, 3, 4, 5, 6, 7)]
    instances = {"images": listed, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(instances))
    return root


# ------------------------------------------------------------------------------------ images and episodes


def test_published_lists_say_what_is_asked_about(tmp_path):
    boxes = [{1: BIG, 2: SMALL}, {1: BIG}, {2: BIG, 3: OTHER}]
    root = write_coco_folder(tmp_path / "coco", boxes)
    images = CocoFolder(root)
    assert images.showing == {0: [0, 1], 1: [2], 2: [2]}  # 2 is too small in the first image
    hsnet = tmp_path / "fold0.txt"
    hsnet.write_text("coco0__02\ncoco1__01\n\n")
    keep_listed(images, [hsnet])
    assert images.showing == {0: [1], 1: [0]}  # what is listed counts, however small it is
    pfenet = tmp_path / "val.txt"
    pfenet.write_text("images/coco0.png labels/coco0.png\nimages/coco2.png labels/coco2.png\n")
    images = CocoFolder(root)
    keep_listed(images, [pfenet])
    assert images.showing == {0: [0], 1: [0, 2], 2: [2]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("coco0 __ 1", "line 1 of .* is neither"),
        ("\n", "lists no image"),
        ("coco0__00", "is neither"),
        ("coco7__01\ncoco8__01", "2 of 2 listed images are not among the images, such as coco7"),
        (None, "no list at"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, text, message):
    images = CocoFolder(write_coco_folder(tmp_path / "coco", [{1: BIG}, {1: BIG}]))
    file = tmp_path / "list.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadInput, match=message) as error:
        keep_listed(images, [file])
    assert "\n" not in str(error.value)


def test_the_folds_are_the_published_ones():
    of_pascal = [VOC_CATEGORIES[c] for c in range(20) if fold_of("pascal5i", c) == 1]
    assert of_pascal == ["bus", "car", "cat", "chair", "cow"]
    of_coco = [COCO_CATEGORIES[c] for c in range(80) if fold_of("coco20i", c) == 1]
    assert len(of_coco) == 20
    assert of_coco[:3] == ["bicycle", "bus", "traffic light"]
    assert len(set(COCO_CATEGORIES)) == 80


def test_episodes_depend_on_the_seed_alone_and_never_show_the_query(tmp_path):
    images = [{1: BIG}, {1: OTHER, 2: BIG}, {1: BIG, 5: BIG}, {5: OTHER}, {3: BIG}, {7: SMALL, 6: BIG}]
    data = CocoFolder(write_coco_folder(tmp_path / "a", images))
    assert data.names == [f"category {c}" for c in (1, 2, 3, 4, 5, 6, 7, 9)]
    # a category that covers less than 32 x 32 px of an image is not asked for there
    assert data.showing == {0: [0, 1, 2], 1: [1], 4: [2, 3], 2: [4], 5: [5]}
    one_shot = draw_episodes("coco-format", data, data, 0, 1, 50, seed=3)
    assert one_shot == draw_episodes("coco-format", data, data, 0, 1, 50, seed=3)
    assert one_shot != draw_episodes("coco-format", data, data, 0, 1, 50, seed=4)
    assert {e.category for e in one_shot} == {0, 4}
    assert all(e.query not in e.references for e in one_shot)
    two_shot = draw_episodes("coco-format", data, data, 0, 2, 50, seed=3)
    assert {len(e.references) for e in two_shot} == {1, 2}  # all that there are, where there are fewer
    assert all(len(set(e.references)) == len(e.references) for e in two_shot)
    with pytest.raises(BadInput, match="fold 2 has no category"):
        draw_episodes("coco-format", data, data, 2, 1, 5, 0)


def test_queries_and_references_may_come_from_two_folders_but_not_be_the_same_image(tmp_path):
    queries = CocoFolder(write_coco_folder(tmp_path / "a", [{1: BIG}]))
    sources = CocoFolder(write_coco_folder(tmp_path / "b", [{1: BIG}, {1: OTHER}]))
    drawn = draw_episodes("coco-format", queries, sources, 0, 1, 30, 0)
    assert {e.references for e in drawn} == {(0,), (1,)}
    sources.paths[0] = tmp_path / "elsewhere/a0.png"  # the same image in another folder
    drawn = draw_episodes("coco-format", queries, sources, 0, 1, 30, 0)
    assert {e.references for e in drawn} == {(1,)}


def test_crowds_do_not_count(tmp_path):
    data = CocoFolder(write_coco_folder(tmp_path / "a", [{1: BIG}, {1: BIG}], crowds={(1, 1)}))
    mask, ignored = data.read(1, 0)
    assert not mask.any()
    assert ignored.sum() == 50 * 40
    assert data.read(0, 0)[1] is None
    assert data.showing == {0: [0]}


def test_label_pngs_in_the_published_layouts(tmp_path):
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    label_map[5:50, 5:60] = 7
    label_map[:, 70:] = 255
    voc = tmp_path / "VOC2012"
    for folder, name in (
        (voc / "SegmentationClassAug", "a"),
        (voc / "SegmentationClassAug", "b"),
        (tmp_path / "COCO2014/annotations/val2014", "c"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label_map).save(folder / f"{name}.png")
    (voc / "JPEGImages").mkdir()
    data = open_pascal(tmp_path)
    assert data.showing == {6: [0, 1]}
    assert data.names[6] == "car"
    assert data.paths[1] == voc / "JPEGImages/b.jpg"
    mask, ignored = data.read(0, 6)
    assert mask.sum() == 45 * 55
    assert ignored.sum() == HEIGHT * 10
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("b\n")
    assert open_pascal(voc).paths == [voc / "JPEGImages/b.jpg"]
    assert open_coco20i(tmp_path).names[6] == "train"
    assert open_coco20i(tmp_path).showing == {6: [0]}
    with pytest.raises(BadInput, match="not VOC2012"):
        open_pascal(tmp_path / "COCO2014")
    with pytest.raises(BadInput, match="not COCO-20i"):
        open_coco20i(voc)


# ------------------------------------------------------------------------------------ scores


def line(fold: int, category: str, query: str, pair: tuple[int, int], background: tuple[int, int]) -> dict:
    """A line of samples.jsonl with the same counts in every arm."""
    return {
        "fold": fold,
        "category": category,
        "query": query,
        "references": [],
        "arms": {arm: {"pair": pair, "background": background, "score": 1.0, "seconds": 0.1} for arm in ARMS},
    }


def test_scores_are_those_counted_by_hand():
    """mIoU sums over a category before it divides, FB-IoU over everything."""
    lines = [
        line(0, "cat", "x", (10, 10), (90, 90)),
        line(0, "cat", "y", (0, 30), (70, 100)),
        line(0, "dog", "x", (5, 10), (85, 90)),
    ]
    table = CountTable(lines, "text")
    mean_iou, fb_iou = table.scores(np.ones((1, 2)))[0]
    assert mean_iou == pytest.approx((10 / 40 + 5 / 10) / 2)
    assert fb_iou == pytest.approx((15 / 50 + 245 / 280) / 2)
    only_x = table.scores(np.array([[2.0, 0.0]]))[0]
    assert only_x[0] == pytest.approx((1 + 0.5) / 2)
    lines[0]["arms"]["plain"]["pair"] = (0, 10)
    scores = score_arms(lines, seed=0, resamples=50)
    assert scores.measured["text"].shape == (1, 2)
    assert scores.resampled["plain"].shape == (50, 1, 2)
    difference = (scores.resampled["text"] - scores.resampled["plain"])[:, 0, 0]
    # paired: the same images are drawn for both arms
    assert (difference >= 0).all() and difference.max() > 0


# ------------------------------------------------------------------------------------ the command


class SquareSegmenter:
    """As much of a segmenter as masks on a grid need: images of 60 x 80 px in a square of 80 px."""

    side = 80

    def input_size(self, size):
        return size


class KnowingMatcher:
    """Answers the box OTHER with a label, its left half without, and nothing by prototypes."""

    segmenter = SquareSegmenter()

    def open(self, image):
        embedding = Embedding(torch.zeros(1), image.shape[:2], (HEIGHT, WIDTH))
        return ImageFeatures(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.ones(4, 4), embedding)

    def reference_of(self, features, mask):
        return Reference(features, cell_coverage(self.segmenter, mask.shape, mask, (4, 4)))

    def inputs(self, query, references, label):
        assert all(isinstance(r, Reference) and r.mask.shape == (4, 4) for r in references)
        assert all(r.mask.sum() > 0 for r in references)
        return self

    def without_labels(self):
        return None

    def match_prototypes(self, query, inputs):
        return np.zeros((HEIGHT, WIDTH), bool), 0.0

    def predict(self, query, inputs):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[:40, : 40 if inputs else 20] = True
        return mask, 0.9


@pytest.fixture
def knowing_weights(monkeypatch, tmp_path) -> Path:
    """A weight file of which `KnowingMatcher` is loaded."""
    monkeypatch.setattr(
        "assistant.few_shot.matcher.Matcher.load",
        classmethod(lambda cls, file, segmenter: KnowingMatcher()),
    )
    monkeypatch.setattr(models, "open_segmenter", lambda settings: (None, {"sam": "0"}))
    (tmp_path / "reference.safetensors").write_bytes(b"weights")
    return tmp_path / "reference.safetensors"


def test_the_whole_benchmark_runs_resumes_and_names_what_it_cannot_read(tmp_path, knowing_weights, capsys):
    images = [{1: OTHER}, {1: OTHER}, {2: OTHER}, {2: OTHER}, {2: OTHER, 5: OTHER}, {5: OTHER}]
    root = write_coco_folder(tmp_path / "a", images)
    out = tmp_path / "out"
    words = f"fewshot --benchmark coco-format --root {root} --fold 0 1 --shots 2 --episodes 8".split()
    words += ["--weights", str(knowing_weights), "--out"]
    assert command.main([*words, str(out), "--limit", "3"]) == 0
    assert command.main([*words, str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["version"] == 1 and result["n"] == 16
    assert "reference of fold 1" in result["weights"]
    figures = result["figures"]
    assert figures["text mIoU"] == 1 and figures["plain mIoU"] == 0.5 and figures["prototype mIoU"] == 0
    assert figures["text - plain mIoU"] == 0.5
    assert result["ci95"]["text - plain mIoU"] == [0.5, 0.5]
    assert figures["text FB-IoU"] == 1 and result["by"]["fold 1"]["text mIoU"] == 1
    assert len((out / "samples.jsonl").read_text().splitlines()) == 16
    assert "fewshot, version 1" in capsys.readouterr().out
    assert (out / "report.html").stat().st_size > 5000
    (root / "images/a0.png").unlink()
    assert command.main([*words, str(tmp_path / "again")]) == 0
    result = json.loads((tmp_path / "again/result.json").read_text())
    assert result["bad"]
    assert all("no image" in bad["error"] for bad in result["bad"])
    assert result["n"] + len(result["bad"]) == 16
    assert command.main([*words, str(tmp_path / "strict"), "--strict"]) == 2


def test_bad_requests_end_with_one_line(tmp_path, knowing_weights, capsys):
    root = write_coco_folder(tmp_path / "a", [{1: OTHER}, {1: OTHER}])
    start = ["fewshot", "--root", str(root), "--out", str(tmp_path / "o"), "--weights", str(knowing_weights)]
    assert command.main([*start, "--benchmark", "coco-format", "--shots", "0"]) == 2
    assert command.main([*start, "--benchmark", "coco-format", "--fold", "3"]) == 2
    assert command.main([*start, "--benchmark", "pascal5i"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(error.startswith("error: ") for error in errors)
