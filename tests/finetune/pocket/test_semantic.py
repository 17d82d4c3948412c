"""The map of names, the masks that follow from it, and `python -m finetune semantic`."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from assistant.errors import BadInput
from assistant.mllm.selector import Scores, select_proposals
from assistant.pocket.semantic import FEATURES, SIDE, PixelHead, Semantic, SemanticHead, best_union, evidence
from assistant.record import read_records
from assistant.sam.mask_ops import decode_rle, encode_rle
from assistant.weights import pocket_file
from finetune import __main__ as command
from finetune.log import Log
from finetune.pocket import pixels as pixels_stage
from finetune.pocket import records, semantic
from tests.finetune.pocket.test_records import NAMES, arguments, llm_folder, setting  # noqa: F401

masks = st.lists(st.integers(1, 2**16 - 1), min_size=1, max_size=7).map(
    lambda rows: torch.tensor([[(row >> i) & 1 for i in range(16)] for row in rows], dtype=torch.bool).view(
        -1, 4, 4
    )
)


def expected(p, mask):
    inter = (p * mask).sum()
    return float(inter / (mask.sum() + p.sum() - inter))


@given(masks, st.integers(0, 2**31))
def test_no_single_proposal_and_no_step_back_would_be_expected_to_fit_better(some, seed):
    p = torch.rand(4, 4, generator=torch.manual_seed(seed))
    chosen = best_union(p, some)
    assert len(set(chosen)) == len(chosen) >= 1
    alone = [expected(p, m) for m in some]
    assert alone[chosen[0]] == pytest.approx(max(alone), abs=1e-5)
    reached = [expected(p, some[chosen[: k + 1]].any(0)) for k in range(len(chosen))]
    assert reached == sorted(reached)


def test_the_parts_of_a_thing_are_put_together_and_nothing_else():
    truth = torch.zeros(8, 8)
    truth[2:6, 1:7] = 1
    parts = torch.zeros(4, 8, 8, dtype=torch.bool)
    parts[0, 2:6, 1:4], parts[1, 2:6, 4:7], parts[2, 0:2], parts[3] = True, True, True, True
    assert set(best_union(truth, parts)) == {0, 1}
    assert len(best_union(torch.zeros(8, 8), parts)) == 1


def scores_of(n: int, seed: int = 0) -> Scores:
    g = torch.manual_seed(seed)
    return Scores(
        torch.rand(1, n, generator=g),
        torch.randn(1, n, generator=g),
        torch.randn(1, generator=g),
        -torch.rand(1, n, generator=g),
    )


def test_evidence_does_not_depend_on_the_order_of_proposals():
    some = torch.rand(9, 16, 16, generator=torch.manual_seed(1)) > torch.linspace(0.2, 0.9, 9)[:, None, None]
    names = torch.randn(4, SIDE, SIDE, generator=torch.manual_seed(2))
    beside = torch.tensor([True, True, False, True])
    order = torch.randperm(9, generator=torch.manual_seed(3))
    scores = scores_of(9)
    told = evidence(scores, 0, some, names, 1, beside)
    other = Scores(*(s[:, order] if s.ndim == 2 else s for s in scores))
    assert told.shape == (16, 16, FEATURES) and told.isfinite().all()
    assert torch.allclose(told, evidence(other, 0, some[order], names, 1, beside), atol=1e-4)
    changed = names.clone()
    changed[2] += 5  # not taught together with it: no rival
    assert torch.equal(told, evidence(scores, 0, some, changed, 1, beside))
    nowhere = evidence(scores, 0, torch.zeros(9, 16, 16, dtype=torch.bool), names, 1, beside)
    assert nowhere.isfinite().all()


def test_cells_are_labelled_where_things_are():
    image = np.zeros((100, 200, 3), np.uint8)
    image[50:, 100:] = 255
    big, small = np.zeros((100, 200), bool), np.zeros((100, 200), bool)
    big[50:, 100:], small[80:, 180:] = True, True
    square, labels = semantic.labelled_view(image, [("small", small), ("big", big)], {"big": 0, "small": 1})
    assert square.shape == (512, 512, 3) and (square[256:] == 127).all()
    assert (labels[32:] == semantic.OUTSIDE).all() and (labels[:16] == semantic.NONE).all()
    assert labels[20, 40] == 0 and labels[30, 62] == 1
    white = square[:256].max(-1) > 200
    assert (white[4::8, 4::8] == (labels[:32] >= 0)).mean() > 0.99


def test_a_view_keeps_labels_with_the_picture(tmp_path):
    mask = np.zeros((90, 120), bool)
    mask[20:70, 30:80] = True
    image = np.where(mask[..., None], 250, 5).astype(np.uint8).repeat(3, 2)
    Image.fromarray(image).save(tmp_path / "a.png")
    views = semantic.Views(
        {tmp_path / "a.png": ([("thing", encode_rle(mask))], 0)},
        [tmp_path / "a.png"],
        [0] * 6,
        {"thing": 0},
        0,
    )
    seen = [views[n] for n in range(6)]
    for square, labels, number in seen:
        bright = square.max(-1)[4::8, 4::8] > 90
        assert number == 0 and ((bright & (labels >= 0)).sum() > 0.9 * (labels >= 0).sum())
    assert any((a[1] != b[1]).any() for a, b in zip(seen, seen[1:]))
    assert all((x == y).all() if hasattr(x, "all") else x == y for x, y in zip(seen[0], views[0]))


def test_masks_and_cells_have_the_same_grid():
    for h, w in ((300, 400), (512, 200), (77, 1000)):
        mask = np.zeros((h, w), bool)
        mask[h // 4 : h // 2, w // 4 :] = True
        grid = pixels_stage.on_grid([encode_rle(mask)])[0]
        scale = max(h, w) / 512
        ys, xs = (np.flatnonzero(grid.any(axis).numpy()) for axis in (1, 0))
        for got, want in ((ys[0], h // 4), (ys[-1] + 1, h // 2), (xs[0], w // 4), (xs[-1] + 1, w)):
            assert abs(got * 4 * scale - want) <= 4 * scale


def test_names_that_were_taught_apart_are_no_rivals():
    head = SemanticHead(3, 2)
    head.together[0, :-1], head.together[1, :-1] = (
        torch.tensor([True, True, False]),
        torch.tensor([False, True, True]),
    )
    assert head.beside(0).tolist() == [True, True, False, True] and head.beside(1).all()
    both = Semantic(head, PixelHead(), ["Cat", "dog", "sky"])
    assert both.rows({"cat": 7, "sky": 2, "kitten": 7, "mast": 4}) == {7: 0, 2: 2}


def test_a_foreign_file_is_one_line(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {"semantic": json.dumps({"names": 2})})
    with pytest.raises(BadInput, match="fetch it again"):
        Semantic.load(tmp_path / "a.safetensors")
    with pytest.raises(BadInput, match="fetch it again"):
        Semantic.load(pocket_file("sam.safetensors"))


@pytest.fixture
def world(setting):
    """The pictures of the records stage's tests, drawn: each kind of thing in its colour, named in one file."""
    rows = read_records(setting / "records.jsonl")
    for image in {row.image for row in rows}:
        pixels = np.full((40, 60, 3), 120, np.uint8)
        for row in rows:
            if row.image == image and row.targets[0].rle:
                mask = decode_rle(row.targets[0].rle)
                pixels[mask] = np.eye(3, dtype=np.uint8)[NAMES.index(row.targets[0].phrase)] * 255
        Image.fromarray(pixels).save(setting / image)
    return setting


