"""`python -m finetune rehearsal`: a pack holds the regions of images and the questions about them."""

from pathlib import Path

import numpy as np
import pytest

from assistant.errors import BadInput
from assistant.record import Record, RecordTarget
from assistant.sam.mask_ops import encode_rle
from finetune.image_record import ImageRecord
from finetune.pocket.rehearsal import read_pack, select_varied, write_pack
from tests.helpers.pocket_records import records_of_images, regions_of_images


@pytest.fixture
def made(tmp_path):
    """The regions and the records of some images."""
    regions = regions_of_images(tmp_path)
    records = records_of_images(regions)
    return regions, [ImageRecord(record, (tmp_path / record.image).resolve()) for record in records]


def test_a_pack_holds_regions_and_questions(made, tmp_path):
    regions, records = made
    images = select_varied(records, 11)
    assert len(set(images)) == 11 and set(regions) > set(images)
    write_pack(tmp_path / "pack.npz", records, regions, images, "checksum")
    packed, packed_regions = read_pack(tmp_path / "pack.npz", "checksum")
    assert len(packed_regions) == 11
    assert len(packed) == len([record for record in records if record.image in images])
    for image, of_image in zip(images, packed_regions.values(), strict=True):
        error = (of_image.features - regions[image].features).abs().max()
        assert of_image.rles == regions[image].rles and of_image.names == regions[image].names
        assert error < 0.02

    def asked(records, image):
        of_image = [r.record for r in records if r.image == image]
        return [(r.question, r.answer, r.targets, r.source["categories"]) for r in of_image]

    assert asked(packed, list(packed_regions)[0]) == asked(records, images[0])
    assert not Path(packed[0].record.image).exists()


def test_images_with_as_many_categories_as_possible_are_selected():
    rle = encode_rle(np.ones((8, 8)))
    records = []
    for k, names in enumerate((["cat"], ["cat", "dog"], ["cat", "dog"], ["cup", "fork"])):
        targets = [RecordTarget(name, rle) for name in names] + [RecordTarget("gone", None)]
        record = Record(f"{k}", 8, 8, "?", "", targets, {"categories": [*names, "gone"]})
        records.append(ImageRecord(record, Path(record.image)))
    assert [str(image) for image in select_varied(records, 2)] == ["1", "3"]


def test_a_pack_that_cannot_be_used_is_one_line(made, tmp_path):
    regions, records = made
    file = tmp_path / "pack.npz"
    with pytest.raises(BadInput, match="give --rehearsal 0"):
        read_pack(file, "checksum")
    write_pack(file, records, regions, select_varied(records, 2), "another")
    with pytest.raises(BadInput, match="of another SAM"):
        read_pack(file, "checksum")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadInput, match="cannot be read"):
        read_pack(file, "checksum")
