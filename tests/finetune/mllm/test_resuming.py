"""A run that was stopped continues exactly, and on several processes along the curve of one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from assistant.errors import BadInput
from finetune import __main__ as command
from finetune.mllm import deepspeed, train
from tests.helpers.tuning_runs import command_line, four_steps, lines, propose_rectangles, tensors

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "finetune/configs"
PROGRAM = str(ROOT / "tests/helpers/launched_tuning.py")
# As many threads as here: sums in another order would give other weights.
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": str(torch.get_num_threads()),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
}


@pytest.fixture(scope="module")
def half_and_whole(dataset, qwen, tmp_path_factory):
    """Folders of a run of four steps in one process: stopped in the third step, and complete."""
    folder = tmp_path_factory.mktemp("runs")
    half, whole = folder / "half", folder / "whole"
    training_step = train.training_step

    def interrupted(step, *more):
        if step == 2:
            raise KeyboardInterrupt
        return training_step(step, *more)

    with pytest.MonkeyPatch.context() as patch:
        propose_rectangles(patch)
        patch.setattr(train, "training_step", interrupted)
        assert command.main(command_line(qwen, dataset[0], half, *four_steps(dataset[1]))) == 130
        patch.setattr(train, "training_step", training_step)
        assert command.main(command_line(qwen, dataset[0], whole, *four_steps(dataset[1]))) == 0
    return half, whole


def test_a_run_killed_outright_continues_to_the_same_weights(dataset, qwen, half_and_whole, tmp_path):
    out, flag = tmp_path / "parts", tmp_path / "flag"
    words = command_line(qwen, dataset[0], out, *four_steps(dataset[1]))
    process = subprocess.Popen(
        [sys.executable, PROGRAM, *words],
        env=ENVIRONMENT | {"HANG_AT_STEP": "4", "FLAG_FILE": str(flag)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not flag.exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 2
    assert command.main(words) == 0
    whole = half_and_whole[1]
    resumed_weights, whole_weights = tensors(out), tensors(whole)
    assert all(torch.equal(whole_weights[k], resumed_weights[k]) for k in whole_weights)
    for file in ("log.jsonl", "val.jsonl"):
        assert lines(whole / file) == lines(out / file)


needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install deepspeed")


@pytest.mark.parametrize(
    "launch",
    [
        ["--multi_gpu"],
        pytest.param(["--config_file", str(CONFIGS / "fsdp2.yaml")], marks=pytest.mark.slow),
        pytest.param(["--config_file", str(CONFIGS / "zero3.yaml")], marks=needs_deepspeed),
    ],
    ids=["copies", "fsdp2", "zero3"],
)
def test_two_processes_continue_along_the_curve_of_one(launch, dataset, qwen, half_and_whole, tmp_path):
    """From what one process left, each with all weights or its share of them; the end has the same form."""
    half, whole = half_and_whole
    out = shutil.copytree(half, tmp_path / "out")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *launch]
    processes = ["--num_processes", "2", "--main_process_port", "0"]
    words = command_line(qwen, dataset[0], out, *four_steps(dataset[1]))
    done = subprocess.run(
        [*launcher, *processes, PROGRAM, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming at step 2" in done.stdout
    for a, b in zip(lines(whole / "log.jsonl"), lines(out / "log.jsonl"), strict=True):
        for name in ("loss", "text", "align", "iop", "presence", "marker", "gradient"):
            assert a[name] == pytest.approx(b[name], abs=2e-3), name
    # Adam makes full steps of gradients that are nothing but rounding, so the weights themselves may differ.
    texts = [lines(folder / "val.jsonl")[-1]["text"] for folder in (whole, out)]
    assert texts[0] == pytest.approx(texts[1], abs=2e-2)
    assert {k: v.shape for k, v in tensors(whole).items()} == {k: v.shape for k, v in tensors(out).items()}
    of_whole, of_two = (torch.load(folder / "state.pt", weights_only=True) for folder in (whole, out))
    assert of_whole["step"] == of_two["step"] == 4 and of_whole["model"].keys() == of_two["model"].keys()
    for name, moments in of_whole["optimizer"]["state"].items():
        other = of_two["optimizer"]["state"][name]["exp_avg"]
        assert torch.allclose(moments["exp_avg"], other, atol=1e-3), name


@pytest.mark.parametrize(
    "kind, stage, device, four_bit, message",
    [
        ("MULTI_CPU", 3, "none", False, "for GPUs only"),
        ("DEEPSPEED", 2, "none", False, "ZeRO stage 2 keeps all"),
        ("DEEPSPEED", 3, "none", True, "4 bits"),
        ("DEEPSPEED", 3, "nvme", False, "nvme"),
        ("DEEPSPEED", 3, "cpu", False, ""),
    ],
)
def test_what_deepspeed_cannot_do_is_refused_in_one_line(kind, stage, device, four_bit, message):
    settings = {"zero_optimization": {"stage": stage, "offload_param": {"device": device}}}
    plugin = SimpleNamespace(deepspeed_config=settings)
    accelerator = SimpleNamespace(distributed_type=kind, state=SimpleNamespace(deepspeed_plugin=plugin))
    if not message:
        deepspeed.configure(accelerator, torch.bfloat16, four_bit)
        assert settings["bf16"] == {"enabled": True} and settings["gradient_clipping"] == 1
        return
    with pytest.raises(BadInput, match=message):
        deepspeed.configure(accelerator, torch.float32, four_bit)
