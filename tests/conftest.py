"""Fixtures of all tests: they run offline and from the same seeds."""

import os

# Before transformers is imported anywhere: a test that reaches for the hub fails at once instead of waiting.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

# A busy machine is no failure: no example is judged by the clock.
settings.register_profile("maskpick", deadline=None)
settings.load_profile("maskpick")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same random numbers in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_layout(tmp_path_factory) -> Callable[[str], Path]:
    """real_layout(name): the folder of a model of `tests.helpers.real_layouts`, which all workers share."""
    from tests.helpers.real_layouts import write_layout
    from tests.helpers.real_vocabularies import require_vocabularies

    require_vocabularies()
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    @cache
    def folder(name: str) -> Path:
        path = shared / f"real-{name}"
        with FileLock(shared / f"real-{name}.lock"):
            if not path.is_dir():
                write_layout(name, path)
        return path

    return folder


@pytest.fixture
def stopped(monkeypatch) -> Callable[[ModuleType, str, int, Callable[[], Any]], None]:
    """stopped(module, name, call, run): runs `run` until that function of the module is called `call` times.

    The last of these calls raises KeyboardInterrupt, as ctrl-C does.
    """

    def stop(module: ModuleType, name: str, call: int, run: Callable[[], Any]) -> None:
        original = getattr(module, name)
        calls = 0

        def interrupted(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise KeyboardInterrupt
            return original(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, interrupted)
            run()

    return stop
