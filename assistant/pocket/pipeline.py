"""The pocket preset's parts, and how they open a picture.

pocket = load_pocket()                      # committed weights over the two wheels
view = pocket.eyes.open(image)              # everything that is computed once per picture
spoken, scored = pocket.ask(turns, view)    # the reply, and each of its targets against the proposals
"""

import contextlib
import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from assistant.errors import BadInput
from assistant.grammar import Turn, parse, reply_for
from assistant.mllm.local_model import Found, Reply
from assistant.mllm.selector import Scores, Selector, choose, runners_up
from assistant.pocket.llm import PocketReasoner, RegionEncoder, fast_bfloat16
from assistant.pocket.proposals import CELL, Pool, boxes_of, candidates
from assistant.pocket.question_splitter import questions_in
from assistant.pocket.region_features import REGION, region_features
from assistant.pocket.sam import IMAGE_SIZE, build_pocket_sam, load_backbone
from assistant.pocket.semantic import Semantic
from assistant.sam.mask_resizing import Resizer, encode_rle
from assistant.sam.proposals import Proposals
from assistant.sam.segmenter import Embedding, Segmenter
from assistant.weights import (
    BACKBONE,
    SMOLLM2,
    adapter_file,
    backbone_state,
    pocket_file,
    read_weights,
    sha256_of,
    smollm2_folder,
)


def fast_math():
    """bfloat16 where the CPU computes in it (three times faster there, scores change by .003), else nothing."""
    if fast_bfloat16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


@dataclass
class RegionView:
    """What attention needs of a picture: the masks of its N regions as COCO RLE, its size (h, w), and their features
    (N, REGION) float. It holds neither embedding nor logits, so no question can be answered on it."""

    rles: list[dict]
    size: tuple[int, int]
    features: Tensor


@dataclass
class View:
    """A picture, opened: all that answering needs."""

    embedding: Embedding
    proposals: Proposals
    features: Tensor  # (N, REGION) float
    names: Tensor | None = None  # what `Semantic.names` gives, from the first question on

    @property
    def rles(self) -> list[dict]:
        return self.proposals.rles

    @property
    def size(self) -> tuple[int, int]:
        return self.proposals.size

    @property
    def regions(self) -> RegionView:
        """What is left for attention once the embedding is let go."""
        return RegionView(self.rles, self.size, self.features)


def shrink(image: np.ndarray) -> np.ndarray:
    """The picture with its longest side at IMAGE_SIZE, as the segmenter sees it."""
    h, w = image.shape[:2]
    scale = IMAGE_SIZE / max(h, w)
    size = max(1, int(w * scale + 0.5)), max(1, int(h * scale + 0.5))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def as_proposals(pool: Pool, segmenter: Segmenter, embedding: Embedding) -> Proposals:
    """The pool's low-resolution logits as masks of the whole picture, RLE-encoded one at a time."""
    resizer = Resizer(*segmenter.resizing(embedding))
    h, w = embedding.size
    kept, rles, boxes, areas = [], [], [], []
    for i, logits in enumerate(pool.logits.float().numpy()):
        ys, xs = (np.flatnonzero((logits > 0).any(axis)) for axis in (1, 0))
        reach = [max(0, ys[0] - 1), max(0, xs[0] - 1), ys[-1] + 2, xs[-1] + 2]
        outer = resizer.outer(reach)
        patch = np.ascontiguousarray(logits[reach[0] : reach[2] + 1, reach[1] : reach[3] + 1])
        found = resizer.mask(patch, (reach[0], reach[1]), outer)
        if found is None:
            continue
        mask, box, _ = found
        rles.append(encode_rle(mask, (int(box[1]), int(box[0])), (h, w)))
        boxes.append(box)
        areas.append(int(mask.sum()))
        kept.append(i)
    points = np.array(boxes, np.float32).reshape(-1, 2, 2).mean(1)
    return Proposals(
        rles,
        np.array(boxes, np.float32).reshape(-1, 4),
        pool.iou.float().numpy()[kept],
        pool.stability.float().numpy()[kept],
        np.array(areas, np.int64),
        points,
        pool.logits.float().numpy()[kept],
        (h, w),
    )


