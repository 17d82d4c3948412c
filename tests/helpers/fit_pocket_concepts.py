"""Fits what `assistant.pocket.concepts` makes of its evidence: its constants PROPOSAL_WEIGHTS, IMAGE_WEIGHTS.

    python -m tests.helpers.fit_pocket_concepts --root DATA/voc/train --images 150

The photos must show every object of their categories outlined, and must not have trained the weights.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.images import open_image
from assistant.pocket.concepts import PocketConcepts
from assistant.pocket.opening import PocketSamOpener
from assistant.sam.mask_ops import Rle, decode_rle, encode_rle, rle_iou
from assistant.weights import pocket_file

ABSENT_NAMES = 3  # per photo
DECAY = 1e-3  # of the weights, per row
MIN_IOU = 0.5  # with an instance, from which a proposal shows it


def outlines(folder: Path) -> tuple[dict[str, dict[str, list[Rle]]], list[str]]:
    """{file: {category: masks}} of a COCO-format folder, and its categories."""
    from pycocotools.coco import COCO

    coco = COCO(folder / "instances.json")
    names = {c["id"]: c["name"] for c in coco.dataset["categories"]}
    found: dict[str, dict[str, list[Rle]]] = {}
    for image in coco.dataset["images"]:
        rows = found.setdefault(image["file_name"], {})
        for annotation in coco.imgToAnns[image["id"]]:
            mask = decode_rle(coco.annToRLE(annotation))
            rows.setdefault(names[annotation["category_id"]], []).append(encode_rle(mask))
    return found, list(names.values())


def fitted(features: Tensor, target: Tensor, weight: Tensor) -> list[float]:
    """Logistic weights, the bias first, of features (K, F) for targets (K,) in [0, 1]."""
    inputs = torch.cat([torch.ones(len(features), 1), features], 1)
    weights = torch.zeros(inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(inputs @ weights, target, weight)
        loss = loss + DECAY * weights[1:].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return [round(float(w), 3) for w in weights.detach()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a COCO-format folder")
    parser.add_argument("--images", type=int, default=150)
    options = parser.parse_args()
    opener = PocketSamOpener(pocket_file("sam.safetensors"))
    concepts = PocketConcepts.load(opener.opener)
    found, categories = outlines(options.root)
    rng = random.Random(0)
    files = sorted(found)
    rng.shuffle(files)
    rows, ious, owners, logs, there = [], [], [], [], []
    for file in files[: options.images]:
        opened = opener.open(open_image(options.root / "images" / file))
        absent = [name for name in categories if name not in found[file]]
        for name in [*found[file], *rng.sample(absent, min(ABSENT_NAMES, len(absent)))]:
            row = concepts.row_of(name)
            if row is None:
                continue
            evidence, log_evidence = concepts.evidence(opened, row)
            truths = found[file].get(name, [])
            best = (
                rle_iou(opened.proposals.rles, truths).max(1) if truths else np.zeros(len(opened.proposals))
            )
            rows.append(torch.stack(list(evidence), 1))
            ious.append(torch.from_numpy(best).float())
            owners += [len(there)] * len(best)
            logs.append(log_evidence)
            there.append(bool(truths))
    features, is_instance = torch.cat(rows), (torch.cat(ious) >= MIN_IOU).float()
    proposal_weights = fitted(features, is_instance, torch.ones(len(features)))
    inputs = torch.cat([torch.ones(len(features), 1), features], 1) @ torch.tensor(proposal_weights)
    best_logits = [float(inputs[torch.tensor(owners) == k].max()) for k in range(len(there))]
    present = torch.tensor(there).float()
    weight = torch.where(present > 0, 0.5 / present.mean(), 0.5 / (1 - present.mean()))
    image_weights = fitted(torch.tensor(list(zip(best_logits, logs, strict=True))), present, weight)
    print(
        json.dumps(
            {"PROPOSAL_WEIGHTS": proposal_weights, "IMAGE_WEIGHTS": image_weights, "names": len(there)}
        )
    )


if __name__ == "__main__":
    main()
