"""Train the heads of `assistant.pocket.semantic`, after the records stage:

1. the semantic head learns which taught name every place of a picture bears, from what is outlined, in views that are drawn
   anew each time;
2. the pixel head learns to weigh its map with the selector's scores, on the pictures that the records stage kept aside:
   neither the map nor the selector has learned those.

    python -m finetune semantic --data runs/q/{coco,camvid,clothing}/records.jsonl --named DATA/coco/train/instances.json \\
        --sam assistant/pocket/sam.safetensors --reasoner runs/reasoner --out runs/semantic

The same command again resumes. Names of one records file compete with each other only: what another file outlines may lie
unnamed in its pictures. Losses: cross-entropy, names of few places counting more (1); soft IoU and cross-entropy (2).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from assistant.errors import BadInput
from assistant.files import make_folder, replace_whole
from assistant.images import open_image
from assistant.pocket.opening import fast_math, load_pocket_opener, shrink
from assistant.pocket.region_features import normalise
from assistant.pocket.sam import IMAGE_SIZE
from assistant.pocket.semantic import SIDE, SemanticHead
from assistant.record import image_path, read_records
from assistant.sam.mask_ops import decode_rle, pad_to_square
from finetune.check import must_exist
from finetune.log import Log, rate
from finetune.pocket.examples import KEPT_ASIDE
from finetune.pocket.outlined import named_regions, other_view, outlined
from finetune.pocket.records import add_sources

NONE, OUTSIDE = -1, -2  # labels of a cell: it bears no name; it is not learned
CELL = IMAGE_SIZE // SIDE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sources(parser)
    parser.add_argument("--reasoner", type=Path, required=True, help="what the records stage wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500, help="of the semantic head, 8 views each")
    parser.add_argument("--init", type=Path, help="head.pt of another run to begin from")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pixel-steps", type=int, default=600, help="of the pixel head, 16 targets each")
    parser.add_argument(
        "--questions", type=int, default=160, help="pictures with questions that the pixel head learns from"
    )
    parser.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--workers", type=int, default=1, help="processes that read ahead (default: 1)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    must_exist(*args.data, args.sam, args.reasoner, args.init)
    for name in ("steps", "batch", "pixel_steps", "questions"):
        if getattr(args, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1")
    make_folder(args.out)
    pictures, categories, groups = outlined_pictures(args.data, args.named)
    opener = load_pocket_opener(args.sam)
    head = train_head(args, opener, pictures, categories, groups)
    from finetune.pocket.pixels import train_pixels

    train_pixels(args, opener, head, categories)


def outlined_pictures(
    data: list[Path], named: list[Path]
) -> tuple[dict[Path, tuple[list, int]], list[str], list[set[str]]]:
    """-> {picture: (its outlined things (name, RLE), the number of its records file)} in the order in which the records
    stage counts pictures, the names, and those of each file."""
    by_name = {name: things for file in named for name, things in named_regions(file).items()}
    found, groups = {}, []
    for number, file in enumerate(data):
        own = outlined([(r, image_path(r, file).resolve()) for r in read_records(file)], by_name, apart=False)
        found |= {image: (things, number) for image, things in own.items()}
        groups.append({name for things in own.values() for name, _ in things})
    return {image: found[image] for image in sorted(found)}, sorted(set().union(*groups)), groups


class Views(Dataset):
    """View n: (512, 512, 3) uint8 pixels, (SIDE, SIDE) labels, and the number of the records file."""

    def __init__(
        self,
        pictures: dict[Path, tuple[list, int]],
        images: list[Path],
        order: list[int],
        row: dict[str, int],
        seed: int,
    ):
        self.pictures, self.images, self.order, self.row, self.seed = pictures, images, order, row, seed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, n: int) -> tuple[np.ndarray, np.ndarray, int]:
        rng = np.random.default_rng((self.seed, n))
        image = self.images[self.order[n]]
        things, number = self.pictures[image]
        masks = [(name, decode_rle(rle)) for name, rle in things]
        smallest = (
            1.0 if rng.random() < 0.5 else 0.5
        )  # as often whole as in part: whole is how it will be seen
        pixels, masks = other_view(open_image(image), masks, rng, 0.0, smallest)
        return *labelled_view(pixels, masks, self.row), number


def labelled_view(
    image: np.ndarray, masks: list[tuple[str, np.ndarray]], row: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The picture (H, W, 3) in the padded square, and each cell's row, NONE or OUTSIDE; of two things in a cell the
    smaller."""
    small = shrink(image)
    h, w = small.shape[:2]
    labels = np.full((SIDE, SIDE), OUTSIDE, np.int64)
    ys, xs = (np.arange(CELL // 2, size, CELL) for size in (h, w))
    labels[: len(ys), : len(xs)] = NONE
    at = np.ix_((ys * image.shape[0] / h).astype(int), (xs * image.shape[1] / w).astype(int))
    for name, mask in sorted(masks, key=lambda one: -int(one[1].sum())):
        labels[: len(ys), : len(xs)][mask[at]] = row[name]
    return pad_to_square(small, IMAGE_SIZE), labels


def train_head(args, opener, pictures, categories: list[str], groups: list[set[str]]) -> SemanticHead:
    row, file = {name: k for k, name in enumerate(categories)}, args.out / "head.pt"
    images = [image for k, image in enumerate(pictures) if k % KEPT_ASIDE != KEPT_ASIDE - 1]
    torch.manual_seed(args.seed)
    head = SemanticHead(len(categories), len(groups))
    for group, names in enumerate(groups):
        head.together[group, :-1] = torch.tensor([name in names for name in categories])
    # A file with twice as many names is drawn from half as often again: its pictures have more to tell.
    share = np.array([len(groups[pictures[i][1]]) ** 0.5 for i in images])
    order = (
        np.random.default_rng(args.seed)
        .choice(len(images), args.steps * args.batch, p=share / share.sum())
        .tolist()
    )
    views = Views(pictures, images, order, row, args.seed)
    maps = lambda pixels: looked_at(opener, pixels)
    some = [views[n] for n in range(min(64, len(views)))]
    weight = label_weights([labels for _, labels, _ in some], len(categories))
    optimizer = torch.optim.AdamW(head.parameters(), lr=args.lr, weight_decay=0.05)
    start = 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        head.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        print(f"resuming the semantic head at step {start}", flush=True)
    elif args.init:
        head.load_state_dict(torch.load(args.init, weights_only=True)["model"])
    else:
        fit_inputs(head, maps(torch.from_numpy(np.stack([square for square, _, _ in some[:16]]))))
    log, saved = Log(args.out / "head.jsonl", start), time.time()
    loader = DataLoader(
        torch.utils.data.Subset(views, range(start * args.batch, len(views))),
        args.batch,
        num_workers=args.workers,
    )
    head.train()
    for step, (pixels, labels, number) in enumerate(loader, start):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate(step, args.steps, 50)
        torch.manual_seed(args.seed + step)  # dropout, also of a run that goes on
        with fast_math():
            logits = head(maps(pixels)).float()
        logits = logits.masked_fill(~head.together[number][:, :, None, None], -1e4)
        target = torch.where(labels == NONE, len(categories), labels)
        loss = F.cross_entropy(logits, target, weight, ignore_index=OUTSIDE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        known = labels >= 0
        right = (logits.argmax(1) == target)[known].float().mean()
        log.add(step, {"names": loss.item(), "right": right.item()}, every=50)
        if time.time() - saved > 60 * args.save_every or step + 1 == args.steps:
            with replace_whole(file) as path:
                torch.save(
                    {"model": head.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, path
                )
            saved = time.time()
    return head.eval()


@torch.no_grad()
def looked_at(opener, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 512, 512, 3) uint8 -> what the semantic head reads of them."""
    encoder = opener.segmenter.model.image_encoder
    with fast_math():
        maps = encoder.backbone(
            normalise(pixels.numpy(), "cpu").contiguous(memory_format=torch.channels_last)
        )
        return SemanticHead.inputs(maps, encoder.neck(*maps))


def fit_inputs(head: SemanticHead, maps: tuple[Tensor, Tensor, Tensor]) -> None:
    for name, x in zip(("16", "32", "neck"), maps):
        getattr(head, f"mean{name}").copy_(x.mean((0, 2, 3)))
        getattr(head, f"scale{name}").copy_(x.std((0, 2, 3)) + 1e-3)


def label_weights(labels: list[np.ndarray], names: int) -> Tensor:
    """(C + 1,) what a cell of each name counts: the fewer there are, the more, mean 1 over cells."""
    count = np.zeros(names + 1)
    for one in labels:
        one = np.where(one == NONE, names, one)
        count += np.bincount(one[one >= 0], minlength=names + 1)
    weight = np.maximum(count, count.sum() / 1000) ** -0.3
    return torch.from_numpy(weight * count.sum() / (weight * count).sum()).float()
