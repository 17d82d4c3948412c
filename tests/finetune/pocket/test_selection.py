"""Phase 3 of the records stage: the selector."""

import json

import torch

from assistant.pocket.llm import PocketLLM
from assistant.pocket.region_encoder import RegionEncoder
from finetune.image_record import ImageRecord
from finetune.pocket.examples import RecordData
from finetune.pocket.selection import train_selector
from finetune.pocket.settings import SelectorSettings
from tests.helpers.pocket_records import records_of_images, regions_of_images
from tests.helpers.tiny_smollm2 import WIDTH

SETTINGS = SelectorSettings(examples=4, held_out_examples=3, steps=6, validate_every=2, log_every=1)


def test_a_validation_does_not_change_the_training(llm_folder, tmp_path):
    """Not even where it draws random numbers, as in a run that continues and loads its models then."""
    torch.manual_seed(0)
    llm = PocketLLM.load(llm_folder, None, RegionEncoder(WIDTH))
    regions = regions_of_images(tmp_path)
    made = records_of_images(regions)
    records = [ImageRecord(record, (tmp_path / record.image).resolve()) for record in made]
    with torch.no_grad():
        encoded = {image: llm.encoder(of_image.features) for image, of_image in regions.items()}
    images = list(regions)
    training = RecordData(records, regions, encoded, 0, images[:9])
    held_out = RecordData(records, regions, encoded, 0, images[9:])
    steps = []

    def train(folder, draws: int) -> list[dict]:
        """Train, with a validation that draws so many numbers; returns the log without its times."""
        folder.mkdir()

        def validate(step, selector, figures):
            steps.append(step)
            torch.rand(draws)

        train_selector(SETTINGS, folder, llm, training, held_out, validate=validate)
        rows = [json.loads(line) for line in (folder / "selector.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    assert train(tmp_path / "quiet", 0) == train(tmp_path / "drawing", 5)
    assert steps == [2, 4, 6, 2, 4, 6]
