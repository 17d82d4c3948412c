"""Phase 1 of the records stage: names of few images."""

import pytest
import torch

from assistant.errors import BadInput
from assistant.pocket.llm import PocketLLM
from assistant.pocket.region_encoder import RegionEncoder
from finetune.image_record import ImageRecord
from finetune.pocket.encoder import train_encoders
from finetune.pocket.settings import EncoderSettings
from tests.helpers.pocket_records import records_of_images, regions_of_images
from tests.helpers.tiny_smollm2 import WIDTH

SETTINGS = EncoderSettings(steps=2)


@pytest.fixture
def llm(llm_folder):
    return PocketLLM.load(llm_folder, None, RegionEncoder(WIDTH))


def test_names_are_learned_from_a_single_image(llm, tmp_path):
    """The encoder of its fold has nothing else to learn from."""
    image, of_image = next(iter(regions_of_images(tmp_path).items()))
    records = [ImageRecord(record, image) for record in records_of_images({image: of_image})]
    encoded = train_encoders(SETTINGS, tmp_path, llm, records, {image: of_image})
    assert set(llm.phrase_rows) == set(of_image.names)
    embeddings = encoded[image].embeddings
    assert embeddings.shape == (len(of_image.rles), WIDTH) and embeddings.isfinite().all()
    again = train_encoders(SETTINGS, tmp_path, llm, records, {image: of_image})  # read from the file
    assert torch.equal(again[image].embeddings, embeddings)


def test_records_without_a_present_target_are_one_line(llm, tmp_path):
    image, of_image = next(iter(regions_of_images(tmp_path).items()))
    of_image.features, of_image.rles, of_image.names = (
        of_image.features[len(of_image.names) :],
        of_image.rles[len(of_image.names) :],
        [],
    )
    with pytest.raises(BadInput, match="no names to learn"):
        train_encoders(SETTINGS, tmp_path, llm, [], {image: of_image})