class Eyes:
    """SAM and what is known of regions; shared by the assistant and by training."""

    def __init__(self, segmenter: Segmenter, limit: int = 60, points_per_side: int = 22):
        self.segmenter, self.limit, self.points_per_side = segmenter, limit, points_per_side

    def look(self, image: np.ndarray, progress=None) -> tuple[Embedding, Proposals]:
        """progress: as `Assistant.open`."""
        step = progress or (lambda doing, proposals: None)
        step("looking", None)
        with fast_math():
            embedding = self.segmenter.encode(image)
            embedding.features = embedding.features.float()  # prompts by hand run outside of fast_math
            step("outlining", None)
            pool = candidates(
                self.segmenter.model, embedding.features, shrink(image), self.points_per_side, self.limit
            )
        return embedding, as_proposals(pool, self.segmenter, embedding)

    def open(self, image: np.ndarray, progress=None) -> View:
        embedding, proposals = self.look(image, progress)
        if progress:
            progress("recognising", proposals)
        with fast_math():
            features = self.features(shrink(image), embedding, torch.from_numpy(proposals.low))
        return View(embedding, proposals, features)

    def features(self, small: np.ndarray, embedding: Embedding, low: Tensor) -> Tensor:
        """small: what `embedding` encodes, shrunk; low: (N, 128, 128) mask logits -> (N, REGION)."""
        masks = low > 0
        if not len(masks):
            return torch.zeros(0, REGION)
        return region_features(
            self.segmenter.model.image_encoder,
            small,
            embedding.maps,
            masks.float(),
            boxes_of(masks),
            masks.sum((1, 2)) * CELL**2,
        ).float()


def load_eyes(sam_file: Path) -> Eyes:
    from safetensors.torch import load_file

    if not Path(sam_file).is_file():
        raise BadInput(f"no SAM at {sam_file}: give the path of a .safetensors file of the pocket SAM")
    sam = build_pocket_sam()
    load_backbone(sam.image_encoder, backbone_state())
    try:
        found = sam.load_state_dict(load_file(sam_file), strict=False)
    except Exception as error:  # safetensors and torch raise their own kinds for a cut or foreign file
        raise BadInput(f"{sam_file} cannot be read: {str(error).splitlines()[0]}") from None
    if found.unexpected_keys or any(not k.startswith("image_encoder.backbone.") for k in found.missing_keys):
        raise BadInput(f"{sam_file} does not hold the pocket SAM of this version")
    return Eyes(Segmenter.pocket(sam))


