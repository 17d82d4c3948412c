"""The page that shows a generated set, and throws rows out."""

import threading
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
import skimage.data
from PIL import Image

from assistant.record import Record, RecordTarget, read_records, write_records
from assistant.sam.mask_ops import encode_rle
from datagen import browse
from datagen.rejected import read_rejected, row_id

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
            [RecordTarget("cup", encode_rle(mask)), RecordTarget("bear", None)],
            {"kind": "multi" if k else "named"},
        )
        for k in range(browse.ROWS_PER_PAGE + 3)
    ]
    rows[2].source["history"] = [{"question": "Anything to drink from?", "answer": "I see the cup [SEG]."}]
    write_records(tmp_path / "records.jsonl", rows)
    return tmp_path


@pytest.fixture
def address(folder):
    server = browse.open_server(folder, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(address, headers=None):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers or {}), timeout=30) as answer:
        return answer.headers.get_content_type(), answer.read()


def post(address, headers=None, **form):
    request = urllib.request.Request(address, urllib.parse.urlencode(form).encode(), headers or {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_rows_are_shown_with_their_masks(address, folder):
    kind, page = get(address)
    page = page.decode()
    assert kind == "text/html" and page.count("<article") == browse.ROWS_PER_PAGE and "page 1 of 2" in page
    assert "&lt;b&gt;number 0" in page and "<b>" not in page and "bear (absent)" in page
    assert "<p class=k>Anything to drink from?<p class=k>I see the cup." in page and "[SEG]" not in page
    assert get(f"{address}/?page=1")[1].decode().count("<article") == 3
    assert get(f"{address}/?kind=named")[1].decode().count("<article") == 1
    kind, image = get(f"{address}/picture/{row_id(read_records(folder / 'records.jsonl')[0])}.jpg")
    (folder / "shown.jpg").write_bytes(image)
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
