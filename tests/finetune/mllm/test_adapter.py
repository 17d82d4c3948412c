"""An adapter names the models that it belongs to, and is refused with others."""

import json

import pytest
from safetensors import safe_open

from assistant.errors import BadInput
from assistant.loading import pipelines, sams
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.trained import PartOrigin, check_sam, load_trained_pipeline
from finetune import __main__ as command
from tests.helpers import rectangles
from tests.helpers.refusals import refusal
from tests.helpers.tuning_runs import command_line


@pytest.fixture(scope="module")
def run(dataset, qwen, tmp_path_factory):
    """Runs a step of tuning with the SAM "none": `run(*more)` gives the exit code, `run.out` the folder."""

    class Run:
        out = tmp_path_factory.mktemp("adapter") / "tuned"

        def __call__(self, *more: str, out=None) -> int:
            return command.main(command_line(qwen, dataset[0], out or self.out, "--max-steps", "1", *more))

    return Run()


@pytest.fixture
def tuned(run):
    assert run() == 0
    return run.out


def test_the_card_shows_a_command_with_every_model(tuned, qwen):
    with safe_open(tuned / "heads.safetensors", "pt") as file:
        about = json.loads(file.metadata()["tuned"])
    assert (about["sam"], about["sam_sha256"]) == ("none", "rectangles")
    assert f"--mllm {qwen} --sam none --adapter FOLDER" in (tuned / "README.md").read_text()


def test_another_sam_is_refused_before_anything_is_loaded(tuned, run, qwen, tmp_path, monkeypatch, capsys):
    """SAM's ViT-B, L and H have features of the same width."""
    monkeypatch.setattr(pipelines, "sam_checksum", lambda sam: "another")
    monkeypatch.setattr(MultimodalLLM, "load", None)
    line = refusal(lambda: pipelines.load_pipeline(str(qwen), "sam_vit_b.pth", tuned, device="cpu"))
    assert "the SAM none, not with sam_vit_b.pth" in line and "give --sam none" in line
    monkeypatch.undo()
    monkeypatch.setattr(sams, "sam_checksum", lambda sam: "another")
    monkeypatch.setattr(sams, "opener_key", lambda sam: "another")
    assert run("--adapter", str(tuned), out=tmp_path / "more") == 2
    assert "the SAM none" in capsys.readouterr().err


def test_adapters_from_before_the_sam_was_stored_still_load(tuned):
    check_sam({}, tuned, PartOrigin("pocket", "anything"))
    with pytest.raises(BadInput, match="trained with the SAM h"):
        check_sam({"sam": "h", "sam_sha256": "1"}, tuned, PartOrigin("b", "2"))


def test_a_sam_of_another_width_is_one_line(tuned, qwen, monkeypatch):
    opener = rectangles.RectangleOpener()
    monkeypatch.setattr(opener.segmenter, "feature_width", 256)
    line = refusal(lambda: load_trained_pipeline(MultimodalLLM.load(qwen), opener, tuned))
    assert "features of a proposal" in line and "was trained with, none" in line
