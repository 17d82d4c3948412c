"""Phase 1 of `finetune records`: the region encoder learns the names of outlined regions, and what is a thing."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from assistant.files import replace_whole
from assistant.pocket.llm import PocketLLM, RegionEncoder, Seen
from assistant.record import Record
from finetune.log import rate
from finetune.pocket.examples import FOLDS
from finetune.region_cache import ImageRegions, iou_and_iop


def labelled(regions: ImageRegions, index: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each region: the name of what it outlines at IoU above one half (-1: nothing), and that IoU."""
    outlined = regions.rles[: len(regions.names)]
    if not outlined:
        return np.full(len(regions.rles), -1), np.zeros(len(regions.rles), np.float32)
    table = np.stack([iou_and_iop(regions.rles, o)[0] for o in outlined])
    which, best = table.argmax(0), table.max(0)
    label = np.array([index[regions.names[i]] for i in which])
    label[: len(outlined)] = [index[n] for n in regions.names]
    return np.where(best > 0.5, label, -1), best


def train_encoder(
    encoder: RegionEncoder,
    features: Tensor,
    label: Tensor,
    thing: Tensor,
    views: Tensor,
    view_label: Tensor,
    steps: int,
    lr: float,
    before: RegionEncoder | None = None,
) -> None:
    """Phase 1, on regions (N, REGION): `label` (N,) rows of the encoder's names, -1 = no name; `thing` (N,) in [0, 1].
    views: (V, REGION) more of what has a name, view_label (V,). before: what it goes on from; regions without a name keep
    the words they have there, and what was a thing stays one (few of the things in new pictures are outlined)."""
    label_of, known = label, (label >= 0).nonzero()[:, 0]
    named, label = torch.cat([features[known], views]), torch.cat([label[known], view_label])
    weight = label.bincount(minlength=len(encoder.names)).float().clamp(min=1).rsqrt()[label]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=lr, weight_decay=0.05)
    if before is not None:
        with torch.no_grad():
            old = before(features)
        thing = torch.where(label_of >= 0, thing, torch.maximum(thing, old.thing.sigmoid()))
    encoder.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 50) * lr
        some, every = torch.multinomial(weight, 192, True), torch.randint(len(features), (192,))
        seen = encoder(torch.cat([named[some], features[every]]))
        name = F.cross_entropy(
            encoder.name_logits(seen.words[:192], encoder.names), label[some], label_smoothing=0.05
        )
        is_thing = F.binary_cross_entropy_with_logits(seen.thing[192:], thing[every])
        loss = name + 0.5 * is_thing
        if before is not None:
            other = label_of[every] < 0
            kept = 1 - F.cosine_similarity(seen.words[192:], old.words[every], dim=-1)
            # What has no name here still bears the names it had, and none of the new (Li and Hoiem 2016): else all that is
            # not outlined is soon called by what is.
            said = before.name_logits(old.words[every], before.names).softmax(1)
            now = encoder.name_logits(seen.words[192:], encoder.names).log_softmax(1)[:, : said.shape[1]]
            loss = loss + ((5 * kept - (said * now).sum(1)) * other).sum() / other.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval().requires_grad_(False)


def vocabulary(records: list[Record], named: list[str]) -> tuple[list[str], list[str], dict[str, int]]:
    """What the encoder is taught to name: categories, how each is called in an answer, and {phrase: its row}.

    A category goes by the phrase that answers use when it is absent (that is never a plural), else by any.
    """
    categories = sorted(set(named))
    row = {c: i for i, c in enumerate(categories)}
    said: dict[str, Counter] = {c: Counter() for c in categories}
    forms = {c.lower(): i for c, i in row.items()}
    for record in records:
        for category, target in zip(record.source.get("categories", []), record.targets):
            if category in row and record.source.get("kind") not in ("position", "followup"):
                said[category][target.phrase] += 1 if target.rle else 1000
                forms[target.phrase.lower()] = row[category]
    return categories, [said[c].most_common(1)[0][0] if said[c] else c for c in categories], forms


