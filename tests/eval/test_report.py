"""The report is one file that shows what it should, and in which nothing typed has power."""

import base64
import io
import re

import numpy as np
from PIL import Image

from eval.report import Curve, Sample, svg, write_report
from eval.result import Result
from tests.helpers.benchmark_data import record_row, write_record_rows
from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import FakeAssistant


def images_of(page):
    return [
        Image.open(io.BytesIO(base64.b64decode(found)))
        for found in re.findall(r"data:image/jpeg;base64,([^']+)'", page)
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
    assert not re.search(r"(src|href)=(?!'data:)", page)
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
    assert svg(Curve("none", "x", "y", {})).startswith("<svg")
