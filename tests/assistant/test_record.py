"""Records are read, checked and converted without losing a mask."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from skimage import data

from assistant.errors import BadInput
from assistant.export.converters import (
    from_label_maps,
    from_llmseg40k,
    from_reasonseg,
    from_refer,
    read_refs,
    to_llmseg40k,
)
from assistant.grammar import Turn, parse
from assistant.record import (
    Record,
    RecordTarget,
    check,
    check_records,
    from_dict,
    image_path,
    read_records,
    record_masks,
    stream_records,
    to_dict,
    write_records,
)
from assistant.sam.mask_ops import decode_rle, encode_rle

MASKS = arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))
COFFEE = np.ascontiguousarray(data.coffee()[::4, ::4])  # (100, 150, 3)
CUP = np.zeros((100, 150), bool)
CUP[20:60, 30:90] = True


def a_record(**changes):
    fields = {
        "image": "coffee.png",
        "width": 150,
        "height": 100,
        "question": "what holds the drink, and a bear?",
        "answer": "The cup [SEG]; there is no bear [ABS].",
        "targets": [RecordTarget("cup", encode_rle(CUP)), RecordTarget("bear", None)],
        "source": {"kind": "named"},
    }
    return Record(**(fields | changes))


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(COFFEE).save(tmp_path / "coffee.png")
    return tmp_path


@settings(max_examples=60)
@given(MASKS)
def test_rle_round_trip_agrees_with_pycocotools(mask):
    rle = encode_rle(mask)
    assert rle["size"] == list(mask.shape) and isinstance(rle["counts"], str) and json.dumps(rle)
    assert np.array_equal(decode_rle(rle), mask)
    assert np.array_equal(coco_mask.decode(rle).astype(bool), mask)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]]))))
    runs = ([0] if mask[0, 0] else []) + runs.tolist()
    assert np.array_equal(decode_rle({"size": rle["size"], "counts": runs}), mask)


def test_rle_of_a_large_mask():
    mask = np.zeros((3000, 4000), bool)
    mask[10:2500, 70:3990] = True
    mask[::7, ::3] ^= True
    assert np.array_equal(decode_rle(encode_rle(mask)), mask)


@settings(max_examples=80)
@given(MASKS, st.integers(-2, 50), st.integers(-2, 50))
def test_rle_of_another_size_is_refused(mask, height, width):
    rle = encode_rle(mask) | {"size": [height, width]}
    if height * width == mask.size and min(height, width) > 0:
        assert decode_rle(rle).shape == (height, width)
    else:
        with pytest.raises(BadInput):
            decode_rle(rle)


@settings(max_examples=150)
@given(
    st.one_of(st.text(max_size=30), st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
)
def test_any_counts_string_is_refused_or_a_whole_mask(counts):
    try:
        mask = decode_rle({"size": [4, 3], "counts": counts})
    except BadInput:
        return
    assert mask.shape == (4, 3) and mask.dtype == bool
    assert np.array_equal(coco_mask.decode({"size": [4, 3], "counts": counts}).astype(bool), mask)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": "0"},
        {"size": "ab", "counts": "04"},
        {"size": [2, 2], "counts": None},
        {"size": [2, 2], "counts": [5]},
        {"size": [2, 2], "counts": [-1, 5]},
        {"size": [2, 2], "counts": [[4]]},
        {"size": [2, 2], "counts": "o" * 40},
        {"size": [10**9, 10**9], "counts": "4"},
        {"size": [2, 2], "counts": ["x"]},
        {"size": [2, 2], "counts": [2**62] * 4 + [4]},
        {"size": [10**6, 10**6], "counts": [10**12]},
    ],
)
def test_broken_rle(rle):
    with pytest.raises(BadInput):
        decode_rle(rle)


def test_write_and_read(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    records = [
        a_record(),
        a_record(question="où est l'été? \u2028 雨伞", targets=[], answer="Nothing.", source={}),
    ]
    assert write_records(path, iter(records)) == 2
    assert read_records(path) == records and next(stream_records(path)) == records[0]
    assert len(path.read_bytes().splitlines()) == 2
    masks = record_masks(records[0])
    assert np.array_equal(masks[0], CUP) and masks[1] is None


def test_what_was_said_before_is_kept_and_read_as_turns(tmp_path):
    said = [{"question": "what holds the drink?", "answer": "The cup [SEG]."}]
    first, follows = (
        a_record(source={"kind": "named", "history": []}),
        a_record(source={"kind": "followup", "history": said}),
    )
    write_records(tmp_path / "r.jsonl", [first, follows])
    assert read_records(tmp_path / "r.jsonl") == [first, follows]
    assert first.history == a_record().history == [] and follows.history == [
        Turn("what holds the drink?", "The cup [SEG].")
    ]


@pytest.mark.parametrize("history", ["x", [1], [{"question": "a"}], [{"question": "a", "answer": None}]])
def test_a_history_of_another_form_is_refused(history):
    with pytest.raises(BadInput, match="history"):
        from_dict(to_dict(a_record(source={"history": history})))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, [a_record()])

    def failing():
        yield a_record()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_records(path, failing())
    assert read_records(path) == [a_record()] and list(tmp_path.iterdir()) == [path]


def test_datasets_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the datasets package is not installed")
    said = [{"question": "what holds the drink?", "answer": "The cup [SEG]."}]
    write_records(
        tmp_path / "r.jsonl",
        [
            a_record(source={"history": []}),
            a_record(targets=[RecordTarget("bear", None)], answer="no [ABS]", source={"history": said}),
        ],
    )
    table = datasets.load_dataset(
        "json", data_files=str(tmp_path / "r.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(table) == 2 and table[0]["question"] == a_record().question
    assert np.array_equal(decode_rle(table[0]["targets"][0]["rle"]), CUP)
    assert table[1]["targets"][0]["rle"] is None
    assert [row["source"]["history"] for row in table] == [[], said]


@pytest.mark.parametrize(
    "line, word",
    [
        ("{", "JSON"),
        ("[1]", "object"),
        ('"x"', "object"),
        ('{"image": 3}', "'image'"),
        ("[" * 100_000, "JSON"),
        (
            json.dumps({"image": "a", "width": 0, "height": 1, "question": "", "answer": "", "targets": []}),
            "'width'",
        ),
        (
            json.dumps(
                {"image": "a", "width": 1, "height": True, "question": "", "answer": "", "targets": []}
            ),
            "'height'",
        ),
        (
            json.dumps(
                {"image": "a", "width": 1, "height": 1, "question": "", "answer": "", "targets": [{}]}
            ),
            "target 1",
        ),
        (
            json.dumps(
                {
                    "image": "a",
                    "width": 1,
                    "height": 1,
                    "question": "",
                    "answer": "",
                    "targets": [{"phrase": "x", "rle": 3}],
                }
            ),
            "target 1",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, line, word):
    path = tmp_path / "r.jsonl"
    write_records(path, [a_record()])
    path.write_text(path.read_text() + "\n" + line + "\n")
    stream = stream_records(path)
    assert next(stream) == a_record()
    with pytest.raises(BadInput, match=r"r\.jsonl:3: ") as caught:
        next(stream)
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_image_path(photo):
    record, elsewhere = a_record(), a_record(image=str(photo / "a.jpg"))
    assert (
        image_path(record, photo / "r.jsonl") == photo / "coffee.png" and image_path(record, "r.jsonl").name
    )
    assert image_path(elsewhere, "data/r.jsonl") == photo / "a.jpg"


def test_no_file(tmp_path):
    for call in (read_records, check_records):
        with pytest.raises(BadInput, match="no records file"):
            call(tmp_path / "none.jsonl")


def test_check_finds_each_trouble():
    assert check(a_record()) == []
    cases = {
        "2 tokens for 1 targets": {"targets": [RecordTarget("cup", encode_rle(CUP))]},
        "target 2: the answer says [ABS] of 'bear', its rle is a mask": {
            "targets": [RecordTarget("cup", encode_rle(CUP)), RecordTarget("bear", encode_rle(CUP))]
        },
        "target 1: the answer says [SEG] of 'cup', its rle is null": {
            "targets": [RecordTarget("cup", None), RecordTarget("bear", None)]
        },
        "the mask of 'cup' is 150x100": {"width": 151},
        "question is empty": {"question": " "},
    }
    for words, changes in cases.items():
        assert any(words in trouble for trouble in check(a_record(**changes))), words


def test_check_records_collects_all_of_them(photo):
    path = photo / "r.jsonl"
    write_records(
        path,
        [
            a_record(),
            a_record(image="none.png"),
            a_record(answer="cup [SEG]"),
            a_record(width=75, targets=[], answer="-"),
            a_record(
                targets=[
                    RecordTarget("cup", {"size": [100, 150], "counts": "00"}),
                    RecordTarget("bear", None),
                ]
            ),
        ],
    )
    path.write_bytes(path.read_bytes() + b"{broken\n\xff\xfe\n")
    troubles = check_records(path)
    assert [int(t.split(":")[1]) for t in troubles] == [2, 3, 4, 5, 6, 7]
    words = ("no picture", "1 tokens for 2", "the picture is 150x100", "RLE", "JSON", "JSON")
    for trouble, word in zip(troubles, words, strict=True):
        assert word in trouble
    assert check_records(path, image_root=photo / "elsewhere")[0].startswith(f"{path}:1: no picture")


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
    assert all(check(r) == [] for r in records)
    assert [r.image for r in records] == ["coco/train2017/a.jpg"] * 2 + ["ego_objects/images/b.jpg"]
    assert [r.targets[0].phrase for r in records] == ["umbrella", "it", "bench"]
    assert [r.targets[0].rle is None for r in records] == [False, False, True]
    assert np.array_equal(record_masks(records[0])[0], CUP)
    write_records(tmp_path / "r.jsonl", records)
    assert to_llmseg40k(read_records(tmp_path / "r.jsonl")) == table


def test_any_record_to_llmseg40k():
    table = to_llmseg40k(
        [a_record(), a_record(targets=[RecordTarget("cup", None)], answer="There is no cup [ABS].")]
    )
    first, second = table["coffee.png"]["qa_pairs"]
    assert first["answer"] == "The cup; there is no bear." and np.array_equal(
        decode_rle(first["rle_seg"]), CUP
    )
    assert second["answer"] == "There is no cup." and not decode_rle(second["rle_seg"]).any()
    with pytest.raises(BadInput, match="two pictures"):
        to_llmseg40k([a_record(), a_record(image="other/coffee.png")])


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
    assert all(check(r) == [] for r in (empty, full))
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
    with pytest.raises(BadInput, match="no picture at"):
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
    assert all(check(r) == [] and r.image == "train2014/c.jpg" for r in records)
    assert all(parse(r.answer)[0].phrase == r.targets[0].phrase for r in records)
    assert np.array_equal(record_masks(records[0])[0], CUP)
    assert np.array_equal(record_masks(records[2])[0], CUP | np.roll(CUP, 50, 1))
    assert records[3].targets[0].rle is None and records[3].source["ann_id"] == [-1]
    assert len(list(from_refer(refs, tmp_path / "instances.json"))) == 5
    broken = INSTANCES | {"annotations": []}
    (tmp_path / "instances.json").write_text(json.dumps(broken))
    with pytest.raises(BadInput, match="ref 1: no 7"):
        list(from_refer(refs, tmp_path / "instances.json"))


def test_pickles_run_nothing(tmp_path):
    import os

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
    Image.fromarray(COFFEE).save(tmp_path / "images" / "x[1].a.jpg")  # another picture, without labels
    stored = Image.fromarray(labels)
    if palette:
        stored.putpalette(list(np.random.default_rng(0).integers(0, 255, 768)))
    stored.save(tmp_path / "labels" / "x[1].png")
    names = {0: "wall", 3: "cup", 7: "table", 9: "table"} | {10 + k: f"thing {k}" for k in range(30)}
    (record,) = from_label_maps(tmp_path, names, prefix="p/", per_question=6)
    assert check(record) == [] and record.image == "p/images/x[1].jpg" and len(record.targets) == 6
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
