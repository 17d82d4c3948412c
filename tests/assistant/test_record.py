"""Records are written, read and checked without losing anything."""

import json

import numpy as np
import pytest
from PIL import Image

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.record import (
    RecordTarget,
    check_record,
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
from tests.helpers.example_record import COFFEE, CUP, example_record


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(COFFEE).save(tmp_path / "coffee.png")
    return tmp_path


def test_write_and_read(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    records = [
        example_record(),
        example_record(question="où est l'été? \u2028 雨伞", targets=[], answer="Nothing.", source={}),
    ]
    assert write_records(path, iter(records)) == 2
    assert read_records(path) == records and next(stream_records(path)) == records[0]
    assert len(path.read_bytes().splitlines()) == 2
    masks = record_masks(records[0])
    assert np.array_equal(masks[0], CUP) and masks[1] is None


def test_run_lengths_are_read_as_a_string(tmp_path):
    """pycocotools cannot compare the masks of lists, of which tuning and evaluation compare many."""
    row = to_dict(example_record())
    changes = np.flatnonzero(np.diff(CUP.T.ravel().astype(int), prepend=0, append=0)).tolist()
    runs = np.diff([0, *changes, CUP.size]).tolist()
    row["targets"][0]["rle"] = {"size": list(CUP.shape), "counts": runs}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    (record,) = read_records(tmp_path / "r.jsonl")
    assert record == example_record()
    row["targets"][0]["rle"]["counts"][0] += 1
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    (record,) = read_records(tmp_path / "r.jsonl")
    assert "do not fill" in check_record(record)[0]


def test_history_is_stored_and_read_as_turns(tmp_path):
    history = [{"question": "what holds the drink?", "answer": "The cup [SEG]."}]
    first = example_record(source={"kind": "named", "history": []})
    follows = example_record(source={"kind": "followup", "history": history})
    write_records(tmp_path / "r.jsonl", [first, follows])
    assert read_records(tmp_path / "r.jsonl") == [first, follows]
    assert first.history == example_record().history == []
    assert follows.history == [Turn("what holds the drink?", "The cup [SEG].")]


@pytest.mark.parametrize("history", ["x", [1], [{"question": "a"}], [{"question": "a", "answer": None}]])
def test_a_history_of_another_form_is_refused(history):
    with pytest.raises(BadInput, match="history"):
        from_dict(to_dict(example_record(source={"history": history})))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, [example_record()])

    def failing():
        yield example_record()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_records(path, failing())
    assert read_records(path) == [example_record()] and list(tmp_path.iterdir()) == [path]


def test_datasets_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the datasets package is not installed")
    history = [{"question": "what holds the drink?", "answer": "The cup [SEG]."}]
    write_records(
        tmp_path / "r.jsonl",
        [
            example_record(source={"history": []}),
            example_record(
                targets=[RecordTarget("bear", None)], answer="no [ABS]", source={"history": history}
            ),
        ],
    )
    table = datasets.load_dataset(
        "json", data_files=str(tmp_path / "r.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(table) == 2 and table[0]["question"] == example_record().question
    assert np.array_equal(decode_rle(table[0]["targets"][0]["rle"]), CUP)
    assert table[1]["targets"][0]["rle"] is None
    assert [row["source"]["history"] for row in table] == [[], history]


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
    write_records(path, [example_record()])
    path.write_text(path.read_text() + "\n" + line + "\n")
    stream = stream_records(path)
    assert next(stream) == example_record()
    with pytest.raises(BadInput, match=r"r\.jsonl:3: ") as caught:
        next(stream)
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_image_path(photo):
    record, elsewhere = example_record(), example_record(image=str(photo / "a.jpg"))
    assert (
        image_path(record, photo / "r.jsonl") == photo / "coffee.png" and image_path(record, "r.jsonl").name
    )
    assert image_path(elsewhere, "data/r.jsonl") == photo / "a.jpg"


def test_no_file(tmp_path):
    for call in (read_records, check_records):
        with pytest.raises(BadInput, match="no records file"):
            call(tmp_path / "none.jsonl")


def test_check_finds_each_problem():
    assert check_record(example_record()) == []
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
        assert any(words in problem for problem in check_record(example_record(**changes))), words


def test_check_records_collects_all_of_them(photo):
    path = photo / "r.jsonl"
    write_records(
        path,
        [
            example_record(),
            example_record(image="none.png"),
            example_record(answer="cup [SEG]"),
            example_record(width=75, targets=[], answer="-"),
            example_record(
                targets=[
                    RecordTarget("cup", {"size": [100, 150], "counts": "00"}),
                    RecordTarget("bear", None),
                ]
            ),
        ],
    )
    path.write_bytes(path.read_bytes() + b"{broken\n\xff\xfe\n")
    problems = check_records(path)
    assert [int(t.split(":")[1]) for t in problems] == [2, 3, 4, 5, 6, 7]
    words = ("no image", "1 tokens for 2", "the image is 150x100", "RLE", "JSON", "JSON")
    for problem, word in zip(problems, words, strict=True):
        assert word in problem
    assert check_records(path, image_root=photo / "elsewhere")[0].startswith(f"{path}:1: no image")
