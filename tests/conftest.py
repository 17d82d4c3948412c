"""All tests run offline, from the same seeds."""

import os

# Before transformers is imported anywhere: a test that reaches for the hub fails at once instead of waiting.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import random

import numpy as np
import pytest
import torch
from hypothesis import settings


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def stopped(monkeypatch):
    """stopped(module, name, call, run): run() with the module's function interrupted, as by ctrl-C, at its `call`-th call."""

    def stop(module, name: str, call: int, run) -> None:
        original, calls = getattr(module, name), []

        def interrupted(*args):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return original(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, interrupted)
            run()

    return stop


# A busy machine is no failure: no example is judged by the clock.
settings.register_profile("maskpick", deadline=None)
settings.load_profile("maskpick")