class Pocket:
    """semantic: None for masks by the selector alone."""

    def __init__(
        self, eyes: Eyes, reasoner: PocketReasoner, selector: Selector, semantic: Semantic | None = None
    ):
        self.eyes, self.reasoner, self.selector, self.semantic = eyes, reasoner, selector, semantic
        self.rows = semantic.rows(reasoner.forms) if semantic else {}

    @functools.cached_property
    def looker(self):
        """Where the reasoner looks for a phrase: see `assistant.attention.maps`."""
        from assistant.pocket.attention import published_looker

        return published_looker(self.reasoner, self.eyes)

    @torch.inference_mode()
    def ask(self, turns: list, view: View, threshold: float, **options) -> tuple[Reply, list[Found]]:
        """The reply to the last turn and its targets; `threshold` on confidence decides between [SEG] and [ABS]."""
        seen = self.reasoner.encoder(view.features)
        found: list[Found] = []

        def decide(state: Tensor, margin: Tensor, phrase: str) -> bool:
            if not len(view.features):
                found.append(Found(0.0, []))
                return False
            named = self.reasoner.encoder.match(seen.words, self.reasoner.name(phrase)[None])
            scores = self.selector(
                state[None], seen.words, seen.shape, named, margin[None], quality=seen.thing
            )
            chosen = self.choose(scores, phrase, view)
            found.append(Found(float(scores.presence[0].sigmoid()), chosen, runners_up(scores, 0, chosen)))
            return found[-1].confidence >= threshold

        replies, earlier = [], list(turns[:-1])
        for k, question in enumerate(questions_in(turns[-1].question)):
            if k and options.get("stream"):
                options["stream"](" ")
            replies.append(self.reasoner.reply([*earlier, Turn(question)], seen, decide=decide, **options))
        once = {}  # it may say a thing twice
        for mention, one in zip((m for reply in replies for m in parse(reply.text)), found):
            once.setdefault(mention.phrase.lower(), (mention, one))
        text = reply_for([(mention.phrase, mention.present) for mention, _ in once.values()])
        *first, last = [reply.text for reply in replies]
        written = ", ".join(said for said in (*(said.rstrip(" .") for said in first), last) if said)
        return Reply(
            text,
            sum(r.tokens for r in replies),
            [m for r in replies for m in r.markers],
            torch.cat([r.states for r in replies]),
            torch.cat([r.margins for r in replies]),
            written,
        ), [one for _, one in once.values()]

    def choose(self, scores: Scores, phrase: str, view: View) -> list[int]:
        """The proposals of the one target that `scores` are of, best first: by the map of names where that knows the
        phrase's."""
        row = self.rows.get(self.reasoner.row(phrase))
        if row is None:
            return choose(scores, 0)
        if view.names is None:
            with fast_math():
                view.names = self.semantic.names(view.embedding)
        masks = torch.from_numpy(view.proposals.low) > 0
        return self.semantic.choose(scores, 0, masks, view.names, row, view.embedding.input_size)

    @torch.inference_mode()
    def name(self, image: np.ndarray, view: View, mask: np.ndarray) -> list[tuple[str, float]]:
        """What a part of the picture is, mask (H, W) bool: [(taught name, probability among the taught names)], most
        likely first; [] where none were taught."""
        encoder = self.reasoner.encoder
        if not len(encoder.names):
            return []
        low = torch.from_numpy(self.eyes.segmenter.low_logits(view.embedding, mask))[None]
        if not (low > 0).any():  # smaller than a cell
            low[0].flatten()[low.argmax()] = 1.0
        with fast_math():
            features = self.eyes.features(shrink(image), view.embedding, low)
        sure = encoder.name_logits(encoder(features).words, encoder.names)[0].softmax(0)
        words = {}
        for form, row in self.reasoner.forms.items():
            words.setdefault(row, form)  # the first is the plain one
        return [(words[int(k)], float(sure[k])) for k in sure.argsort(descending=True) if int(k) in words]


def heads_of(
    heads: dict[str, Tensor], about: dict[str, str]
) -> tuple[RegionEncoder, Selector, dict[str, int]]:
    """The region encoder, the selector and the forms of names that a `heads.safetensors` holds: its tensors and metadata.
    BadInput: they describe none."""
    try:
        shape, forms = (json.loads(about[k]) for k in ("selector", "forms"))
    except (KeyError, ValueError) as error:
        raise BadInput(
            f"cannot read the heads' description ({error}); fetch heads.safetensors again"
        ) from None
    part = lambda name: {k.removeprefix(name): v for k, v in heads.items() if k.startswith(name)}
    selector = Selector(**shape)
    selector.load_state_dict(part("selector."))
    encoder = RegionEncoder(shape["state_dim"], len(heads["encoder.names"]))
    encoder.load_state_dict(part("encoder."))
    return encoder, selector, forms


def load_pocket(adapter: Path | None = None) -> tuple[Pocket, dict[str, str]]:
    """The pocket preset's parts and the checksums of its weights; `adapter`: a folder that `finetune records` wrote."""
    sam_file = pocket_file("sam.safetensors")
    heads_file, lora = (
        pocket_file(n) if adapter is None else adapter_file(adapter, n)
        for n in ("heads.safetensors", "lora/adapter_model.safetensors")
    )
    heads, about = read_weights(heads_file)
    encoder, selector, forms = heads_of(heads, about)
    folder = smollm2_folder()
    reasoner = PocketReasoner.load(folder, lora.parent, encoder, forms)
    semantic_file = pocket_file("semantic.safetensors")
    weights = {
        "sam": sha256_of(sam_file),
        "heads": sha256_of(heads_file),
        "lora": sha256_of(lora),
        "semantic": sha256_of(semantic_file),
        "llm": SMOLLM2[2],
        "backbone": BACKBONE[2],
    }
    return Pocket(load_eyes(sam_file), reasoner, selector.eval(), Semantic.load(semantic_file)), weights
