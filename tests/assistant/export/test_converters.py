"""Other data sets become records, and records LLM-Seg40K's form, without losing a mask."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from assistant.errors import BadInput
from assistant.export.converters import (
    from_label_maps,
    from_llmseg40k,
    from_reasonseg,
    from_refer,
    read_refs,
    to_llmseg40k,
)
from assistant.grammar import parse
from assistant.record import RecordTarget, check_record, read_records, record_masks, write_records
from assistant.sam.mask_ops import decode_rle, encode_rle
from tests.helpers.example_record import COFFEE, CUP, example_record


def llmseg(mask):
    return {
        "a.jpg": {
            "from_dataset": "coco",
            "qa_pairs": [
                {"question": "What keeps the rain off?", "answer": "umbrella", "rle_seg": encode_rle(mask)},
                {
                    "question": "And?",
                    "answer": "The man could use the umbrella, and [SEG] it.",
                    "rle_seg": encode_rle(mask),
                },
            ],
        },
        "b.jpg": {
            "from_dataset": "ego_objects",
            "qa_pairs": [
                {"question": "Where to sit?", "answer": "bench", "rle_seg": encode_rle(mask & False)}
            ],
        },
    }


def test_llmseg40k_both_ways(tmp_path):
    table = llmseg(CUP)
    (tmp_path / "t.json").write_text(json.dumps(table))
    records = list(from_llmseg40k(tmp_path / "t.json"))
    assert all(check_record(r) == [] for r in records)
    assert [r.image for r in records] == ["coco/train2017/a.jpg"] * 2 + ["ego_objects/images/b.jpg"]
    assert [r.targets[0].phrase for r in records] == ["umbrella", "it", "bench"]
    assert [r.targets[0].rle is None for r in records] == [False, False, True]
    assert np.array_equal(record_masks(records[0])[0], CUP)
    write_records(tmp_path / "r.jsonl", records)
    assert to_llmseg40k(read_records(tmp_path / "r.jsonl")) == table


def test_any_record_to_llmseg40k():
    without_cup = example_record(targets=[RecordTarget("cup", None)], answer="There is no cup [ABS].")
    table = to_llmseg40k([example_record(), without_cup])
    first, second = table["coffee.png"]["qa_pairs"]
    assert first["answer"] == "The cup; there is no bear."
    assert np.array_equal(decode_rle(first["rle_seg"]), CUP)
    assert second["answer"] == "There is no cup." and not decode_rle(second["rle_seg"]).any()
    with pytest.raises(BadInput, match="two images"):
        to_llmseg40k([example_record(), example_record(image="other/coffee.png")])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"a": 3}',
        '{"a": {"from_dataset": "coco", "qa_pairs": [{}]}}',
        json.dumps(
            {
                "a": {
                    "from_dataset": "coco",
                    "qa_pairs": [{"question": "", "answer": "", "rle_seg": {"size": [2, 2], "counts": "1"}}],
                }
            }
        ),
    ],
)
def test_bad_llmseg40k(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(BadInput, match="t.json"):
        list(from_llmseg40k(tmp_path / "t.json"))


def square(label, x0, y0, x1, y1):
    return {
        "label": label,
        "points": [[x0 + 0.7, y0], [x1, y0], [x1, y1 + 0.2], [x0, y1]],
        "shape_type": "polygon",
    }


def test_reasonseg(tmp_path):
    shapes = [
        square("target", 10, 10, 20, 20),
        square("Ignore_zone", 5, 5, 40, 40),
        square("target", 0, 0, 60, 60),
        square("FLAG", 0, 0, 90, 90),
        {"label": "target", "points": [[100, 50]]},
    ]
    item = {"text": ["the caf\u00e9\u2019s chair", "other"], "is_sentence": False, "shapes": shapes}
    sentence = item | {"is_sentence": True, "shapes": shapes[1:2]}
    for name, row, code in (("b", item, "cp1252"), ("a", sentence, "utf-8")):
        Image.fromarray(COFFEE).save(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.json").write_bytes(json.dumps(row, ensure_ascii=False).encode(code))
    empty, full = from_reasonseg(tmp_path, prefix="val/")
    assert all(check_record(r) == [] for r in (empty, full))
    assert (full.image, full.question, full.targets[0].phrase) == (
        "val/b.jpg",
        "the café’s chair",
        "café’s chair",
    )
    mask, ignore = record_masks(full)[0], decode_rle(full.source["ignore"])
    assert mask[15, 15] and mask[50, 50] and mask[50, 100] and not mask[30, 30] and not mask[80, 80]
    assert ignore[30, 30] and not ignore[15, 15] and not (mask & ignore).any()
    assert mask[0, 0] and mask[60, 60] and not mask[61, 61] and ignore[40, 40] and mask[41, 41]
    assert empty.targets[0] == RecordTarget("it", None) and empty.source["is_sentence"] is True


def test_bad_reasonseg(tmp_path):
    with pytest.raises(BadInput, match="no .json"):
        list(from_reasonseg(tmp_path))
    (tmp_path / "a.json").write_text('{"text": []}')
    with pytest.raises(BadInput, match="a.json"):
        list(from_reasonseg(tmp_path))
    (tmp_path / "a.json").write_text('{"text": "one string", "is_sentence": true, "shapes": []}')
    with pytest.raises(BadInput, match="as in ReasonSeg"):
        list(from_reasonseg(tmp_path))
    (tmp_path / "a.json").write_text('{"text": ["x"], "is_sentence": true, "shapes": []}')
    with pytest.raises(BadInput, match="no image at"):
        list(from_reasonseg(tmp_path))
    Image.fromarray(COFFEE).save(tmp_path / "a.jpg")
    for corner, reason in (
        (9e8, "far outside"),
        (float("nan"), "not finite"),
        (190, "outline of its target"),
    ):
        shape = {"label": "target", "points": [[corner, corner]] * 3}
        row = {"text": ["x"], "is_sentence": True, "shapes": [shape]}
        (tmp_path / "a.json").write_text(json.dumps(row))
        with pytest.raises(BadInput, match=reason):
            list(from_reasonseg(tmp_path))


REFS = [
    {
        "ref_id": 1,
        "ann_id": 7,
        "image_id": 3,
        "split": "val",
        "sentences": [{"sent": "left cup"}, {"sent": "the cup"}],
    },
    {
        "ref_id": 2,
        "ann_id": [7, 8],
        "image_id": 3,
        "split": "val",
        "sentences": [{"sent": "both, left and right"}],
    },
    {"ref_id": 3, "ann_id": [-1], "image_id": 3, "split": "val", "sentences": [{"sent": "dog"}]},
    {"ref_id": 4, "ann_id": 8, "image_id": 3, "split": "train", "sentences": [{"sent": "right"}]},
]
INSTANCES = {
    "images": [{"id": 3, "file_name": "c.jpg", "height": 100, "width": 150}],
    "categories": [],
    "annotations": [
        {"id": 7, "segmentation": [[30, 20, 90, 20, 90, 60, 30, 60]]},
        {"id": 8, "segmentation": encode_rle(np.roll(CUP, 50, 1))},
    ],
}


@pytest.mark.parametrize("form", ["json", "p"])
def test_refer(tmp_path, form):
    refs = tmp_path / f"refs(unc).{form}"
    refs.write_bytes(json.dumps(REFS).encode() if form == "json" else pickle.dumps(REFS, protocol=2))
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    records = list(from_refer(refs, tmp_path / "instances.json", split="val", prefix="train2014/"))
    assert [r.question for r in records] == ["left cup", "the cup", "both, left and right", "dog"]
    assert [r.targets[0].phrase for r in records] == ["left cup", "cup", "both, left and right", "dog"]
    assert all(check_record(r) == [] and r.image == "train2014/c.jpg" for r in records)
    assert all(parse(r.answer)[0].phrase == r.targets[0].phrase for r in records)
    assert np.array_equal(record_masks(records[0])[0], CUP)
    assert np.array_equal(record_masks(records[2])[0], CUP | np.roll(CUP, 50, 1))
    assert records[3].targets[0].rle is None and records[3].source["ann_id"] == [-1]
    assert len(list(from_refer(refs, tmp_path / "instances.json"))) == 5
    broken = INSTANCES | {"annotations": []}
    (tmp_path / "instances.json").write_text(json.dumps(broken))
    with pytest.raises(BadInput, match="ref 1: no 7"):
        list(from_refer(refs, tmp_path / "instances.json"))


@pytest.mark.parametrize(
    "outline",
    [
        [[30, 20], [90, 20], [90, 60]],
        "[[30, 20, 90, 20, 90, 60]]",
        [],
        [[200, 120, 290, 120, 290, 160]],  # outside the image
        [[30, 20, float("nan"), 20, 90, 60]],
        [[30, 20, 9e8, 9e8, 90, 60]],
        {"size": [150, 100], "counts": [15000]},
    ],
)
def test_an_outline_that_cannot_be_read_is_not_nothing(tmp_path, outline):
    """It used to become an absent target, so that "it is not there" was the right answer."""
    (tmp_path / "refs(unc).json").write_text(json.dumps(REFS))
    rows = [{"id": 7, "segmentation": outline}, INSTANCES["annotations"][1]]
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES | {"annotations": rows}))
    bad = []
    records = list(from_refer(tmp_path / "refs(unc).json", tmp_path / "instances.json", bad=bad))
    assert [record.source["ref_id"] for record in records] == [3, 4]
    assert [name for name, _ in bad] == ["ref 1", "ref 2"] and "annotation 7: " in bad[0][1]


def test_rows_that_share_an_id_are_not_guessed_at(tmp_path):
    (tmp_path / "refs(unc).json").write_text(json.dumps(REFS))
    rows = [*INSTANCES["annotations"], INSTANCES["annotations"][1] | {"id": 7}]
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES | {"annotations": rows}))
    bad = []
    records = list(from_refer(tmp_path / "refs(unc).json", tmp_path / "instances.json", bad=bad))
    assert [record.source["ref_id"] for record in records] == [3, 4] and len(bad) == 2


def test_a_size_that_takes_all_memory_is_refused(tmp_path):
    (tmp_path / "refs(unc).json").write_text(json.dumps(REFS))
    images = [INSTANCES["images"][0] | {"width": 10**6, "height": 10**6}]
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES | {"images": images}))
    with pytest.raises(BadInput, match="limit"):
        list(from_refer(tmp_path / "refs(unc).json", tmp_path / "instances.json"))


def test_pickles_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for k, content in enumerate(
        (pickle.dumps([Evil()]), b"cbuiltins\neval\n(V1\ntR.", b"", b"junk", pickle.dumps({}))
    ):
        path = tmp_path / f"{k}.p"
        path.write_bytes(content)
        with pytest.raises(BadInput, match=f"{k}.p"):
            read_refs(path)
    assert not (tmp_path / "made").exists()
    (tmp_path / "ok.p").write_bytes(pickle.dumps([{"x": {1, 2}, "y": (1.5, "é", None)}]))
    assert read_refs(tmp_path / "ok.p") == [{"x": {1, 2}, "y": (1.5, "é", None)}]


@pytest.mark.parametrize("palette", [False, True])
def test_label_maps(tmp_path, palette):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    labels = np.zeros((100, 150), np.uint8)
    labels[CUP], labels[80:, :], labels[:10, :] = 3, 7, 200
    Image.fromarray(COFFEE).save(tmp_path / "images" / "x[1].jpg")
    Image.fromarray(COFFEE).save(tmp_path / "images" / "x[1].a.jpg")  # another image, without labels
    stored = Image.fromarray(labels)
    if palette:
        stored.putpalette(list(np.random.default_rng(0).integers(0, 255, 768)))
    stored.save(tmp_path / "labels" / "x[1].png")
    names = {0: "wall", 3: "cup", 7: "table", 9: "table"} | {10 + k: f"thing {k}" for k in range(30)}
    (record,) = from_label_maps(tmp_path, names, prefix="p/", per_question=6)
    assert check_record(record) == [] and record.image == "p/images/x[1].jpg" and len(record.targets) == 6
    asked = {t.phrase: t.rle for t in record.targets}
    assert all(name in record.question for name in asked)
    assert {n for n, rle in asked.items() if rle} == {"wall", "cup", "table"}
    assert np.array_equal(decode_rle(asked["cup"]), CUP)
    assert np.array_equal(decode_rle(record.source["ignore"]), labels == 200)
    assert [m.phrase for m in parse(record.answer)] == [t.phrase for t in record.targets]
    assert next(from_label_maps(tmp_path, names, prefix="p/", per_question=6)) == record
    (few,) = from_label_maps(tmp_path, {0: "wall", 3: "cup", 7: "table", 200: "sky"}, per_question=8)
    assert len(few.targets) == 4 and few.source["ignore"] is None
    Image.fromarray(labels[1:]).save(tmp_path / "labels" / "x[1].png")
    with pytest.raises(BadInput, match="height and width"):
        list(from_label_maps(tmp_path, names))
