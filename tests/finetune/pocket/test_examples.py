"""Records as training examples."""

import torch

from assistant.pocket.region_encoder import SHAPE_DIM, EncodedRegions
from assistant.record import Record, RecordTarget
from finetune.image_record import ImageRecord
from finetune.pocket.examples import RecordData
from tests.helpers.pocket_records import regions_of_images


def test_a_follow_up_is_shown_its_history_in_the_pocket_form(tmp_path):
    image, of_image = next(iter(regions_of_images(tmp_path).items()))
    before = {"question": "where is the cat?", "answer": "I see the cat [SEG]; there is no cup [ABS]."}
    source = {"kind": "followup", "history": [before]}
    record = Record(
        "0.jpg", 60, 40, "and the dog?", "I see no dog [ABS].", [RecordTarget("dog", None)], source
    )
    count = len(of_image.rles)
    encoded = EncodedRegions(torch.zeros(count, 48), torch.zeros(count, SHAPE_DIM))
    data = RecordData([ImageRecord(record, image)], {image: of_image}, {image: encoded}, 0, {image})
    (question,) = data.example(0).questions
    assert question.history == [("where is the cat?", "cat [SEG], cup [ABS].")]
    assert question.answer == "dog [ABS]."
