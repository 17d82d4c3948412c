"""Batches and losses: what differs in size is padded, and a batch without targets counts like any other."""

import torch

from assistant.mllm.local_model import MultimodalLLM
from assistant.record import read_records
from finetune.image_record import ImageRecord, read_image_records
from finetune.mllm.batches import BatchReader, pad_and_concatenate
from finetune.mllm.lora import LoraSettings, start_model
from finetune.mllm.model import LLMWithSelector
from finetune.region_cache import ImageRegions
from tests.helpers import rectangles

FEATURES = 14  # of a proposal: 3 of the image, the rest of its shape


def test_padding_fills_the_end_of_every_dimension_but_the_first():
    joined = pad_and_concatenate([torch.ones(1, 2, 3), torch.ones(2, 3, 1)], 7)
    assert joined.shape == (3, 3, 3)
    assert (joined[0, :2] == 1).all() and (joined[0, 2] == 7).all()
    assert (joined[1:, :, 0] == 1).all() and (joined[1:, :, 1:] == 7).all()


def regions_of(image) -> ImageRegions:
    rles = [rectangles.encode_rle(rectangles.square(k)) for k in range(4)]
    return ImageRegions(torch.randn(4, FEATURES, generator=torch.manual_seed(len(image.name))), rles)


def test_a_batch_without_targets_trains_the_words_only(qwen, dataset):
    llm = MultimodalLLM.load(qwen)
    read_batch = BatchReader(llm, regions_of)
    selector, lora = start_model(llm, LoraSettings(4, 8, 0.0), [regions_of(dataset[0])], seed=0)
    model = LLMWithSelector(lora, selector, llm.seg, llm.abs).eval()
    asked = read_image_records(dataset[0])[0]
    record = read_records(dataset[0])[0]
    record.answer, record.targets = "I cannot tell.", []
    without = model(read_batch([[ImageRecord(record, asked.image)]]))
    assert without.counts.tolist()[1:] == [0, 0, 0, 0] and without.counts[0] > 0
    assert without.sums[0] > 0 and (without.sums[1:] == 0).all() and without.scores is None
    assert 0 <= without.correct_words <= without.counts[0] and without.correct_markers == 0
    both = model(read_batch([[ImageRecord(record, asked.image)], [asked]]))
    alone = model(read_batch([[asked]]))
    torch.testing.assert_close(both.sums[0], without.sums[0] + alone.sums[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.sums[1:], alone.sums[1:], rtol=1e-4, atol=1e-4)
    assert both.correct_words == without.correct_words + alone.correct_words
