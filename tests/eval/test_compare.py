"""The paired difference of two runs (`eval compare`)."""

import json

import pytest

from assistant.answer import Cost
from eval.__main__ import main
from tests.helpers.benchmark_data import write_label_maps
from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import FakeAssistant


def run_reasonseg(monkeypatch, out, reasonseg, *options):
    return run_benchmark(monkeypatch, out, "reasonseg", "--root", reasonseg, *options)


def test_the_paired_difference_of_two_runs(monkeypatch, reasonseg, other_model, tmp_path, capsys):
    run_reasonseg(monkeypatch, tmp_path / "a", reasonseg, "--predictions", other_model)
    run_reasonseg(monkeypatch, tmp_path / "b", reasonseg)
    capsys.readouterr()

    def compare(first, second):
        out = tmp_path / "compared.json"
        assert main(["compare", str(tmp_path / first), str(tmp_path / second), "--out", str(out)]) == 0
        return json.loads(out.read_text())["tables"]["all"]["gIoU"]

    row = compare("a", "b")
    assert row["difference"] == pytest.approx((0 - 1 + 0 + 400 / 600) / 4)
    assert (row["better"], row["worse"]) == (1, 1)
    assert row["ci95"][0] < row["difference"] < row["ci95"][1] and "B-A" in capsys.readouterr().out
    row = compare("b", "b")
    assert row["difference"] == 0 and row["ci95"] == [0, 0]


def test_what_the_questions_took_stands_beside_the_scores(monkeypatch, reasonseg, tmp_path, capsys):
    def run(out, cost):
        class Costly(FakeAssistant):
            def open(self, image):
                scene = super().open(image)
                ask = scene.ask

                def costly(question):
                    answer = ask(question)
                    answer.cost = cost
                    return answer

                scene.ask = costly
                return scene

        run_benchmark(monkeypatch, out, "reasonseg", "--root", reasonseg, assistant=Costly())

    run(tmp_path / "a", Cost(1.0, calls=1, tokens=9, read_tokens=700, image_tokens=600))
    run(tmp_path / "b", Cost(1.0, calls=2, tokens=9, read_tokens=900, image_tokens=600, passes=3))
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for cost in ("calls per query A 1.00 B 2.00", "passes per query A unknown B 3.00"):
        assert cost in shown
    assert "read tokens per query A 700.00 B 900.00" in shown and "image tokens per query A 600" in shown
    result = json.loads((tmp_path / "b/result.json").read_text())
    assert (result["image_tokens_per_query"], result["passes_per_query"]) == (600, 3)


def test_runs_that_cannot_be_compared(monkeypatch, reasonseg, tmp_path, capsys):
    run_reasonseg(monkeypatch, tmp_path / "a", reasonseg)
    write_label_maps(tmp_path / "maps")
    run_benchmark(monkeypatch, tmp_path / "b", "semantic", "--root", tmp_path / "maps")
    capsys.readouterr()
    for other in ("b", "nowhere"):
        assert main(["compare", str(tmp_path / "a"), str(tmp_path / other)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
