"""Tuning a multimodal LLM end to end: it learns, other models do too, and what cannot be done is one line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.grammar import Turn
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.trained import load_trained_pipeline, select
from assistant.record import read_records
from assistant.scene import Assistant
from finetune import __main__ as command
from finetune.mllm import train
from tests.helpers import rectangles
from tests.helpers.tiny_models import tiny_llava, tiny_qwen2_5_vl, tiny_smolvlm
from tests.helpers.tuning_runs import command_line, lines, tensors


def test_a_tiny_model_learns_to_select_and_to_say_what_is_absent(qwen, tmp_path):
    data, out = rectangles.write_dataset(tmp_path, 3), tmp_path / "out"
    options = {
        "--val": data,
        "--max-steps": 200,
        "--save-every": 100,
        "--micro": 4,
        "--rank": 32,
        "--alpha": 64,
        "--dropout": 0,
        "--selector-lr": 6e-3,
        "--weights": "presence=3",
    }
    more = [str(word) for option in options.items() for word in option]
    assert command.main(command_line(qwen, data, out, *more)) == 0
    pipeline = load_trained_pipeline(MultimodalLLM.load(qwen), rectangles.RectangleOpener(), out)
    assistant, scenes, right = Assistant(pipeline, {}), {}, []
    for record in read_records(data):
        if record.image not in scenes:
            scenes[record.image] = assistant.open(data.parent / record.image)
        right.append(is_right(scenes[record.image], record))
    assert np.mean(right) > 0.7  # by chance it would name one of three, say one of two, and pick one of four
    report = (out / "report.html").read_text()
    assert report.count("<svg") >= 5 and report.count("where is the") == 9 and "step 200" in report
    steps = [json.loads(line)["step"] for line in (out / "val.jsonl").read_text().splitlines()]
    assert steps == [0, 100, 200]


def is_right(scene, record) -> bool:
    """Whether the answer names the record's target, and selects a square of one colour if it is present."""
    scene.reset()
    answer, target = scene.ask(record.question), record.targets[0]
    present = [t for t in answer.targets if t.present]
    if [t.phrase for t in answer.targets] != [target.phrase] or bool(present) != (target.rle is not None):
        return False
    if not present:
        return True
    mask = present[0].mask
    is_square = np.array_equal(mask, rectangles.square(present[0].proposals[0])) and mask.sum() == 576
    return is_square and scene.image[mask].std(0).max() == 0


@pytest.mark.parametrize("build", [tiny_qwen2_5_vl, tiny_smolvlm, tiny_llava])
def test_the_same_recipe_trains_other_models(build, dataset, tmp_path):
    """Several turns, two images in a conversation, and a merged model that needs no LoRA any more."""
    mllm, out, merged = build(tmp_path / "mllm"), tmp_path / "out", tmp_path / "merged"
    more = ("--max-steps", "12", "--pictures", "2", "--log-every", "4", "--warm-up", "2")
    assert command.main(command_line(mllm, dataset[0], out, *more)) == 0
    losses = [line["text"] for line in lines(out / "log.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    assert command.main(["merge", "--adapter", str(out), "--out", str(merged), "--dtype", "float32"]) == 0
    image = np.array(Image.open(dataset[0].parent / "train0.png").convert("RGB"))
    results = []
    for model, adapter in ((mllm, out), (merged, merged)):
        pipeline = load_trained_pipeline(MultimodalLLM.load(model), rectangles.RectangleOpener(), adapter)
        features = pipeline.opener.open(image).features
        states = torch.randn(2, pipeline.selector.config["state_dim"], generator=torch.manual_seed(0))
        reply = pipeline.llm.reply([Turn("which one?", images=[image])], max_new_tokens=12)
        results.append((reply.text, select(pipeline.selector, states, torch.zeros(2), features)))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "more", [[], ["--gradient-checkpointing", "--dtype", "bfloat16"]], ids=["float32", "bfloat16"]
)
def test_a_model_in_four_bits_learns_stops_and_continues(more, dataset, qwen, tmp_path, monkeypatch):
    """QLoRA: the LLM's weights stay in 4 bits; its vision tower and the new rows do not."""
    pytest.importorskip("bitsandbytes")
    training_step = train.training_step
    four_bit_weights = []

    def interrupted(step, seed, parts, model, *rest):
        if step == 6 and not four_bit_weights:
            four_bit_weights.append(sum(p.dtype == torch.uint8 for p in model.parameters()))
            raise KeyboardInterrupt
        return training_step(step, seed, parts, model, *rest)

    monkeypatch.setattr(train, "training_step", interrupted)
    options = ("--max-steps", "12", "--save-every", "6", "--four-bit", "--log-every", "4", "--warm-up", "2")

    def run(name):
        return command.main(command_line(qwen, dataset[0], tmp_path / name, *options, *more))

    assert [run("parts"), run("parts"), run("whole")] == [130, 0, 0]
    losses = [line["text"] for line in lines(tmp_path / "whole/log.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    llm = MultimodalLLM.load(qwen, four_bit=True)
    assert sum(p.dtype == torch.uint8 for p in llm.model.parameters()) == four_bit_weights[0] > 6
    pipeline = load_trained_pipeline(llm, rectangles.RectangleOpener(), tmp_path / "whole")
    scene = Assistant(pipeline, {}).open(dataset[0].parent / "train0.png")
    assert isinstance(scene.ask("where is the red one?", max_new_tokens=8).text, str)


def test_deepspeed_that_is_not_installed_is_one_line(dataset, qwen, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main(command_line(qwen, dataset[0], tmp_path / "out")) == 2
    errors = capsys.readouterr().err
    assert "pip install deepspeed" in errors and errors.count("error: ") == 1


def test_out_of_memory_says_what_to_change(dataset, qwen, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(train, "training_step", full)
    assert command.main(command_line(qwen, dataset[0], tmp_path / "out", "--max-steps", "2")) == 2
    errors = capsys.readouterr().err
    assert "--micro (now 2)" in errors and errors.count("error") == 1
    assert "--gradient-checkpointing" in errors and "--four-bit" in errors


def test_a_run_does_not_continue_with_other_settings(dataset, qwen, tmp_path, capsys):
    words = command_line(qwen, dataset[0], tmp_path / "out", "--max-steps", "2")
    assert command.main(words) == 0
    assert command.main([*words, "--rank", "4"]) == 2
    assert "--rank was 16" in capsys.readouterr().err


def test_continuing_a_run_that_is_complete_changes_nothing(dataset, qwen, tmp_path):
    words = command_line(qwen, dataset[0], tmp_path / "out", "--max-steps", "2")
    assert command.main(words) == 0
    before = tensors(tmp_path / "out")
    assert command.main(words) == 0
    after = tensors(tmp_path / "out")
    assert all(torch.equal(before[k], after[k]) for k in before)
