"""`python -m finetune` as a program of its own, on the images of `tests.helpers.rectangles`.

    HANG_AT_STEP=4 FLAG_FILE=/path/flag python tests/helpers/launched_tuning.py --mllm ...
    accelerate launch --config_file finetune/configs/fsdp2.yaml tests/helpers/launched_tuning.py --mllm ...

Before step HANG_AT_STEP, from 1, it writes FLAG_FILE and sleeps until it is killed. Under FSDP or DeepSpeed,
CPUs stand for GPUs, and the weights are checked to be sharded when the state is saved.
"""

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

from finetune import __main__  # noqa: E402
from finetune.mllm import deepspeed, train  # noqa: E402
from tests.helpers.tuning_runs import propose_rectangles  # noqa: E402

training_step = train.training_step
save_state = train.save_state
configure = deepspeed.configure


def hanging_step(step, *more):
    """A training step, before which the program may hang."""
    if step + 1 == int(os.environ.get("HANG_AT_STEP", 0)):
        Path(os.environ["FLAG_FILE"]).touch()
        time.sleep(600)
    return training_step(step, *more)


def save_fsdp_state(file, model, *more):
    """Save the state of a model whose layers FSDP must have sharded one by one."""
    assert all(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
    assert sum(type(module).__name__.startswith("FSDP") for module in model.modules()) > 2
    save_state(file, model, *more)


def save_deepspeed_state(file, model, *more):
    """Save the state of a model of which this process must hold half."""
    parameters = list(model.parameters())
    shard = sum(parameter.ds_tensor.numel() for parameter in parameters)
    whole = sum(parameter.ds_numel for parameter in parameters)
    assert 1e5 < whole < 2 * shard < 1.01 * whole
    save_state(file, model, *more)


def configure_small(accelerator, *more):
    """Configure DeepSpeed to shard even weights so small that every process would keep them."""
    configure(accelerator, *more)
    settings = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    settings["stage3_param_persistence_threshold"] = 0


def main() -> int:
    propose_rectangles(pytest.MonkeyPatch())
    train.training_step = hanging_step
    if os.environ.get("ACCELERATE_USE_FSDP"):  # accelerate shards weights over GPUs only
        from accelerate import PartialState

        PartialState(cpu=True).distributed_type = "MULTI_GPU"
        train.save_state = save_fsdp_state
    if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        import accelerate

        accelerate.PartialState(cpu=True).distributed_type = "DEEPSPEED"
        accelerator = accelerate.Accelerator
        accelerate.Accelerator = lambda cpu, **options: accelerator(**options)
        deepspeed.configure = configure_small
        train.save_state = save_deepspeed_state
    return __main__.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