def words(world, out, *more) -> list[str]:
    return [
        "semantic",
        "--data",
        str(world / "records.jsonl"),
        "--sam",
        str(pocket_file("sam.safetensors")),
        "--reasoner",
        str(world / "reasoner"),
        "--out",
        str(out),
        "--steps",
        "14",
        "--batch",
        "2",
        "--lr",
        "3e-3",
        "--pixel-steps",
        "12",
        "--questions",
        "6",
        "--workers",
        "0",
        "--save-every",
        "0",
        *more,
    ]


def test_the_stage_learns_where_names_are_and_goes_on_where_it_stopped(world, capsys, monkeypatch):
    assert command.main(words(world, world / "whole")) == 2  # before the records stage
    assert "there is no" in capsys.readouterr().err
    records.main(arguments(world, world / "reasoner"))
    assert command.main(words(world, world / "whole", "--steps", "0")) == 2
    assert "--steps must be at least 1" in capsys.readouterr().err
    add = Log.add

    def stop(log, step, *more, **options):
        if step == 8 and log.file.name == "head.jsonl":
            raise KeyboardInterrupt
        add(log, step, *more, **options)

    monkeypatch.setattr(Log, "add", stop)
    assert command.main(words(world, world / "parts")) == 130
    monkeypatch.setattr(Log, "add", add)
    assert command.main(words(world, world / "parts")) == 0
    assert "resuming the semantic head at step 8" in capsys.readouterr().out
    assert command.main(words(world, world / "whole")) == 0
    whole, parts = (torch.load(world / f / "head.pt", weights_only=True)["model"] for f in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    made = Semantic.load(world / "whole/semantic.safetensors")
    assert made.categories == NAMES
    opener = semantic.load_pocket_opener(pocket_file("sam.safetensors"))
    rows = read_records(world / "records.jsonl")
    right = []
    for row in [r for r in rows if r.targets[0].rle][:8]:
        names = made.names(opener.segmenter.encode(np.array(Image.open(world / row.image).convert("RGB"))))
        told = names.argmax(0)[pixels_stage.on_grid([row.targets[0].rle])[0][::2, ::2]]
        right.append((told == NAMES.index(row.targets[0].phrase)).float().mean())
    assert np.mean(right) > 0.5  # of four answers


def test_the_pocket_takes_the_map_where_it_knows_the_name():
    from skimage.data import chelsea

    from assistant.scene import Assistant

    assistant = Assistant.from_preset("pocket")
    pocket, scene = assistant.pipeline, assistant.open(chelsea())
    view, n = scene.opened, len(scene.opened.proposals.rles)
    scores = scores_of(n, 4)
    known, unknown = pocket.choose(scores, "cat", view), pocket.choose(scores, "gizmo", view)
    assert unknown == select_proposals(scores, 0) and view.names is not None and set(known) <= set(range(n))
    everywhere = torch.full_like(view.names, -9.0)
    everywhere[pocket.rows[pocket.llm.row("cat")], 20:40, 20:40] = 9.0
    cat, view.names = view.names, everywhere
    elsewhere = pocket.choose(scores, "cat", view)
    low = torch.from_numpy(view.proposals.low_res_logits) > 0
    inside = lambda chosen: low[chosen].any(0)[40:80, 40:80].float().mean()
    assert inside(elsewhere) > 0.5
    view.names = cat
