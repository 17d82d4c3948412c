"""What datagen writes: rows thrown out by hand stay out, photos are on one side of a split, and pictures of an evaluation
set are kept out, whatever they are called."""

import json
import threading
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
import skimage.data
from PIL import Image

from assistant.record import Record, RecordTarget, read_records, to_rle, write_records
from datagen import browse
from datagen.__main__ import main
from datagen.rejected import read_rejected, reject, row_id
from datagen.sources.leaks import fingerprints, leak

H, W = 100, 150


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(skimage.data.coffee()).resize((W, H)).save(tmp_path / "a.jpg")
    mask = np.zeros((H, W), bool)
    mask[20:60, 30:90] = True
    rows = [
        Record(
            "a.jpg",
            W,
            H,
            f"what is <b>number {k}</b>?",
            "The cup [SEG]; there is no bear [ABS].",
            [RecordTarget("cup", to_rle(mask)), RecordTarget("bear", None)],
            {"kind": "multi" if k else "named"},
        )
        for k in range(browse.PAGE + 3)
    ]
    rows[2].source["history"] = [{"question": "Anything to drink from?", "answer": "I see the cup [SEG]."}]
    write_records(tmp_path / "records.jsonl", rows)
    return tmp_path


@pytest.fixture
def address(folder):
    server = browse.serve(folder, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(address, headers={}):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
        return answer.headers.get_content_type(), answer.read()


def post(address, headers={}, **form):
    request = urllib.request.Request(address, urllib.parse.urlencode(form).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_rows_are_shown_with_their_masks(address, folder):
    kind, page = get(address)
    page = page.decode()
    assert kind == "text/html" and page.count("<article") == browse.PAGE and "page 1 of 2" in page
    assert "&lt;b&gt;number 0" in page and "<b>" not in page and "bear (absent)" in page
    assert "<p class=k>Anything to drink from?<p class=k>I see the cup." in page and "[SEG]" not in page
    assert get(f"{address}/?page=1")[1].decode().count("<article") == 3
    assert get(f"{address}/?kind=named")[1].decode().count("<article") == 1
    kind, picture = get(f"{address}/picture/{row_id(read_records(folder / 'records.jsonl')[0])}.jpg")
    (folder / "shown.jpg").write_bytes(picture)
    shown = np.asarray(Image.open(folder / "shown.jpg").convert("RGB")).astype(int)
    plain = np.asarray(Image.open(folder / "a.jpg").convert("RGB")).astype(int)
    change = np.abs(shown - plain).mean(2)
    assert kind == "image/jpeg" and change[30:50, 40:80].mean() > 20 > change[80:, 100:].mean()


def test_what_is_thrown_out_is_kept_in_the_file_and_can_be_taken_back(address, folder):
    records = read_records(folder / "records.jsonl")
    name = row_id(records[1])
    page = post(f"{address}/reject", id=name, back="page=0")
    assert "1 thrown out" in page and page.count("take back") == 1
    assert read_rejected(folder) == {name: {"id": name, "image": "a.jpg", "question": records[1].question}}
    assert "0 thrown out" in post(f"{address}/keep", id=name) and read_rejected(folder) == {}


@pytest.mark.parametrize(
    "path, headers, form, status",
    [
        ("/reject", {}, {"id": "nothing"}, 404),
        ("/else", {}, {"id": "x"}, 404),
        ("/reject", {"Origin": "http://elsewhere.test"}, {}, 403),
        ("/reject", {"Host": "elsewhere.test"}, {}, 403),
        ("/picture/../a.jpg", {}, None, 404),
        ("/a.jpg", {}, None, 404),
    ],
)
def test_nobody_else_can_throw_rows_out_or_read_files(address, folder, path, headers, form, status):
    if form == {}:
        form = {"id": row_id(read_records(folder / "records.jsonl")[0])}
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address + path, headers, **form) if form else get(address + path, headers)
    assert refused.value.code == status and read_rejected(folder) == {}


def test_a_folder_without_records_is_one_line(tmp_path, capsys):
    assert browse.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no records file")


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "images").mkdir()
    rows, outlines = [], []
    for k, (name, picture) in enumerate(
        (("cup.jpg", skimage.data.coffee()), ("cat.jpg", skimage.data.chelsea())), 1
    ):
        Image.fromarray(picture).resize((300, 200)).save(tmp_path / "images" / name)
        rows.append({"id": k, "file_name": name, "width": 300, "height": 200})
        outlines.append(
            {
                "id": k,
                "image_id": k,
                "category_id": k,
                "bbox": [20, 20, 100, 80],
                "area": 8000,
                "iscrowd": 0,
                "segmentation": [[20, 20, 120, 20, 120, 100, 20, 100]],
            }
        )
    data = {
        "images": rows,
        "annotations": outlines,
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(data))
    return tmp_path


