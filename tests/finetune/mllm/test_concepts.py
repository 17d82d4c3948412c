"""Tuning on what a concept segmenter finds by the names in the records, and asking with what was tuned."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from assistant.loading import concepts, pipelines, sams
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.trained import TrainedImageOpener, TrainedPipeline, load_trained_pipeline
from assistant.pipeline import Reply
from assistant.scene import Assistant
from finetune import __main__ as command
from finetune.mllm.data import phrases_by_image
from finetune.region_cache import RegionCache, RegionSource, fill_cache
from tests.helpers import rectangles
from tests.helpers.refusals import refusal
from tests.helpers.tuning_runs import command_line, lines

FINDER = "rectangle/finder"


@pytest.fixture(autouse=True)
def finder(monkeypatch):
    """Let every concept segmenter be the one that finds the rectangles; it counts what is opened."""
    made = rectangles.RectangleFinder()
    monkeypatch.setattr(concepts, "load_concept_segmenter", lambda name, opener: (made, name))
    monkeypatch.setattr(concepts, "concepts_checksum", lambda name: name)
    monkeypatch.setattr(pipelines, "load_concept_segmenter", lambda name, opener: (made, name))
    monkeypatch.setattr(pipelines, "concepts_checksum", lambda name: name)
    monkeypatch.setattr(pipelines, "sam_checksum", lambda sam: "rectangles")
    monkeypatch.setattr(
        pipelines, "load_image_opener", lambda sam, device: sams.load_image_opener(sam, device)
    )
    return made


def test_training_and_asking_select_among_what_is_found_by_name(qwen, dataset, tmp_path, finder):
    data, out = dataset[0], tmp_path / "out"
    more = ("--max-steps", "12", "--log-every", "4", "--warm-up", "2", "--micro", "4", "--concepts", FINDER)
    assert command.main(command_line(qwen, data, out, *more)) == 0
    losses = [line["text"] for line in lines(out / "log.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    assert finder.passes == 6 * len(rectangles.COLOURS)  # every colour is asked for in each of six images
    with safe_open(out / "heads.safetensors", "pt") as file:
        about = json.loads(file.metadata()["tuned"])
    assert (about["concepts"], about["concepts_sha256"]) == (FINDER, FINDER) and FINDER in about["regions"]
    assert f"--concepts {FINDER} --adapter FOLDER" in (out / "README.md").read_text()

    pipeline, weights = pipelines.load_pipeline(str(qwen), "none", out, device="cpu")
    assert isinstance(pipeline, TrainedPipeline) and pipeline.concepts is finder and weights["concepts"]
    scene = Assistant(pipeline, weights, threshold=0.0).open(data.parent / "train0.png")
    pipeline.llm.reply = lambda turns, **options: named_reply(pipeline)
    answer = scene.ask("where is the red one?")
    assert [target.phrase for target in answer.targets] == ["red", "blue"]
    assert answer.searched == [["red"], ["blue"]] and answer.cost.passes == 2
    found = np.any([finder.find(scene.opened, colour).union() for colour in ("red", "blue")], axis=0)
    assert all(target.present and target.proposals == [] for target in answer.targets)
    assert (answer.mask <= found).all() and answer.mask.sum() % rectangles.SQUARE_SIDE**2 == 0
    for name, wrong in (("another", "another/finder"), ("everything mode", None)):
        line = refusal(lambda wrong=wrong: train_on(qwen, data, out, tmp_path / "more", wrong))
        assert f"was trained on what {FINDER} finds, not {name}" in line and f"--concepts {FINDER}" in line
    line = refusal(lambda: pipelines.load_pipeline(str(qwen), "none", out, concepts="another/finder"))
    assert f"give --concepts {FINDER}" in line


def named_reply(pipeline):
    """A reply that names two colours, with random states of its markers."""
    states = torch.randn(2, pipeline.selector.config["state_dim"], generator=torch.manual_seed(0))
    return Reply("red [SEG], blue [SEG].", 4, [True, True], states, torch.zeros(2))


def train_on(qwen, data, adapter, out, concepts):
    """Go on from an adapter with another concept segmenter."""
    more = ["--concepts", concepts] if concepts else []
    command.run(command_line(qwen, data, out, "--max-steps", "1", "--adapter", str(adapter), *more))


def test_regions_are_stored_by_what_is_looked_for(dataset, tmp_path, finder):
    from assistant.mllm.trained import PhraseImageOpener

    files = list(dataset)
    phrases = phrases_by_image(files)
    assert set(map(frozenset, phrases.values())) == {frozenset(rectangles.COLOURS)}
    image = next(iter(phrases))
    opener = PhraseImageOpener(TrainedImageOpener(rectangles.RectangleOpener()), finder)
    cache = RegionCache(tmp_path / "cache")

    def fill(wanted):
        before = finder.passes
        fill_cache(RegionSource("key", lambda: opener, {image: wanted}), [image], cache)
        return finder.passes - before

    assert [fill({"red", "blue"}), fill({"blue", "red"}), fill({"red"}), fill(())] == [2, 0, 1, 0]
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 3


def test_nothing_found_is_absent(qwen, dataset, tmp_path, finder):
    """An image in which nothing at all is found has no proposals, and every target of it is absent."""
    out = tmp_path / "out"
    assert command.main(command_line(qwen, dataset[0], out, "--max-steps", "1", "--concepts", FINDER)) == 0
    pipeline = load_trained_pipeline(MultimodalLLM.load(qwen), rectangles.RectangleOpener(), out, finder)
    scene = Assistant(pipeline, {}).open(np.full((64, 64, 3), 10, np.uint8))
    answer = scene.ask("where is the red one?", max_new_tokens=8)
    assert not answer.present


def test_the_pocket_preset_takes_no_other_proposals(dataset, tmp_path, capsys):
    words = ["--data", str(dataset[0]), "--out", str(tmp_path), "--concepts", FINDER]
    assert command.main(words) == 2
    assert "leave out --concepts" in capsys.readouterr().err
