"""The selector learns on a toy problem, and neither padding nor order changes what it says."""

import torch

from assistant.mllm.selector import Scores, Selector, select_proposals, selection_losses


def problem(seed: int, count: int = 12):
    """States that ask for one kind of region among three; a third of the targets are absent."""
    g = torch.Generator().manual_seed(seed)
    kinds = torch.eye(3)[torch.randint(0, 3, (count, 8), generator=g)]
    wanted = torch.randint(0, 3, (count,), generator=g)
    absent = torch.rand(count, generator=g) < 0.33
    match = kinds.argmax(-1) == wanted[:, None]
    kinds[match & absent[:, None]] = 0.0
    truth = (match & ~absent[:, None]).float()
    regions = torch.cat([kinds, 0.1 * torch.randn(count, 8, 5, generator=g)], -1)
    return torch.eye(3)[wanted], regions, torch.zeros(count, 8, 2), truth


def test_it_learns_to_select_all_that_is_meant_and_to_say_when_nothing_is():
    torch.manual_seed(0)
    selector = Selector(3, 8, 2, width=32, depth=1, dropout=0.0)
    optimizer = torch.optim.AdamW(selector.parameters(), 3e-3)
    ignored = torch.zeros(48, 8, dtype=torch.bool)
    for step in range(150):
        states, regions, shapes, truth = problem(step, 48)
        losses = selection_losses(selector(states, regions, shapes), truth, truth, truth.any(1), ignored)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    selector.eval()
    states, regions, shapes, truth = problem(10_000, 48)
    with torch.no_grad():
        scores = selector(states, regions, shapes)
    present = truth.any(1)
    assert ((scores.presence > 0) == present).float().mean() > 0.9
    right = [
        set(select_proposals(scores, k)) == set(truth[k].nonzero()[:, 0].tolist())
        for k in range(48)
        if present[k]
    ]
    assert sum(right) / len(right) > 0.9


def test_padding_changes_nothing():
    torch.manual_seed(1)
    selector = Selector(6, 8, 2, width=16).eval()
    states, regions, shapes = torch.randn(2, 6), torch.randn(2, 5, 8), torch.randn(2, 5, 2)
    ignored = torch.zeros(2, 9, dtype=torch.bool)
    ignored[:, 5:] = True
    padded = [torch.cat([x, torch.randn(2, 4, x.shape[-1])], 1) for x in (regions, shapes)]
    with torch.no_grad():
        plain = selector(states, regions, shapes)
        padded_scores = selector(states, *padded, ignored=ignored)
    torch.testing.assert_close(plain.iop, padded_scores.iop[:, :5], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.presence, padded_scores.presence, atol=1e-5, rtol=1e-4)
    assert (padded_scores.iop[:, 5:] == -20).all()


def test_order_of_proposals_does_not_matter():
    torch.manual_seed(2)
    selector = Selector(6, 8, 2, width=16).eval()
    states, regions, shapes = torch.randn(1, 6), torch.randn(7, 8), torch.randn(7, 2)
    order = torch.randperm(7)
    with torch.no_grad():
        a, b = selector(states, regions, shapes), selector(states, regions[order], shapes[order])
    torch.testing.assert_close(a.iop[:, order], b.iop, atol=1e-5, rtol=1e-4)


def test_the_losses_are_smallest_for_the_truth():
    truth = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    ignored, present = torch.zeros(2, 3, dtype=torch.bool), torch.tensor([True, False])
    right = Scores(truth * 2 - 1, truth * 16 - 8, torch.tensor([6.0, -6.0]), truth * 0)
    wrong = Scores(-right.similarity, -right.iop, -right.presence, truth * 0)
    good, bad = (selection_losses(s, truth, truth, present, ignored) for s in (right, wrong))
    assert all(good[k] < bad[k] for k in good) and sum(good.values()) < 0.01