def learn_to_see(
    args, llm: PocketLLM, records, regions: dict[Path, ImageRegions], before: RegionEncoder | None = None
) -> dict[Path, Seen]:
    """Phase 1: gives `reasoner` its encoder and forms; returns each picture as an encoder sees it that was not trained on
    it. Prints how often those name an outlined region rightly. before: an encoder to go on from, with the names that
    `reasoner.forms` lists; what they do not name comes after them."""
    categories, names, forms = vocabulary(
        [r for r, _ in records], [n for r in regions.values() for n in r.names]
    )
    said = llm.forms if before is not None else {}
    known = {c: said.get(c.lower(), said.get(n.lower())) for c, n in zip(categories, names)}
    new = [c for c in categories if known[c] is None]
    kept_names = before.names if before is not None else torch.zeros(0, llm.common.shape[0])
    taught = torch.cat(
        [kept_names, *(llm.spelled(n)[None] for c, n in zip(categories, names) if known[c] is None)]
    )
    index = {c: len(kept_names) + new.index(c) if known[c] is None else known[c] for c in categories}
    llm.forms = {f: index[categories[i]] for f, i in forms.items()} | said
    names = list(range(len(taught)))
    width = llm.model.get_base_model().config.hidden_size
    features = torch.cat([r.features for r in regions.values()])
    pairs = [labelled(r, index) for r in regions.values()]
    label, thing = (torch.from_numpy(np.concatenate(x)) for x in zip(*pairs))
    views = torch.cat([r.augmented for r in regions.values()])
    view_label = torch.tensor(
        [index[n] for r in regions.values() for n in r.augmented_names], dtype=torch.long
    )
    view_fold = torch.tensor(
        [i % FOLDS for i, r in enumerate(regions.values()) for _ in r.augmented_names], dtype=torch.long
    )
    fold = torch.cat([torch.full((len(r.features),), i % FOLDS) for i, r in enumerate(regions.values())])
    outlined = torch.cat([torch.arange(len(r.features)) < len(r.names) for r in regions.values()])
    file, encoders = (
        args.out / "encoder.safetensors",
        [RegionEncoder(width, len(names)) for _ in range(FOLDS + 1)],
    )
    kept = load_file(file) if file.exists() else {}
    for i, encoder in enumerate(encoders):
        if kept:
            encoder.load_state_dict(
                {k.removeprefix(f"{i}."): v for k, v in kept.items() if k.startswith(f"{i}.")}
            )
            encoder.eval().requires_grad_(False)
            continue
        if before is not None:
            encoder.load_state_dict(
                {k: v for k, v in before.state_dict().items() if k != "names"}, strict=False
            )
        else:
            encoder.mean.copy_(features.mean(0))
            encoder.scale.copy_(features.std(0) + 1e-3)
        encoder.names.copy_(taught)
        mine, also = fold != i, view_fold != i
        train_encoder(
            encoder,
            features[mine],
            label[mine],
            thing[mine],
            views[also],
            view_label[also],
            args.encoder_steps,
            getattr(args, "encoder_lr", 1e-3),
            before,
        )
    if not kept:
        with replace_whole(file) as path:
            save_file(
                {f"{i}.{k}": v for i, e in enumerate(encoders) for k, v in e.state_dict().items()}, path
            )
    llm.encoder = encoders[FOLDS]
    seen, right = {}, []
    with torch.no_grad():
        for i, (image, r) in enumerate(regions.items()):
            seen[image] = encoders[i % FOLDS](r.features)
        for i, encoder in enumerate(encoders[:FOLDS]):
            these = (fold == i) & outlined & (label >= 0)
            if these.any():
                said = encoder.name_logits(encoder(features[these]).words, encoder.names).argmax(1)
                right.append((said == label[these]).float())
    if right:
        print(
            f"names of outlined regions in pictures not trained on: {torch.cat(right).mean():.3f} right",
            flush=True,
        )
    return seen
