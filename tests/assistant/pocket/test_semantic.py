"""The semantic map and the masks that follow from it."""

import json
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from assistant.errors import BadInput
from assistant.mllm.selector import Scores
from assistant.pocket.detector import MAP_CHANNELS, Detections, no_detections
from assistant.pocket.pixel_evidence import EVIDENCE_DIM, CellEvidence, cell_evidence
from assistant.pocket.region_features import STRIDE16_CHANNELS
from assistant.pocket.semantic import (
    MAP_SIDE,
    NECK_CHANNELS,
    TILE_WEIGHT,
    HeadInputs,
    PixelHead,
    SemanticHead,
    SemanticSelector,
    best_union,
)
from assistant.pocket.tiles import Tile
from assistant.sam.segmenter import Embedding
from assistant.weights import pocket_file


def masks_of(rows: list[int]) -> torch.Tensor:
    """(N, 4, 4) bool from the bits of N numbers."""
    bits = [[(row >> i) & 1 for i in range(16)] for row in rows]
    return torch.tensor(bits, dtype=torch.bool).view(-1, 4, 4)


some_masks = st.lists(st.integers(1, 2**16 - 1), min_size=1, max_size=7).map(masks_of)


def expected_iou(probability, mask):
    intersection = (probability * mask).sum()
    return float(intersection / (mask.sum() + probability.sum() - intersection))


@given(some_masks, st.integers(0, 2**31))
def test_no_single_proposal_and_no_smaller_union_would_be_expected_to_fit_better(masks, seed):
    p = torch.rand(4, 4, generator=torch.manual_seed(seed))
    chosen = best_union(p, masks)
    assert len(set(chosen)) == len(chosen) >= 1
    single = [expected_iou(p, mask) for mask in masks]
    assert single[chosen[0]] == pytest.approx(max(single), abs=1e-5)
    reached = [expected_iou(p, masks[chosen[: k + 1]].any(0)) for k in range(len(chosen))]
    assert reached == sorted(reached)


def test_a_map_of_names_averages_what_the_tiles_say_where_they_are(monkeypatch):
    semantic = SemanticSelector(SemanticHead(2, 1), PixelHead(), ["cup", "dog"])
    flat = {512: [0.0, -2.0, -4.0], 288: [-3.0, 0.0, -3.0]}  # of the whole image, and of a tile

    def log_names(embedding, detector_maps):
        values = torch.tensor(flat[max(embedding.size)])
        return values.log_softmax(0)[:, None, None].expand(-1, MAP_SIDE, MAP_SIDE).clone()

    monkeypatch.setattr(semantic, "_log_names", log_names)
    whole = Embedding(torch.zeros(1), (384, 512), (384, 512))
    tile = Tile(Embedding(torch.zeros(1), (288, 288), (512, 512)), (224, 0, 512, 288), (), no_detections())

    named = semantic.semantic_map(whole, (), [tile])

    of_whole, of_tile = (torch.tensor(flat[side]).log_softmax(0) for side in (512, 288))
    assert torch.allclose(named[:, 40, 10], of_whole, atol=1e-5)
    both = (of_whole + TILE_WEIGHT * of_tile) / (1 + TILE_WEIGHT)
    assert torch.allclose(named[:, 10, 50], both, atol=1e-5)
    assert torch.allclose(semantic.semantic_map(whole, ())[:, 10, 50], of_whole, atol=1e-5)


def test_the_parts_of_an_object_are_put_together_and_nothing_else():
    truth = torch.zeros(8, 8)
    truth[2:6, 1:7] = 1
    parts = torch.zeros(4, 8, 8, dtype=torch.bool)
    parts[0, 2:6, 1:4] = parts[1, 2:6, 4:7] = parts[2, 0:2] = parts[3] = True
    assert set(best_union(truth, parts)) == {0, 1}
    assert len(best_union(torch.zeros(8, 8), parts)) == 1


def random_scores(count: int) -> Scores:
    g = torch.manual_seed(0)
    return Scores(
        torch.rand(1, count, generator=g),
        torch.randn(1, count, generator=g),
        torch.randn(1, generator=g),
        -torch.rand(1, count, generator=g),
    )


def test_evidence_does_not_depend_on_the_order_of_proposals():
    shares = torch.linspace(0.2, 0.9, 9)[:, None, None]
    masks = torch.rand(9, 16, 16, generator=torch.manual_seed(1)) > shares
    semantic_map = torch.randn(4, MAP_SIDE, MAP_SIDE, generator=torch.manual_seed(2))
    rivals = torch.tensor([True, True, False, True])
    order = torch.randperm(9, generator=torch.manual_seed(3))
    scores = random_scores(9)
    evidence = cell_evidence(scores, 0, masks, semantic_map, 1, rivals)
    assert evidence.shape == (16, 16, EVIDENCE_DIM) and evidence.isfinite().all()
    reordered = Scores(*(s[:, order] if s.ndim == 2 else s for s in scores))
    same = cell_evidence(reordered, 0, masks[order], semantic_map, 1, rivals)
    assert torch.allclose(evidence, same, atol=1e-4)
    changed = semantic_map.clone()
    changed[2] += 5  # a name that was not taught together with the target's is no rival
    assert torch.equal(evidence, cell_evidence(scores, 0, masks, changed, 1, rivals))
    nowhere = torch.zeros(9, 16, 16, dtype=torch.bool)
    assert cell_evidence(scores, 0, nowhere, semantic_map, 1, rivals).isfinite().all()


