"""The benchmarks end to end, on pictures of coloured rectangles and an assistant that looks for colours."""

import base64
import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from assistant.errors import BadInput
from eval import __main__ as command
from eval import models
from eval.benchmarks import interactive, proposals, records
from eval.report import Curve, Sample, svg, write_report
from eval.result import Result, write_result
from eval.run import Run
from tests.helpers.colour_finder import BOXES, COLOURS, FakeAssistant, H, Pool, W, rectangle, rle
from tests.helpers.tiny_models import tiny_qwen3_vl


@pytest.fixture
def folder(tmp_path):
    picture = np.full((H, W, 3), 200, np.uint8)
    for colour, (x0, y0, x1, y1) in BOXES.items():
        picture[y0:y1, x0:x1] = COLOURS[colour]
    (tmp_path / "images").mkdir()
    Image.fromarray(picture).save(tmp_path / "images/a.png")
    Image.fromarray(np.full((H, W, 3), 200, np.uint8)).save(tmp_path / "images/b.png")
    return tmp_path


def row(question, colours, image="images/a.png", kind="named", **changes):
    masks = [
        (c, rle(rectangle(*BOXES[c])) if c in BOXES and image.endswith("a.png") else None) for c in colours
    ]
    answer = ", ".join(f"{c} [SEG]" if r else f"{c} [ABS]" for c, r in masks)
    return {
        "image": image,
        "width": W,
        "height": H,
        "question": question,
        "answer": answer,
        "targets": [{"phrase": c, "rle": r} for c, r in masks],
        "source": {"kind": kind},
    } | changes


ROWS = [
    row("the red one", ["red"]),
    row("red and blue", ["red", "blue"], kind="several"),
    row("the green one", ["green"], kind="absent"),
    row("surely green", ["green"], kind="absent"),
    row("blue, is it here?", ["blue"], image="images/b.png", kind="absent"),
    row("the yellow one", ["red"]),
]


def write_rows(folder, rows):
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def run_records(monkeypatch, folder, assistant, *options, out="out"):
    monkeypatch.setattr(models, "open_assistant", lambda settings: assistant)
    code = command.main(["records", "--root", str(folder), "--out", str(folder / out), *options])
    file = folder / out / "result.json"
    return code, json.loads(file.read_text()) if file.exists() else None


def test_records_scores_what_is_said(monkeypatch, folder):
    write_rows(folder, ROWS)
    assistant = FakeAssistant()
    code, result = run_records(monkeypatch, folder, assistant)
    assert code == 0 and result["n"] == 6 and assistant.opened == 2
    # red 1, red and blue 1, green absent 1, surely green 0, blue absent 1, yellow (nothing answered) 0
    assert result["gIoU"] == pytest.approx(4 / 6)
    assert result["cIoU"] == pytest.approx((400 + 800) / (400 + 800 + 25 + 400))
    assert result["figures"]["gIoU_present"] == pytest.approx(2 / 3)
    assert result["N_acc"] == pytest.approx(2 / 3) and result["T_acc"] == pytest.approx(2 / 3)
    assert result["oracle_gIoU"] == 1 and result["figures"]["oracle_gIoU_present@60"] == 1
    assert result["figures"]["targets_found_50"] == pytest.approx(3 / 4)
    assert result["figures"]["masks_right_50"] == pytest.approx(3 / 4)
    assert result["by"]["kind: several"] == {
        "n": 1,
        "gIoU": 1,
        "cIoU": 1,
        "gIoU_present": 1,
        "N_acc": None,
        "T_acc": 1,
        "oracle_gIoU": 1,
    }
    assert result["by"]["targets: 0"]["n"] == 3 and result["by"]["size: large"]["n"] == 3
    assert result["weights"] == assistant.weights and result["preset"] == "pocket"
    assert result["version"] == records.VERSION
    assert result["ci95"]["gIoU"][0] < 4 / 6 < result["ci95"]["gIoU"][1]
    for key in (
        "benchmark protocol ncIoU seconds_per_query seconds_per_image tokens_per_query commit"
    ).split():
        assert key in result
    at = {p["threshold"]: p for p in result["curve"]}
    assert at[0.5]["N_acc"] == result["N_acc"] and at[0.5]["T_acc"] == result["T_acc"] and at[0]["T_acc"] == 1


