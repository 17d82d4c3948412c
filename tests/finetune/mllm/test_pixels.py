"""A model is asked with the pixels that it was tuned with, and advice on memory names their option."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.probe_loading import load_probe
from assistant.mllm.trained import load_trained_pipeline, stored_pixels
from finetune import __main__ as command
from finetune.mllm import train
from tests.helpers import rectangles
from tests.helpers.tuning_runs import command_line, propose_rectangles

PIXELS = 65536


@pytest.fixture(scope="module")
def tuned(dataset, qwen, tmp_path_factory):
    """An adapter that was tuned with --pixels."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    with pytest.MonkeyPatch.context() as patch:
        propose_rectangles(patch)
        words = command_line(qwen, dataset[0], out, "--max-steps", "1", "--pixels", str(PIXELS))
        assert command.main(words) == 0
    return out


def test_an_adapter_is_asked_with_the_pixels_it_was_tuned_with(qwen, tuned):
    llm = MultimodalLLM.load(qwen)
    usual = llm.image_fit.max_pixels
    assert usual != PIXELS == stored_pixels(tuned)
    load_trained_pipeline(llm, rectangles.RectangleOpener(), tuned)
    assert llm.image_fit.max_pixels == PIXELS
    assert load_probe(qwen, adapter=tuned).llm.image_fit.max_pixels == PIXELS
    own = MultimodalLLM.load(qwen, pixels=2 * PIXELS)
    load_trained_pipeline(own, rectangles.RectangleOpener(), tuned)
    assert own.image_fit.max_pixels == 2 * PIXELS  # what is asked for comes first


def test_an_adapter_from_before_meets_the_limit_of_its_family(qwen, tuned, tmp_path):
    (tmp_path / "lora").symlink_to(tuned / "lora")
    with safe_open(tuned / "heads.safetensors", "pt") as file:
        about = json.loads(file.metadata()["tuned"])
    del about["pixels"]
    save_file(
        load_file(tuned / "heads.safetensors"),
        tmp_path / "heads.safetensors",
        {"tuned": json.dumps(about)},
    )
    llm = MultimodalLLM.load(qwen)
    usual = llm.image_fit
    load_trained_pipeline(llm, rectangles.RectangleOpener(), tmp_path)
    assert stored_pixels(tmp_path) is None and llm.image_fit == usual
    small = np.zeros((96, 96, 3), np.uint8)
    assert usual.fit(small) is small


def test_a_run_that_starts_from_an_adapter_keeps_its_pixels(dataset, qwen, tuned, tmp_path):
    out = tmp_path / "out"
    words = command_line(qwen, dataset[0], out, "--max-steps", "1", "--adapter", str(tuned))
    assert command.main(words) == 0
    assert stored_pixels(out) == PIXELS


def test_out_of_memory_names_the_option(dataset, qwen, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "training_step", full)
    assert command.main(command_line(qwen, dataset[0], tmp_path / "out", "--max-steps", "1")) == 2
    assert "lower --micro (now 2) or --pixels" in capsys.readouterr().err
    too_few = command_line(qwen, dataset[0], tmp_path / "few", "--pixels", "100")
    assert command.main(too_few) == 2
    assert "--pixels 100 is too few: give 65536" in capsys.readouterr().err
