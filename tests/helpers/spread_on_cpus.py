"""`python -m finetune` with its weights spread over CPU processes.

    accelerate launch --config_file finetune/configs/fsdp2.yaml -m tests.helpers.spread_on_cpus --data ...

accelerate turns FSDP2 and DeepSpeed on for GPUs only; here it takes the CPU processes for some.
"""

import os
import sys

import accelerate

from finetune.__main__ import main


def take_cpus_for_gpus() -> None:
    """Before finetune asks accelerate what it runs on."""
    if os.environ.get("ACCELERATE_USE_FSDP"):
        accelerate.PartialState(cpu=True).distributed_type = "MULTI_GPU"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        accelerate.PartialState(cpu=True).distributed_type = "DEEPSPEED"
        make = accelerate.Accelerator

        def without_cpu(cpu: bool = False, **options: object) -> accelerate.Accelerator:
            return make(**options)

        accelerate.Accelerator = without_cpu


if __name__ == "__main__":
    take_cpus_for_gpus()
    sys.exit(main())
