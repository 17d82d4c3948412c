from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from assistant.pocket.sam import build_pocket_sam
from tests.helpers.tiny_smollm2 import tiny_smollm2


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of SmolLM2's kind."""
    return tiny_smollm2(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def sam():
    """An untrained pocket SAM."""
    torch.manual_seed(0)
    return build_pocket_sam()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A photo in the size in which the pocket SAM encodes it."""
    return np.asarray(Image.fromarray(data.coffee()).resize((512, 341)))
