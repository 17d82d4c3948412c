"""The command `python -m eval`."""

import json
import subprocess
import sys

import pytest

from eval.__main__ import main
from tests.helpers.benchmark_data import write_coco_folder
from tests.helpers.tiny_models import tiny_qwen3_vl


@pytest.mark.parametrize(
    "words, message",
    [
        (["records", "--root", "nowhere"], "must be a records file"),
        (["interactive", "--root", "nowhere"], "instances.json is missing"),
        (["interactive", "--root", ".", "--sam", "none.safetensors"], "instances.json is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_json_that_is_not_cocos(tmp_path, capsys):
    (tmp_path / "instances.json").write_text('{"images": [1')
    assert main(["proposals", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("sam", ["none", "torn"])
def test_sam_weights_that_cannot_be_read(tmp_path, sam, capsys):
    write_coco_folder(tmp_path)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    weights = tmp_path / f"{sam}.safetensors"
    words = ["interactive", "--root", str(tmp_path), "--sam", str(weights), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert f"{sam}.safetensors" in capsys.readouterr().err


def test_help_does_not_load_the_heavy_packages():
    code = (
        "import sys\n"
        "from eval.__main__ import parse\n"
        "try: parse(['records', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'pycocotools', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--limit" in done.stdout and done.stdout.strip().endswith("[]")


@pytest.mark.slow
def test_a_step_of_tuning_is_timed_beside_trl(tmp_path, capsys):
    pytest.importorskip("trl")
    folder = tiny_qwen3_vl(tmp_path / "qwen")
    options = {
        "--mllm": folder,
        "--batch": 2,
        "--steps": 1,
        "--rounds": 1,
        "--device": "cpu",
        "--rank": 4,
        "--out": tmp_path / "out",
        "--peak": 1,
    }
    words = ["tuning", *(str(word) for option in options.items() for word in option)]
    assert main(words) == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    ours, trl = result["ours"], result["trl"]
    assert ours["tokens"] == trl["tokens"] > 400 and 0 < ours["memory_gb"] < 8
    assert result["ratio"] == pytest.approx(ours["tokens_per_second"] / trl["tokens_per_second"], abs=1e-3)
    assert "of the peak" in capsys.readouterr().out
    assert main([*words, "--steps", "0"]) == 2 and "at least 1" in capsys.readouterr().err
    assert main([*words, "--mllm", "gone"]) == 2
    assert capsys.readouterr().err.startswith("error: ours: ")