def generate(folder, *more):
    words = [
        "--images",
        str(folder / "images"),
        "--annotations",
        str(folder / "instances.json"),
        "--per-image",
        "6",
        "--out",
        str(folder / "out"),
        *more,
    ]
    code = main(words)
    return code, read_records(folder / "out/records.jsonl") if code == 0 else []


def test_rejected_rows_stay_rejected_on_the_next_run(photos, capsys):
    _, before = generate(photos)
    reject(photos / "out", before[3])
    _, after = generate(photos)
    assert after == before[:3] + before[4:]
    assert "given up 1 times: thrown out by hand" in capsys.readouterr().out
    (photos / "out/rejected.jsonl").write_text("[1\n")
    assert generate(photos)[0] == 2


def test_evaluation_pictures_are_kept_out_by_name_and_by_looks(photos, tmp_path, capsys):
    dev = tmp_path / "dev"
    dev.mkdir()
    small = Image.open(photos / "images/cat.jpg").resize((180, 120))
    small.save(dev / "renamed.jpg", quality=60)
    _, records = generate(photos, "--exclude", str(dev))
    assert {r.image.rsplit("/", 1)[1] for r in records} == {"cup.jpg"}
    assert "given up 1 times: photo: looks like an evaluation picture" in capsys.readouterr().out
    (tmp_path / "names.txt").write_text("somewhere/cup.png\n")
    _, records = generate(photos, "--exclude", str(tmp_path / "names.txt"))
    assert {r.image.rsplit("/", 1)[1] for r in records} == {"cat.jpg"}
    assert generate(photos, "--exclude", str(dev), str(tmp_path / "names.txt"))[0] == 2  # nothing is left
    assert generate(photos, "--exclude", str(tmp_path / "nowhere"))[0] == 2


def test_different_pictures_are_no_leak(photos, tmp_path):
    known = fingerprints([photos / "images"])
    for picture in (skimage.data.astronaut(), skimage.data.rocket()):
        Image.fromarray(picture).save(tmp_path / "other.jpg")
        assert leak(tmp_path / "other.jpg", known) is None


def test_photos_are_split_and_the_dataset_loads(photos):
    datasets = pytest.importorskip("datasets")
    picture = Image.open(photos / "images/cup.jpg")
    data = json.loads((photos / "instances.json").read_text())
    for k in range(10, 30):
        picture.save(photos / f"images/{k}.jpg")
        data["images"].append({"id": k, "file_name": f"{k}.jpg", "width": 300, "height": 200})
        data["annotations"].append(data["annotations"][0] | {"id": k, "image_id": k})
    (photos / "instances.json").write_text(json.dumps(data))
    _, records = generate(photos, "--val", "0.3", "--parquet")
    train, val = (read_records(photos / "out" / f"{name}.jsonl") for name in ("train", "val"))
    sides = [{r.image for r in part} for part in (train, val)]
    assert len(train) + len(val) == len(records) and not sides[0] & sides[1] and 2 <= len(sides[1]) <= 14
    loaded = datasets.load_dataset(str(photos / "out/dataset"), cache_dir=str(photos / "cache"))
    # A split is called validation by load_dataset where its files are called val.
    assert loaded["train"].num_rows == len(train) and sum(part.num_rows for part in loaded.values()) == len(
        records
    )
    for row, record in zip(loaded["train"], train):
        assert row["question"] == record.question and row["image"].size == (300, 200)
        assert json.loads(row["source"]) == record.source
        for target, own in zip(row["targets"], record.targets, strict=True):
            assert target["phrase"] == own.phrase
            assert target["rle"] == (own.rle or {"size": [200, 300], "counts": ""})
    assert "| train |" in (photos / "out/dataset/README.md").read_text()
    (photos / "out/dataset/train-00007.parquet").write_text("left over")
    generate(photos, "--parquet")
    assert [p.name for p in (photos / "out/dataset").glob("*.parquet")] == ["train-00000.parquet"]
    assert generate(photos, "--val", "1")[0] == 2
