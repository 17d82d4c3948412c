"""The conversion of the published detector."""

import json

import pytest
import torch
from safetensors.torch import load_file

from assistant.pocket.detector import Detector, load_detector
from finetune import __main__ as command
from tests.helpers.nanodet_graph import write_nanodet_graph


@pytest.fixture
def graph(tmp_path):
    torch.manual_seed(0)
    write_nanodet_graph(Detector().state_dict(), tmp_path / "nanodet.json")
    return tmp_path / "nanodet.json"


def convert(graph, out):
    return command.main(["detector", "--graph", str(graph), "--out", str(out)])


def test_the_converted_detector_computes_what_the_published_one_does(graph, tmp_path, capsys):
    assert convert(graph, tmp_path / "out/detector.safetensors") == 0
    assert "3,786,068 weights" in capsys.readouterr().out
    torch.manual_seed(0)
    published = Detector().eval()
    converted = load_detector(tmp_path / "out/detector.safetensors")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for a, b in zip(published(pixels), converted(pixels), strict=True):
            assert torch.allclose(a, b, atol=1e-2)
    assert all(x.dtype == torch.float16 for x in load_file(tmp_path / "out/detector.safetensors").values())


def test_another_graph_is_refused_in_one_line(graph, tmp_path, capsys):
    assert convert(tmp_path / "missing.json", tmp_path / "out.safetensors") == 2
    whole = json.loads(graph.read_text())
    whole["modelTopology"]["node"] = whole["modelTopology"]["node"][:-5]  # without the last convolution
    graph.write_text(json.dumps(whole))
    assert convert(graph, tmp_path / "out.safetensors") == 2
    assert "does not hold NanoDet-g" in capsys.readouterr().err
    graph.write_text("[]")
    assert convert(graph, tmp_path / "out.safetensors") == 2
    assert "is no graph of TensorFlow.js" in capsys.readouterr().err
    graph.with_suffix(".bin").write_bytes(b"cut")
    write_again = json.dumps(whole)
    graph.write_text(write_again)
    assert convert(graph, tmp_path / "out.safetensors") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
