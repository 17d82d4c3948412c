"""What is written: rejected rows stay out, images are on one side of a split, and `datasets` loads it."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from assistant.record import Record, read_records
from datagen.__main__ import main
from datagen.rejected import is_rejected, read_rejected, reject, take_back
from tests.helpers.datagen_images import command, write_cup_and_cat


@pytest.fixture
def cup_and_cat(tmp_path):
    write_cup_and_cat(tmp_path)
    return tmp_path


def generate(folder, *more):
    code = main(command(folder, "out", "--per-image", 6, *more))
    return code, read_records(folder / "out/records.jsonl") if code == 0 else []


def test_rejected_rows_stay_rejected_on_the_next_run(cup_and_cat, capsys):
    out = cup_and_cat / "out"
    _, before = generate(cup_and_cat)
    reject(out, before[3])
    reject(out, before[0])
    take_back(out, before[0])
    _, after = generate(cup_and_cat)
    assert after == before[:3] + before[4:] and len(read_rejected(out)) == 1
    assert "dropped 1 x thrown out by hand" in capsys.readouterr().out
    (out / "rejected.jsonl").write_text("[1\n")
    assert generate(cup_and_cat)[0] == 2


def test_images_of_one_name_are_rejected_apart(tmp_path):
    row = {"width": 9, "height": 9, "question": "a dog?", "answer": "No dog [ABS].", "targets": []}
    a, b = (Record(image=f"../photos/{folder}/1.png", **row) for folder in "ab")
    reject(tmp_path, a)
    assert [is_rejected(record, read_rejected(tmp_path)) for record in (a, b)] == [True, False]
    take_back(tmp_path, a)
    assert not read_rejected(tmp_path)


def test_rows_that_earlier_versions_rejected_stay_rejected(cup_and_cat):
    """They were named by the image's name without its folder."""
    out = cup_and_cat / "out"
    _, before = generate(cup_and_cat)
    targets = [[target.phrase, target.rle] for target in before[0].targets]
    content = [Path(before[0].image).name, before[0].question, targets]
    if before[0].history:
        content.append(before[0].source["history"])
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    row = {"id": name, "image": content[0], "question": content[1]}
    (out / "rejected.jsonl").write_text(json.dumps(row) + "\n")
    _, after = generate(cup_and_cat)
    assert after == before[1:]
    take_back(out, before[0])
    assert generate(cup_and_cat)[1] == before


def test_images_are_split_and_the_dataset_loads(cup_and_cat):
    datasets = pytest.importorskip("datasets")
    cup = Image.open(cup_and_cat / "images/cup.jpg")
    data = json.loads((cup_and_cat / "instances.json").read_text())
    for k in range(10, 30):
        cup.save(cup_and_cat / f"images/{k}.jpg")
        data["images"].append({"id": k, "file_name": f"{k}.jpg", "width": 300, "height": 200})
        data["annotations"].append(data["annotations"][0] | {"id": k, "image_id": k})
    (cup_and_cat / "instances.json").write_text(json.dumps(data))
    out = cup_and_cat / "out"
    _, records = generate(cup_and_cat, "--val", "0.3", "--parquet")
    train, val = (read_records(out / f"{name}.jsonl") for name in ("train", "val"))
    train_images, val_images = ({record.image for record in part} for part in (train, val))
    assert len(train) + len(val) == len(records)
    assert not train_images & val_images and 2 <= len(val_images) <= 14
    loaded = datasets.load_dataset(str(out / "dataset"), cache_dir=str(cup_and_cat / "cache"))
    # A split is called validation by load_dataset where its files are called val.
    assert loaded["train"].num_rows == len(train)
    assert sum(part.num_rows for part in loaded.values()) == len(records)
    for row, record in zip(loaded["train"], train, strict=True):
        assert row["question"] == record.question and row["image"].size == (300, 200)
        assert json.loads(row["source"]) == record.source
        for written, target in zip(row["targets"], record.targets, strict=True):
            assert written["phrase"] == target.phrase
            assert written["rle"] == (target.rle or {"size": [200, 300], "counts": ""})
    assert "| train |" in (out / "dataset/README.md").read_text()
    (out / "dataset/train-00007.parquet").write_text("left over")
    generate(cup_and_cat, "--parquet")
    assert [file.name for file in (out / "dataset").glob("*.parquet")] == ["train-00000.parquet"]
    assert generate(cup_and_cat, "--val", "1")[0] == 2
