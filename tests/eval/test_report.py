"""The report is one file that shows what it should, and in which nothing typed has power."""

import base64
import html
import io
import json
import re

import numpy as np
from PIL import Image

from assistant.export.charts import curve_svg
from eval.report import Curve, Sample, write_report
from eval.result import Result
from tests.helpers.benchmark_data import record_row, write_record_rows
from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import FakeAssistant


def images_of(page):
    return [
        Image.open(io.BytesIO(base64.b64decode(found)))
        for found in re.findall(r'data:image/jpeg;base64,([^"]+)"', page)
    ]


def test_the_report_is_self_contained(monkeypatch, folder):
    rows = [
        record_row("the red one", ["red"]),
        record_row("red and blue", ["red", "blue"], kind="several"),
        record_row("the green one", ["green"], kind="absent"),
        record_row("surely green", ["green"], kind="absent"),
        record_row("blue, is it here?", ["blue"], image="images/b.png", kind="absent"),
        record_row("the yellow one", ["red"]),
    ]
    write_record_rows(folder, rows)
    words = ["records", "--root", folder]
    run_benchmark(monkeypatch, folder / "out", *words, assistant=FakeAssistant(half=True))
    page = (folder / "out/report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert not re.search(r'(src|href)=(?!"data:)', page)
    images = images_of(page)
    assert len(images) >= 8
    for image in images:
        assert max(image.size) == 320
    for group in ("Worst", "Typical", "Best", "Present, but called absent", "Absent, but outlined"):
        assert group in page
    assert "<polyline" in page and "proposals [0]" in page


def test_images_show_masks_of_a_few_pixels(tmp_path):
    mask = np.zeros((800, 1200), bool)
    mask[400:406, 600:606] = True
    image = np.full((800, 1200, 3), 255, np.uint8)
    path = write_report(
        tmp_path,
        Result("records", 1, 1),
        [Curve("c", "x", "y", {"a": [(0, None), (1, 0.5)]})],
        [Sample("g", "t", ["w"], [("p", image, [mask])])],
    )
    (shown,) = images_of(path.read_text())
    assert np.asarray(shown)[100:115, 155:170].min() < 200
    assert curve_svg(Curve("none", "x", "y", {})).startswith("<svg")


def test_the_headline_has_the_protocols_side_by_side(tmp_path):
    protocols = {
        "lisa": {"gIoU": 0.51, "cIoU": 0.4, "gIoU_95": [0.45, 0.57]},
        "seg-zero": {"gIoU": 0.61, "cIoU": 0.4, "gIoU_95": [0.55, 0.67]},
    }
    figures = {
        "protocols": protocols,
        "n_present": 7,
        "denials: use": {"n": 3, "share": 0.25},
        "denials: count": {"n": 4, "share": None},
    }
    result = Result(
        "reasonseg",
        1,
        9,
        protocol="both",
        gIoU=0.51,
        N_acc=0.8,
        oracle_gIoU=0.75,
        figures=figures,
        by={"<b>group</b>": {"n": 4, "gIoU": 0.5}},
        calls_per_query=1.0,
        weights={"sam": "0123abcd" * 8},
        bad=[{"name": "x.jpg", "error": "is <i>empty</i>"}],
    )
    page = write_report(tmp_path, result, ious=[0.1, 0.9]).read_text()
    head, *rest = re.findall(r"<table.*?</table>", page, re.S)
    assert "protocol lisa" in head and "protocol seg-zero" in head
    assert "0.5100 [0.450, 0.570]" in head and "0.6100 [0.550, 0.670]" in head
    assert "called absent" in head  # every score is explained
    assert not re.search(
        r"\{|&#39;", re.sub(r"<(style|script).*?</\1>", "", page, flags=re.S)
    )  # no dictionary
    denials = next(table for table in rest if "share" in table)
    assert denials.count("<tr>") == 3 and "denials: use" in denials
    assert "<b>group" not in page and "<i>empty" not in page and "&lt;b&gt;group" in page
    assert "0.510</b> of 0.750" in page and "width:51.00%" in page  # the score against its oracle
    assert "calls of the language model" in page
    folded = page[page.index("<details>") :]
    assert "0123abcd" * 8 in folded and page.count("0123abcd" * 8) == 1
    assert page.count("<svg") == 1 and "<title>0.90 to 0.95: 1" in page  # the histogram
    assert 'id="tag"' not in page  # nothing to filter


def test_samples_can_be_filtered_by_their_groups(tmp_path):
    samples = [Sample("g", f"t{k}", [], [], ['kind: "use"', "<b>"]) for k in range(2)]
    page = write_report(tmp_path, Result("records", 1, 1), samples=samples).read_text()
    tags = re.findall(r'data-tags="([^"]*)"', page)
    assert [json.loads(html.unescape(tag)) for tag in tags] == [['kind: "use"', "<b>"]] * 2
    assert page.count('class="group"') == 1 and 'id="tag"' in page