def test_earlier_turns_are_asked_first_and_only_the_last_is_scored(monkeypatch, folder):
    follows = row("and blue?", ["blue"], kind="followup")
    follows["source"]["history"] = [{"question": "where is the red one?", "answer": "red [SEG]."}]
    write_rows(folder, [ROWS[0], follows])
    assistant = FakeAssistant()
    result = run_records(monkeypatch, folder, assistant)[1]
    assert assistant.asked == ["the red one", "where is the red one?", "and blue?"]
    assert result["n"] == 2 and result["gIoU"] == 1


def test_records_scores_half_an_answer(monkeypatch, folder):
    write_rows(folder, ROWS[:2])
    _, result = run_records(monkeypatch, folder, FakeAssistant(half=True))
    assert result["gIoU"] == pytest.approx((200 / 400 + 600 / 800) / 2)
    assert result["oracle_gIoU"] == 1  # the proposals would have allowed all of it


def test_an_empty_mask_counts_as_absent(monkeypatch, folder):
    nothing = rle(np.zeros((H, W), bool))
    write_rows(
        folder,
        [row("the green one", [], targets=[{"phrase": "green", "rle": nothing}], answer="green [SEG]")],
    )
    _, result = run_records(monkeypatch, folder, FakeAssistant())
    assert result["N_acc"] == 1 and result["T_acc"] is None and result["gIoU"] == 1


