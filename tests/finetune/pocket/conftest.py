from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assistant.pocket import pipeline
from assistant.record import read_records, write_records
from assistant.sam.mask_ops import decode_rle
from finetune.pocket import language, sources
from tests.helpers.pocket_records import NAMES, records_of_images, regions_of_images
from tests.helpers.pocket_wheels import require_pocket_wheels
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
    for module in (language, pipeline):
        monkeypatch.setattr(module, "smollm2_folder", lambda: llm_folder)
    monkeypatch.setattr(language, "FIRST_TUNED_LAYER", 2)
    monkeypatch.setattr(sources, "read_instances", lambda file: {})
    monkeypatch.setattr(
        sources,
        "load_regions",
        lambda load_opener, key, images, instances, cache: {image: regions[image] for image in images},
    )
    return tmp_path


@pytest.fixture
def drawn(folder: Path) -> Path:
    """`folder` with its images, drawn: each name has its colour."""
    require_pocket_wheels()
    rows = read_records(folder / "records.jsonl")
    for image in {row.image for row in rows}:
        pixels = np.full((40, 60, 3), 120, np.uint8)
        for row in rows:
            if row.image == image and row.targets[0].rle:
                colour = np.eye(3, dtype=np.uint8)[NAMES.index(row.targets[0].phrase)] * 255
                pixels[decode_rle(row.targets[0].rle)] = colour
        Image.fromarray(pixels).save(folder / image)
    return folder


@pytest.fixture
def drawn_records(drawn: Path) -> Path:
    """The records file of `drawn`."""
    return drawn / "records.jsonl"
