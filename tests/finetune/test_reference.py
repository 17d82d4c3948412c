"""Training of few-shot segmentation on tiny models: episodes, resuming, and what is learned."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from assistant.errors import BadInput
from assistant.few_shot.match_inputs import match_inputs
from assistant.few_shot.matcher import Matcher
from assistant.few_shot.prompt_encoder import PromptEncoder
from assistant.sam.backends import OfficialSegmenter
from finetune import reference, reference_training
from finetune.reference_data import (
    CachedEpisode,
    CachedView,
    cache_episodes,
    labels_in,
    load_episodes,
    read_inputs,
    sample_batch,
    sample_episodes,
    training_labels,
)
from finetune.reference_training import step_loss
from tests.helpers.few_shot import write_boxes
from tests.helpers.tiny_matchers import tiny_clip
from tests.helpers.tiny_sams import tiny_official_sam


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("sam") / "sam.pth"
    torch.save(tiny_official_sam().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Ten small images in COCO's layout: a red or a blue box, each a category."""
    return write_boxes(tmp_path_factory.mktemp("boxes"), 10)


def arguments(root: Path, out: Path, clip: Path, sam: Path, *more: str) -> argparse.Namespace:
    """The command line of a short training."""
    parser = argparse.ArgumentParser()
    reference.add_arguments(parser)
    words = (
        f"--data {root} --out {out} --clip {clip} --sam {sam} --views 1 --batch 2 --save-every 0 --lr 3e-3"
    )
    return parser.parse_args([*words.split(), *more])


def test_training_lowers_the_loss_and_resumes_to_the_same_weights(root, tmp_path, clip, sam, stopped, capsys):
    more = ["--looks", str(tmp_path / "looks"), "--steps", "8", "--alone", "0.5", "--episodes", "24"]
    reference.main(arguments(root, tmp_path / "whole", clip, sam, *more))
    stopped(
        reference_training,
        "sample_batch",
        6,
        lambda: reference.main(arguments(root, tmp_path / "parts", clip, sam, *more)),
    )
    assert "resuming" not in capsys.readouterr().out
    reference.main(arguments(root, tmp_path / "parts", clip, sam, *more))
    assert "resuming at step 5" in capsys.readouterr().out
    whole, parts = (load_file(tmp_path / k / "reference.safetensors") for k in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)

    trained = Matcher.load(tmp_path / "whole", OfficialSegmenter.from_checkpoint(sam))
    files = sorted((tmp_path / "looks").glob("*-0.*"))
    views = [CachedView(file, k, labels_in(file)) for k, file in enumerate(files)]
    sampled = [e for e in sample_episodes(views, 9, 20) if len(e.references) == 1][:8]
    episodes, targets = load_episodes(trained, sampled)
    inputs = match_inputs(episodes, trained.encoders["text"], trained.extractor)
    # the cache holds what is computed from the episodes
    cached, cached_targets = read_inputs(cache_episodes(trained, "key", sampled, tmp_path / "episodes"))
    assert torch.allclose(cached_targets, targets, atol=0.01)
    assert all(torch.allclose(a, b, atol=0.01, rtol=0.01) for a, b in zip(cached, inputs, strict=True))
    # the loss on fixed episodes is smaller with the trained weights than with new ones
    queries = [episode.query for episode in episodes]
    for name, encoder in trained.encoders.items():
        given = inputs if name == "text" else inputs.without_labels()
        untrained = PromptEncoder(**encoder.settings).eval()
        with torch.no_grad():
            before, after = (
                float(step_loss(trained, e, given, queries, targets)[0]) for e in (untrained, encoder)
            )
        assert after < 0.97 * before, (name, before, after)


def test_episodes_never_show_the_query_and_leave_the_fold_out(root, tmp_path, sam):
    views = [CachedView(tmp_path / f"{k}", k // 2, ("cup",) if k % 4 < 2 else ("car",)) for k in range(20)]
    sampled = sample_episodes(views, 0, 160)
    assert {len(e.references) for e in sampled} == {1, 2, 3}
    assert {e.label for e in sampled} == {"cup", "car"}
    assert all(e.label in v.labels and v.image != e.query.image for e in sampled for v in e.references)
    assert sampled == sample_episodes(views, 0, 160)
    assert sampled != sample_episodes(views, 1, 160)
    episodes = [CachedEpisode(e.query.file, e.label, e.query, len(e.references)) for e in sampled]
    batch = sample_batch(episodes, 0, 5, 6)
    assert batch == sample_batch(episodes, 0, 5, 6)
    assert len({e.shots for e in batch}) == 1 and len(batch) == 6
    assert training_labels([root], 0) == {"car"}
    assert training_labels([root], None) == {"cup", "car"}
    with pytest.raises(BadInput, match="no category"):
        sample_episodes(views[:2], 0, 5)
    with pytest.raises(BadInput, match="needs? the pocket SAM|need the pocket SAM"):
        reference.load_frozen_parts(sam=str(sam), clip=None)
