"""Four tiny random models, each loaded once for all tests of a module."""

from functools import partial

import pytest
import torch

from assistant.mllm.local_model import MultimodalLLM
from tests.helpers.tiny_models import tiny_llava, tiny_qwen3_vl, tiny_smolvlm

MODELS = {
    "qwen": tiny_qwen3_vl,
    "qwen tied": partial(tiny_qwen3_vl, tied=True),
    "smolvlm": tiny_smolvlm,
    "llava": tiny_llava,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """{name: folder} of the models."""
    return {name: build(tmp_path_factory.mktemp(name.replace(" ", "-"))) for name, build in MODELS.items()}


@pytest.fixture(scope="module", params=MODELS)
def folder(folders, request):
    """The folder of each model."""
    return folders[request.param]


@pytest.fixture(scope="module")
def llm(folder):
    """Each model, with output rows of [SEG] and [ABS] so long that it writes one of them every few words."""
    llm = MultimodalLLM.load(folder)
    with torch.no_grad():
        rows = llm.model.get_output_embeddings().weight
        rows[llm.seg] = torch.randn(rows.shape[1], generator=torch.manual_seed(3))
        rows[llm.abs] = -rows[llm.seg]
    return llm
