from pathlib import Path

import pytest

from assistant.record import write_records
from finetune.pocket import language, sources
from tests.helpers.pocket_records import records_of_images, regions_of_images
from tests.helpers.tiny_smollm2 import tiny_smollm2


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of SmolLM2's kind."""
    return tiny_smollm2(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def folder(tmp_path: Path, llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with records.jsonl, whose images have regions without being opened, for the random LLM."""
    regions = regions_of_images(tmp_path)
    write_records(tmp_path / "records.jsonl", records_of_images(regions))
    monkeypatch.setattr(language, "smollm2_folder", lambda: llm_folder)
    monkeypatch.setattr(language, "FIRST_TUNED_LAYER", 2)
    monkeypatch.setattr(sources, "read_instances", lambda file: {})
    monkeypatch.setattr(
        sources,
        "load_regions",
        lambda load_opener, key, images, instances, cache: {image: regions[image] for image in images},
    )
    return tmp_path