def test_records_resumes_after_a_kill(monkeypatch, folder):
    write_rows(folder, ROWS)
    _, whole = run_records(monkeypatch, folder, FakeAssistant(), out="whole")

    class Killed(FakeAssistant):
        def open(self, image):
            if self.opened:
                raise KeyboardInterrupt
            return super().open(image)

    first = Killed()
    code, result = run_records(monkeypatch, folder, first)
    assert code == 130 and result is None and len(first.asked) == 5
    samples = folder / "out/samples.jsonl"
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:4]) + lines[4][: len(lines[4]) // 2])  # torn while it was written
    second = FakeAssistant()
    code, result = run_records(monkeypatch, folder, second)
    assert code == 0 and len(second.asked) == 2
    for key in ("n", "gIoU", "cIoU", "ncIoU", "N_acc", "T_acc", "oracle_gIoU", "by", "curve", "ci95"):
        assert result[key] == whole[key]
    assert sorted(json.loads(line)["key"] for line in samples.read_text().splitlines()) == list(range(6))


def test_another_run_in_the_same_folder_is_refused(monkeypatch, folder, capsys):
    write_rows(folder, ROWS)
    assert run_records(monkeypatch, folder, FakeAssistant(), "--limit", "2")[1]["n"] == 2
    assert (
        run_records(monkeypatch, folder, FakeAssistant(), "--limit", "3")[1]["n"] == 3
    )  # more of the same is not
    assert run_records(monkeypatch, folder, FakeAssistant(), "--seed", "1")[0] == 2
    assert "another seed" in capsys.readouterr().err


def test_bad_rows_are_listed_by_name(monkeypatch, folder, capsys):
    (folder / "images/c.jpg").write_text("no picture")
    rows = [
        ROWS[0],
        row("the red one", ["red"], image="images/none.png"),
        row("the red one", ["red"], image="images/c.jpg"),
        row("broken", ["red"]),
        row("x", ["blue"], image="images/b.png", width=W + 1),
    ]
    write_rows(folder, rows)
    _, result = run_records(monkeypatch, folder, FakeAssistant())
    assert result["n"] == 1 and result["gIoU"] == 1
    assert [b["name"] for b in result["bad"]] == [
        "row 2, images/none.png",
        "row 3, images/c.jpg",
        "row 4, images/a.png",
        "row 5, images/b.png",
    ]
    assert all(b["error"] for b in result["bad"])
    code, _ = run_records(monkeypatch, folder, FakeAssistant(), "--strict", out="strict")
    assert code == 2 and capsys.readouterr().err.count("\n") >= 1


def test_the_report_is_self_contained(monkeypatch, folder):
    write_rows(folder, ROWS)
    run_records(monkeypatch, folder, FakeAssistant(half=True))
    page = (folder / "out/report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(src|href)=(?!'data:)", page)
    pictures = re.findall(r"data:image/jpeg;base64,([^']+)'", page)
    assert len(pictures) >= 8
    for picture in pictures:
        assert max(Image.open(io.BytesIO(base64.b64decode(picture))).size) == 320
    for group in ("Worst", "Typical", "Best", "Present, but called absent", "Absent, but outlined"):
        assert group in page
    assert "<polyline" in page and "proposals [0]" in page


def test_pictures_show_masks_of_one_pixel(tmp_path):
    mask = np.zeros((800, 1200), bool)
    mask[400:406, 600:606] = True
    image = np.full((800, 1200, 3), 255, np.uint8)
    path = write_report(
        tmp_path,
        Result("records", 1, 1),
        [Curve("c", "x", "y", {"a": [(0, None), (1, 0.5)]})],
        [Sample("g", "t", ["w"], [("p", image, [mask])])],
    )
    shown = Image.open(io.BytesIO(base64.b64decode(re.search("base64,([^']+)'", path.read_text())[1])))
    assert np.asarray(shown)[100:115, 155:170].min() < 200
    assert svg(Curve("none", "x", "y", {})).startswith("<svg")


def test_results_are_whole_json_and_runs_keep_their_settings(tmp_path):
    write_result(tmp_path, Result("x", 1, 3, by={"a": {"gIoU": 0.5}}))
    read = json.loads((tmp_path / "result.json").read_text())
    assert read["gIoU"] is None and read["by"]["a"]["gIoU"] == 0.5 and read["peak_memory_mb"] > 1
    Run(tmp_path, {"a": 1}).add("k", {"v": 1})
    assert Run(tmp_path, {"a": 1}).done["k"]["v"] == 1
    with pytest.raises(BadInput, match="another a"):
        Run(tmp_path, {"a": 2})
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be used"):
        Run(tmp_path / "file", {})


# interactive and proposals


def write_coco(folder):
    boxes = [(4, 4, 24, 24), (30, 10, 50, 30), (50, 32, 58, 38)]
    annotations = [
        {
            "id": k,
            "image_id": 1,
            "category_id": 1 + (k > 0),
            "iscrowd": int(k == 2),
            "bbox": [0, 0, 1, 1],
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        }
        for k, (x0, y0, x1, y1) in enumerate(boxes)
    ]
    data = {
        "images": [
            {"id": 1, "file_name": "a.png", "height": H, "width": W},
            {"id": 2, "file_name": "gone.png", "height": H, "width": W},
        ],
        "annotations": annotations + [dict(annotations[0], id=9, image_id=2)],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    }
    (folder / "instances.json").write_text(json.dumps(data))


class FakeSegmenter:
    """Answers a box with its left half, a click with the whole of the rectangle under it in its third reading."""

    def encode(self, image):
        return image

    def predict(self, image, points=None, labels=None, box=None, mask=None, multimask=True):
        if box is not None:
            x0, y0, x1, y1 = np.asarray(box).astype(int)
            return (
                rectangle(x0, y0, (x0 + x1) // 2, y1)[None],
                np.array([0.75]),
                np.zeros((1, 8, 8), np.float32),
            )
        x, y = points[0]
        assert labels[0] == 1 and tuple(image[y, x]) in COLOURS.values()
        whole = (image == image[y, x]).all(2)
        if multimask:
            assert mask is None
            some = np.stack([whole & (np.arange(W) < x), np.zeros_like(whole), whole])
            return some, np.array([0.9, 0.1, 0.5]), np.zeros((3, 8, 8), np.float32)
        assert mask.shape == (8, 8) and len(points) == len(labels) > 1
        assert labels[1] == 1 and whole[points[1][1], points[1][0]]
        return whole[None], np.array([1.0]), np.zeros((1, 8, 8), np.float32)


def test_interactive(monkeypatch, folder):
    write_coco(folder)
    monkeypatch.setattr(models, "open_segmenter", lambda settings: (FakeSegmenter(), {"sam": "1"}))
    words = ["interactive", "--root", str(folder), "--out", str(folder / "out")]
    assert command.main(words) == 0
    result = json.loads((folder / "out/result.json").read_text())
    assert result["n"] == 2 and [b["name"] for b in result["bad"]] == [
        "gone.png"
    ]  # the crowd is not prompted
    figures = result["figures"]["all"]
    assert figures["box"] == 0.5 and figures["box_itself"] == 1 and figures["click_best"] == 1
    assert figures["ellipse"] == pytest.approx(np.pi / 4, abs=0.02)
    assert 0.4 <= figures["click_by_score"] <= 0.55  # the reading that the model likes best is the half
    assert figures["after_2_clicks"] == figures["after_5_clicks"] == 1 and figures["NoC@80"] == 2
    assert figures["NoC@80_failed"] == 0 and figures["box_calibration_error"] == pytest.approx(0.25)
    assert result["figures"]["above_32x32"] == {"n": 0} and result["by"]["small"]["n"] == 2
    assert "polyline" in (folder / "out/report.html").read_text()
    before = (folder / "out/samples.jsonl").read_text()
    assert command.main(words) == 0 and (folder / "out/samples.jsonl").read_text() == before
    assert command.main([*words[:-1], str(folder / "strict"), "--strict"]) == 2


def test_clicks_are_where_a_person_would_set_them():
    target = rectangle(10, 5, 31, 26)
    assert interactive.deepest_pixel(target) == (20, 15, 11)
    assert interactive.deepest_pixel(np.ones((5, 9), bool))[1] == 2  # the picture's border is an edge
    assert interactive.next_click(target, target) is None
    assert interactive.next_click(np.zeros_like(target), target) == (20, 15, 1)
    x, y, label = interactive.next_click(target | rectangle(40, 0, 60, 40), target)
    assert label == 0 and 40 <= x < 60
    assert interactive.tight_box(target).tolist() == [10, 5, 31, 26]
    whole = interactive.ellipse_in_box(np.array([0, 0, W, H], np.float32), (H, W))
    assert (
        whole.sum() == pytest.approx(np.pi / 4 * H * W, rel=0.01) and whole[H // 2].all() and not whole[0, 0]
    )


def test_calibration_error():
    assert interactive.calibration_error([], []) is None
    assert interactive.calibration_error([0.5, 0.5], [0.4, 0.6]) == pytest.approx(0)
    assert interactive.calibration_error([1.0, 0.15], [0.8, 0.25]) == pytest.approx(0.15)


def test_proposals(monkeypatch, folder):
    write_coco(folder)
    pool = Pool(
        rles=[rle(rectangle(0, 0, 60, 40)), rle(rectangle(4, 4, 24, 24)), rle(rectangle(30, 10, 50, 30))]
    )
    monkeypatch.setattr(models, "open_everything_mode", lambda settings, everything_settings: (lambda image: pool, {"sam": "1"}))
    monkeypatch.setattr(proposals, "FIRST", (1, 60, None))
    assert command.main(["proposals", "--root", str(folder), "--out", str(folder / "out")]) == 0
    result = json.loads((folder / "out/result.json").read_text())
    figures = result["figures"]
    assert result["n"] == 2 and len(result["bad"]) == 1 and figures["proposals_per_photo"] == 3
    blue = 400 / (400 + 48)  # the crowd belongs to the category's union and no proposal has it
    assert figures["oracle_gIoU@60"] == figures["oracle_gIoU@all"] == result["oracle_gIoU"]
    assert result["oracle_gIoU"] == pytest.approx((1 + blue) / 2)
    assert figures["oracle_gIoU@1"] == pytest.approx((400 / 2400 + 448 / 2400) / 2)
    assert figures["large_objects"] == 0 and figures["large_recall_50@60"] is None


def test_large_objects_are_counted_one_by_one():
    big = np.zeros((200, 200), bool)
    big[:120, :120] = True
    encode = lambda m: coco_mask.encode(np.asfortranarray(m, np.uint8))
    small = np.zeros_like(big)
    small[150:160, 150:160] = True
    masks = ((big, False), (big[::-1], False), (small, False), (~small, True))
    photo = SimpleNamespace(instances=[SimpleNamespace(category="a", crowd=c, rle=encode(m)) for m, c in masks])
    line = proposals.score_photo(photo, [encode(big)])
    assert [pair[0] for pair in line["large"]] == [1, pytest.approx(40 * 120 / (2 * 14400 - 40 * 120))]


# the command


@pytest.mark.parametrize(
    "words, said",
    [
        (["records", "--root", "nowhere"], "must be a records file"),
        (["interactive", "--root", "nowhere"], "instances.json is missing"),
        (["interactive", "--root", ".", "--sam", "none.safetensors"], "instances.json is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert command.main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_json_that_is_not_cocos(tmp_path, capsys):
    (tmp_path / "instances.json").write_text('{"images": [1')
    assert command.main(["proposals", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is not a COCO instances file" in capsys.readouterr().err


@pytest.mark.parametrize("sam", ["none", "torn"])
def test_sam_weights_that_cannot_be_read(tmp_path, sam, capsys):
    write_coco(tmp_path)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    weights, out = tmp_path / f"{sam}.safetensors", tmp_path / "out"
    assert (
        command.main(["interactive", "--root", str(tmp_path), "--sam", str(weights), "--out", str(out)]) == 2
    )
    assert f"{sam}.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("setting, said", [("points=3", "no such setting"), ("fast", "NAME=VALUE")])
def test_settings_of_everything_mode(folder, setting, said, capsys):
    write_coco(folder)
    words = ["proposals", "--root", str(folder), "--out", str(folder / "out"), "--setting", setting]
    assert command.main(words) == 2 and said in capsys.readouterr().err
    assert models.parse_everything_settings(["pred_iou_thresh=.5", "fast=true", "points_per_side=8"]) == {
        "pred_iou_thresh": 0.5,
        "fast": True,
        "points_per_side": 8,
    }


def test_help_does_not_load_the_heavy_packages():
    code = (
        "import sys\nfrom eval.__main__ import parse\ntry: parse(['records', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'pycocotools', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--limit" in done.stdout and done.stdout.strip().endswith("[]")


def test_a_step_of_tuning_is_timed_beside_trl(tmp_path, capsys):
    pytest.importorskip("trl")
    folder = tiny_qwen3_vl(tmp_path / "qwen")
    words = [
        "tuning",
        "--mllm",
        str(folder),
        "--batch",
        "2",
        "--steps",
        "1",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--rank",
        "4",
        "--out",
        str(tmp_path / "out"),
        "--peak",
        "1",
    ]
    assert command.main(words) == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    ours, trl = result["ours"], result["trl"]
    assert ours["tokens"] == trl["tokens"] > 400 and 0 < ours["memory_gb"] < 8
    assert result["ratio"] == pytest.approx(ours["tokens_per_second"] / trl["tokens_per_second"], abs=1e-3)
    assert "of the peak" in capsys.readouterr().out
    assert command.main([*words, "--steps", "0"]) == 2 and "at least 1" in capsys.readouterr().err
    assert command.main([*words, "--mllm", "gone"]) == 2
    assert capsys.readouterr().err.startswith("error: ours: ")