def test_evidence_is_stacked_in_the_order_of_its_fields():
    """The weights know the figures by their places alone."""
    names = [field.name for field in fields(CellEvidence)]
    assert len(names) == EVIDENCE_DIM == 31
    figures = {name: torch.full((3,), float(k)) for k, name in enumerate(names)}
    assert CellEvidence(**figures).stack()[0].tolist() == list(range(31))
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = True
    scores = Scores(*(torch.tensor(s) for s in ([[0.25]], [[2.0]], [3.0], [[-0.5]])))
    evidence = cell_evidence(
        scores, 0, masks, torch.zeros(3, MAP_SIDE, MAP_SIDE), 0, torch.ones(3, dtype=torch.bool)
    )
    covered, uncovered = (dict(zip(names, cell.tolist(), strict=True)) for cell in evidence[0, :2])
    assert covered["highest_iop"] == covered["best_iop"] == covered["image_highest_iop"] == 2
    assert covered["mean_similarity"] == 0.25 and covered["best_quality"] == -0.5
    assert covered["presence"] == 3 and covered["has_name"] == 1
    assert uncovered["highest_iop"] == -8 and uncovered["smallest_similarity"] == -1
    assert uncovered["image_mean_inside"] == covered["image_mean_inside"] > 0.5


def test_names_that_were_taught_apart_are_no_rivals():
    head = SemanticHead(3, 2)
    head.together[0, :-1] = torch.tensor([True, True, False])
    head.together[1, :-1] = torch.tensor([False, True, True])
    assert head.rivals(0).tolist() == [True, True, False, True] and head.rivals(1).all()
    semantic = SemanticSelector(head, PixelHead(), ["Cat", "dog", "sky"])
    assert semantic.category_rows({"cat": 7, "sky": 2, "kitten": 7, "mast": 4}) == {7: 0, 2: 2}


def test_a_foreign_file_is_one_line(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2)}, file, {"semantic": json.dumps({"names": 2})})
    with pytest.raises(BadInput, match="fetch it again"):
        SemanticSelector.load(file)
    with pytest.raises(BadInput, match="fetch it again"):
        SemanticSelector.load(pocket_file("sam.safetensors"))


def head_inputs(seed):
    """Random maps of one image."""
    torch.manual_seed(seed)
    detector = tuple(torch.randn(1, MAP_CHANNELS, side, side) for side in (64, 32, 16))
    return HeadInputs(
        torch.randn(1, STRIDE16_CHANNELS, 32, 32), torch.randn(1, NECK_CHANNELS, 32, 32), detector
    )


def test_the_detector_joins_without_changing_a_head_that_did_without_it():
    torch.manual_seed(0)
    without = SemanticHead(2, 1, width=8).eval()
    having = SemanticHead(2, 1, width=8, detector=True).eval()
    having.load_state_dict(having.state_dict() | without.state_dict())
    inputs = head_inputs(1)
    having.start_detector(inputs)
    with torch.inference_mode():
        assert torch.allclose(having(inputs), without(inputs), atol=1e-5)
        having.detector["detector8"].weight.fill_(0.1)
        assert not torch.allclose(having(inputs), without(inputs), atol=1e-2)


@pytest.mark.parametrize("detector", [False, True])
def test_what_is_saved_is_loaded(tmp_path, detector):
    head = SemanticHead(2, 1, width=8, detector=detector)
    semantic = SemanticSelector(head, PixelHead(), ["cat", "dog"])
    semantic.save(tmp_path / "a.safetensors")
    loaded = SemanticSelector.load(tmp_path / "a.safetensors")
    assert loaded.categories == ["cat", "dog"]
    for before, after in ((semantic.head, loaded.head), (semantic.pixel_head, loaded.pixel_head)):
        values = zip(before.state_dict().values(), after.state_dict().values(), strict=True)
        assert all(torch.allclose(a.float(), b.float(), atol=1e-3) for a, b in values)


def test_what_the_detector_finds_marks_the_cells_of_its_box_and_of_the_proposal_that_fits():
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)  # cells of 32 px
    masks[0, 2:6, 2:6] = True
    masks[1, 10:12, 10:12] = True
    detected = Detections(torch.tensor([[64.0, 64.0, 192.0, 192.0]]), torch.tensor([0.8]), torch.tensor([0]))
    scores = Scores(*(torch.tensor(s) for s in ([[0.2, 0.1]], [[2.0, 1.0]], [3.0], [[0.0, 0.0]])))
    args = scores, 0, masks, torch.zeros(3, MAP_SIDE, MAP_SIDE), 0, torch.ones(3, dtype=torch.bool)
    names = [field.name for field in fields(CellEvidence)]

    def cell(evidence, y, x):
        return dict(zip(names, evidence[y, x].tolist(), strict=True))

    known = cell_evidence(*args, detected)
    inside, other = cell(known, 3, 3), cell(known, 10, 10)
    assert inside["highest_support"] == pytest.approx(0.8) == inside["highest_box_score"]
    assert other["highest_support"] == other["highest_box_score"] == 0
    assert other["image_highest_detection"] == pytest.approx(0.8) and other["has_category"] == 1
    nothing = cell(cell_evidence(*args, no_detections()), 3, 3)
    assert nothing["image_highest_detection"] == 0 and nothing["has_category"] == 1
    assert cell(cell_evidence(*args), 3, 3)["has_category"] == 0
