"""Segment like this: pictures with a mask, and maybe a name, are the prompt (few-shot segmentation).

    matcher = Matcher.load(weights, segmenter)                    # None: prototype matching, nothing trained
    query = matcher.look(image, embedding)                        # once per picture
    like = [Reference(matcher.look(other, ...), mask), ...]        # one or several
    mask, score = matcher.segment(query, like, label="mug")       # label None: the picture alone

VLP-SAM (Sakurai et al. 2025, arXiv 2502.00719), and without a label VRP-SAM (Sun et al. 2024, arXiv 2402.17726): frozen
features of a vision-language model say where the query looks like the reference (pseudo mask) and like its name
(attention map); a small encoder turns both, with the reference's prototype, into prompt embeddings for a frozen SAM.
What differs from the paper, and why:

- A picture, its mask and what SAM sees of it go through one transform, SAM's own square (the paper's code crops the
  one and squashes the other).
- Several references are one longer memory: prototype over all, best match over all, attention to all.
- Beside the best match with the reference's inside, the query is told how much more it looks like that than like the
  reference's outside: the surroundings of a thing are often those of the next one.
- With `coarse`, the map that the encoder believes in also goes in as SAM's mask prompt. The pocket SAM was taught to
  follow drawn prompts, and hardly listens to tokens alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.segmenter import Embedding, Segmenter

MATCHED = 0.6  # of likeness relative to the reference's own, from which prototype matching takes a cell; set on training photos
NAMELESS, NAMED = 9, 4  # maps that tell where the query is like the references, and like the name
MAP_SCALE = 10.0  # of the maps beside features of about unit size, as the paper


@dataclass
class Look:
    """A picture as the matcher sees it, on a grid over SAM's square.

    patches: (C, h, w) float, compared with those of other pictures; joint: (D, h', w') float, compared with names;
    inside: (h, w) share in [0, 1] of each cell that the picture covers; embedding: SAM's.
    """

    patches: Tensor
    joint: Tensor
    inside: Tensor
    embedding: Embedding

    def core(self, width: int) -> Tensor:
        """SAM's own features (width, h, w) of unit length, on the grid of the patches. The pocket SAM packs finer maps
        behind them, so that the first `width` channels are taken, as many as a prompt has."""
        own = self.embedding.features[:, :width].float().cpu()
        return F.normalize(F.interpolate(own, self.inside.shape, mode="bilinear", align_corners=False)[0], dim=0)


@dataclass
class Reference:
    """A look and its mask: (h, w) share in [0, 1] of each cell that is inside the mask."""

    look: Look
    mask: Tensor


def cover(segmenter: Segmenter, size: tuple[int, int], mask: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """The share in [0, 1] of each cell of a grid (h, w) over SAM's square that `mask` (H, W) bool of a picture of
    `size` covers: the square's transform is that of the picture (`Segmenter.input_size`)."""
    height, width = segmenter.input_size(size)
    rows, columns = (cells(of, used, segmenter.side, n) for of, used, n in zip(size, (height, width), grid))
    return (rows @ torch.as_tensor(mask, dtype=torch.float32) @ columns.T).clamp(0, 1)


def cells(pixels: int, used: int, side: int, n: int) -> Tensor:
    """(n, pixels): how much of each of n cells along the square's side each pixel of the picture covers."""
    edges = torch.arange(pixels + 1, dtype=torch.float64) * used / pixels * n / side  # of pixels, in cells
    line = torch.arange(n, dtype=torch.float64)[:, None]
    overlap = torch.minimum(edges[1:], line + 1) - torch.maximum(edges[:-1], line)
    return overlap.clamp(min=0).float()


def check_mask(mask, size: tuple[int, int]) -> np.ndarray:
    """A reference's mask as (H, W) bool; BadInput where it is no mask of its picture."""
    mask = np.asarray(mask)
    if mask.ndim == 3 and mask.shape[2] in (3, 4):  # a PNG saved with colours
        mask = mask[..., :3].any(2)
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise BadInput(f"a reference mask is (H, W) of bool or whole numbers, not {mask.shape} of {mask.dtype}")
    if mask.shape != tuple(size):
        raise BadInput(f"the reference mask is {mask.shape[1]}x{mask.shape[0]}, its picture {size[1]}x{size[0]}: "
                       "give a mask of the picture's size")
    mask = mask != 0
    if not mask.any():
        raise BadInput("the reference mask is empty: paint what you mean")
    if mask.all():
        raise BadInput("the reference mask covers the whole picture: paint only what you mean")
    return mask


# ---------------------------------------------------------------------------------- frozen features


class PocketFeatures:
    """EfficientNet-Lite2's maps, which SAM's pass leaves behind, and names through ImageNet's classifier.

    patches: strides 16 and 32 (472 channels), standardised and of unit length. joint: the 1,280 channels that
    ImageNet's classifier reads. A name is the mean of the classifier's rows, weighted by how alike SmolLM2's input
    embeddings of the name and of ImageNet's 1,000 names are (ConSE, Norouzi et al. 2014, arXiv 1312.5650): neither
    model ever saw a picture together with a word.
    """

    kind, grid, width, joint_width = "pocket", (32, 32), 472, 1280
    SHARP = 0.1  # temperature of likeness between names; set on training photos

    def __init__(self):
        from assistant.weights import backbone_state

        *_, self.conv, weight, bias, mean, var, _, self.classes, _ = backbone_state().values()
        scale = weight / (var + 1e-3).sqrt()
        self.conv = self.conv[:, :, 0, 0] * scale[:, None]  # batch norm folded in
        self.bias = bias - mean * scale
        self.known: dict[str, Tensor] = {}
        self.about = {"kind": self.kind}

    def encode(self, segmenter: Segmenter, image: np.ndarray) -> Embedding:
        """As the preset opens a picture: in bfloat16 where this CPU computes in it."""
        from assistant.pocket.model import fast_math

        with fast_math():
            embedding = segmenter.encode(image)
        embedding.features = embedding.features.float()
        return embedding

    def __call__(self, image: np.ndarray, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """-> patches (472, 32, 32), joint (1280, 16, 16), neither standardised."""
        fine, deep = (m[0].float() for m in embedding.maps[2:4])
        joint = torch.einsum("dc,chw->dhw", self.conv, deep) + self.bias[:, None, None]
        up = lambda x: F.interpolate(x[None], self.grid, mode="bilinear", align_corners=False)[0]
        return torch.cat([fine, up(deep)]), joint

    def words(self, label: str) -> Tensor:
        """(1280,) unit vector of a name."""
        if label not in self.known:
            names, owner = self._imagenet()
            alike = torch.full((1000,), -1.0).scatter_reduce(0, owner, names @ self._embed([label])[0], "amax")
            row = (alike / self.SHARP).softmax(0) @ (self.classes - self.classes.mean(0))
            self.known[label] = F.normalize(row, dim=0)
        return self.known[label]

    def _imagenet(self) -> tuple[Tensor, Tensor]:
        """Unit vectors (N, 576) of all that ImageNet's classes are called, and (N,) whose name each is."""
        if not hasattr(self, "_names"):
            from timm.data import ImageNetInfo

            info = ImageNetInfo()
            names = [info.index_to_description(k).split(", ") for k in range(1000)]
            owner = torch.tensor([k for k, of in enumerate(names) for _ in of])
            self._names = self._embed([n for of in names for n in of]), owner
        return self._names

    def _embed(self, texts: list[str]) -> Tensor:
        """(N, 576) unit vectors: the mean of SmolLM2's input embeddings of each text, less what all tokens share."""
        from safetensors import safe_open
        from transformers import AutoTokenizer

        from assistant.weights import smollm2_folder

        if not hasattr(self, "_table"):
            folder = smollm2_folder()
            with safe_open(folder / "model.safetensors", "pt") as file:
                self._table = file.get_tensor("model.embed_tokens.weight")  # float16: 57 MB
            self._common = self._table[:20000].float().mean(0)
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = self._tokenizer([f" {t}" for t in texts], add_special_tokens=False).input_ids
        return F.normalize(torch.stack([self._table[torch.tensor(row)].float().mean(0) for row in ids]) - self._common, dim=1)


class ClipFeatures:
    """A CLIP of transformers (folder or hub id): patch and text embeddings in one space.

    The picture enters in SAM's square, resized to `side` px (default: twice the side that the model was made for; its
    position embeddings are interpolated). Patches take the surgery path (CLIP Surgery, Li et al. 2023, arXiv
    2304.05653): in the last `deep` layers values attend to values and the MLP is left out, which keeps a patch about
    its own place.
    """

    kind = "clip"

    def __init__(self, folder_or_id, segmenter: Segmenter, side: int | None = None, deep: int = 6):
        from transformers import AutoTokenizer, CLIPModel

        from assistant.weights import resolve_model

        where = resolve_model(folder_or_id)
        try:
            self.model = CLIPModel.from_pretrained(where, attn_implementation="eager").eval().requires_grad_(False)
            self.tokenizer = AutoTokenizer.from_pretrained(where)
        except Exception as error:  # transformers and safetensors each have their own
            raise BadInput(f"{where} is no CLIP model: {' '.join(str(error).split())[:160]}") from None
        self.model.to(segmenter.device)
        config = self.model.config.vision_config
        self.segmenter, self.deep = segmenter, min(deep, config.num_hidden_layers)
        self.side = (side or 2 * config.image_size) // config.patch_size * config.patch_size
        self.grid = (self.side // config.patch_size,) * 2
        self.width = self.joint_width = self.model.config.projection_dim
        self.about = {"kind": self.kind, "model": str(folder_or_id), "side": self.side, "deep": self.deep}

    def encode(self, segmenter: Segmenter, image: np.ndarray) -> Embedding:
        return segmenter.encode(image)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """-> (D, h, w) twice, of unit length."""
        from PIL import Image

        height, width = (max(1, round(used * self.side / self.segmenter.side)) for used in embedding.input_size)
        pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        square = torch.full((3, self.side, self.side), 0.0)  # the mean colour, where the picture does not reach
        mean, std = (torch.tensor(v)[:, None, None] for v in (
            (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # CLIP's, of all its models
        square[:, :height, :width] = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
        vision = self.model.vision_model
        x = vision.embeddings(square[None].to(self.segmenter.device), interpolate_pos_encoding=True)
        x = vision.pre_layrnorm(x)
        path = None
        for k, layer in enumerate(vision.encoder.layers):
            if k >= len(vision.encoder.layers) - self.deep:
                path = (x if path is None else path) + self._values(layer.self_attn, layer.layer_norm1(x))
            x = layer(x, None)
            x = x[0] if isinstance(x, tuple) else x
        patches = self.model.visual_projection(vision.post_layernorm(path[0, 1:]))
        patches = F.normalize(patches, dim=1).T.unflatten(1, self.grid).float().cpu()
        return patches, patches

    @staticmethod
    def _values(attention, x: Tensor) -> Tensor:
        """Attention of values to values: (1, N, C) -> (1, N, C)."""
        value = attention.v_proj(x).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        weights = (value @ value.transpose(2, 3) * attention.scale).softmax(-1)
        return attention.out_proj((weights @ value).transpose(1, 2).flatten(2))

    @torch.no_grad()
    def words(self, label: str) -> Tensor:
        """(D,) unit vector of "a photo of a {label}"."""
        tokens = self.tokenizer(f"a photo of a {label}", return_tensors="pt", truncation=True).to(self.segmenter.device)
        found = self.model.get_text_features(**tokens)
        found = getattr(found, "pooler_output", found)  # transformers 5 wraps it
        return F.normalize(found[0], dim=0).float().cpu()


# ---------------------------------------------------------------------------------- the trained part


class PromptEncoder(nn.Module):
    """Query, references and a name -> embedded prompts for SAM.

    patches, joint: channels of what pictures and names are compared by; prompt: of SAM's prompts; text: with names
    (VLP-SAM) or without (VRP-SAM); coarse: also a mask prompt, drawn from the maps alone: how like two things are says
    the same of categories that were never seen, what they look like does not.
    """

    def __init__(self, patches: int, joint: int, prompt: int, text: bool = True, coarse: bool = True,
                 width: int = 256, queries: int = 50, heads: int = 4):
        super().__init__()
        self.settings = {"patches": patches, "joint": joint, "prompt": prompt, "text": text, "coarse": coarse,
                         "width": width, "queries": queries, "heads": heads}
        self.register_buffer("mean", torch.zeros(patches))
        self.register_buffer("scale", torch.ones(patches))
        self.shrink = nn.Linear(patches, width, bias=False)
        if text and joint != patches:
            self.shrink_text = nn.Linear(joint, width, bias=False)
        common = 2 if text else 1  # the prototype, the name; a map of each
        self.merge = nn.Linear((1 + common) * width + common, width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.out = nn.Linear(width, prompt)
        if coarse:
            conv = lambda inner, outer, gap: nn.Conv2d(inner, outer, 3, padding=gap, dilation=gap)
            self.coarse = nn.Sequential(conv(NAMELESS + NAMED * text, 32, 1), nn.ReLU(), conv(32, 32, 2), nn.ReLU(),
                                        conv(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 1, 1))

    def unit(self, patches: Tensor) -> Tensor:
        """(..., C, h, w) -> the same, standardised and of unit length."""
        return F.normalize((patches - self.mean[:, None, None]) / self.scale[:, None, None], dim=-3)

    def draw(self, given: "Given") -> Tensor | None:
        """Coarse logits (B, h, w) of the query, None where this encoder has none."""
        return self.coarse(given.maps)[:, 0] if self.settings["coarse"] else None

    def forward(self, given: "Given") -> Tensor:
        """-> prompts (B, queries, prompt)."""
        b, k = given.masks.shape[:2]
        drop = lambda x: F.dropout1d(x.transpose(-1, -2), 0.5, self.training).transpose(-1, -2)
        q = drop(self.shrink(given.query.flatten(2).transpose(1, 2)).relu())  # B, n, width
        r = drop(self.shrink(given.references.flatten(3).transpose(2, 3)).relu().flatten(1, 2))  # B, K * n, width
        weight = given.masks.flatten(1)[..., None]
        common = [(r * weight).sum(1, keepdim=True) / (weight.sum(1, keepdim=True) + 5e-4)]
        if self.settings["text"]:
            common.append(getattr(self, "shrink_text", self.shrink)(given.names).relu()[:, None])
        # merge([x, prototype, name, maps]) in parts: what is common to all cells is multiplied once.
        of_x, of_common, of_maps = self.merge.weight.split([q.shape[-1], len(common) * q.shape[-1], len(common)], 1)
        shared = F.linear(torch.cat(common, -1), of_common, self.merge.bias)
        join = lambda x, m: (F.linear(x, of_x) + shared + F.linear(m.reshape(b, x.shape[1], -1) * MAP_SCALE, of_maps)).relu()
        q, r = join(q, given.query_maps), join(r, given.reference_maps)
        places = sine_places(*given.masks.shape[-2:], q.shape[-1], q)
        x = self.queries.expand(b, -1, -1)
        seen = ((r + places.repeat(k, 1), r, given.covered.flatten(1) <= 0), None,
                (q + places, q, given.inside.flatten(1) <= 0), None)
        for attend, norm, other in zip(self.attention, self.norms, seen):
            key, value, ignored = other or (x, x, None)
            x = norm(x + attend(x, key, value, key_padding_mask=ignored, need_weights=False)[0])
        return self.out(x)


class Given(NamedTuple):
    """What `PromptEncoder` reads of B episodes with K references: all of it comes from frozen parts.

    maps: (B, M, h, w), where the query is like the references and like its name. The rest is on a grid of half the side, (a, b): query (B, C, a, b),
    references (B, K, C, a, b) patches; inside (B, a, b), covered and masks (B, K, a, b) shares of cells; query_maps
    (B, a, b, 1 + text), reference_maps (B, K, a, b, 1 + text), in [0, 1]; names (B, D) or None.
    """

    maps: Tensor
    query: Tensor
    references: Tensor
    inside: Tensor
    covered: Tensor
    masks: Tensor
    query_maps: Tensor
    reference_maps: Tensor
    names: Tensor | None

    def nameless(self) -> "Given":
        """The same for an encoder that is not told the name."""
        return self._replace(maps=self.maps[:, :NAMELESS], query_maps=self.query_maps[..., :1],
                             reference_maps=self.reference_maps[..., :1], names=None)


def likeness(query: Tensor, references: Tensor, masks: Tensor, covered: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where a query (B, C, h, w) looks like K references (B, K, C, h, w), all of unit length -> (B, h, w) four times.

    The cosine with the best cell inside any mask (VRP-SAM's pseudo mask); the cosine with the mean inside less that
    with the mean outside (PANet, Wang et al. 2019, arXiv 1908.06391); and this again, `relative` to the references' own.
    The last two need no training to be used.
    """
    b, k, c, h, w = references.shape
    r = references.transpose(1, 2).flatten(2)  # B, C, K * n
    inner = masks.flatten(1)  # B, K * n
    outer = (covered.flatten(1) - inner).clamp(min=0)
    chosen = inner >= (inner.amax(1, keepdim=True) * 0.6).clamp(max=0.5)  # something small fills no cell
    best = torch.stack([(some.T @ x.flatten(1)).amax(0) for x, some in zip(query, (y[:, c] for y, c in zip(r, chosen)))])
    mean = lambda weight: F.normalize((r @ weight[..., None])[..., 0], dim=1)
    direction = mean(inner) - mean(outer)
    contrast = torch.einsum("bchw,bc->bhw", query, direction)
    return best.view(b, h, w), contrast, *relative(contrast, torch.einsum("bcn,bc->bn", r, direction), inner, outer)


def relative(query: Tensor, own: Tensor, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """A map (B, h, w) of a query, scaled so that the references' own (B, N) is 1 on average where they are masked
    (weights inner, outer (B, N)), 0 where not, within [-1, 2]; and, everywhere the same, how far these two were apart: a
    map that does not tell the references' inside from their outside tells nothing of the query."""
    mean = lambda weight: (own * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
    low, high = mean(outer)[:, None, None], mean(inner)[:, None, None]
    level = (query - low) / (high - low).abs().clamp(min=0.02)
    return level.clamp(-1, 2), (high - low).expand_as(query)


def scaled(x: Tensor, inside: Tensor) -> Tensor:
    """Maps (..., h, w) brought to [0, 1] over the cells that the picture covers; 0 elsewhere."""
    there = inside > 0
    low = x.masked_fill(~there, torch.inf).amin((-1, -2), keepdim=True)
    high = x.masked_fill(~there, -torch.inf).amax((-1, -2), keepdim=True)
    return ((x - low) / (high - low).clamp(min=1e-6)).masked_fill(~there, 0)


def sine_places(h: int, w: int, width: int, like: Tensor) -> Tensor:
    """(h * w, width) sines and cosines of each cell's row and column, as DETR's (Carion et al. 2020)."""
    wave = 10000 ** (-torch.arange(width // 4, device=like.device) / (width // 4))
    y, x = ((torch.arange(n, device=like.device) + 0.5) / n * 2 * torch.pi for n in (h, w))
    code = lambda t: torch.cat([(t[:, None] * wave).sin(), (t[:, None] * wave).cos()], 1)
    return torch.cat([code(y)[:, None].expand(-1, w, -1), code(x)[None].expand(h, -1, -1)], 2).flatten(0, 1).to(like.dtype)


def attention_map(joint: Tensor, name: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosine of a name (D,) with each place of joint (D, h', w') -> (h, w)."""
    cosine = torch.einsum("dhw,d->hw", F.normalize(joint.float(), dim=0), F.normalize(name, dim=0))
    return F.interpolate(cosine[None, None], grid, mode="bilinear", align_corners=False)[0, 0]


# ---------------------------------------------------------------------------------- all of it


class Matcher:
    """Frozen features, a frozen SAM and what is trained between them.

    encoders: {"text": with a name, "plain": without}; without any, masks come from `likeness` alone.
    """

    def __init__(self, segmenter: Segmenter, features, encoders: dict[str, PromptEncoder]):
        self.segmenter, self.features, self.encoders = segmenter, features, encoders

    @classmethod
    def load(cls, file: Path, segmenter: Segmenter) -> "Matcher":
        """file: `reference.safetensors`, as `finetune reference` writes it. BadInput: unreadable, or for another SAM."""
        from safetensors import safe_open

        file = Path(file) / "reference.safetensors" if Path(file).is_dir() else Path(file)
        if not file.is_file():
            raise BadInput(f"no {file}: train it with python -m finetune reference, or give the folder that it wrote")
        try:
            with safe_open(file, "pt") as opened:
                state = {k: opened.get_tensor(k).float() for k in opened.keys()}
                settings, about = (json.loads(opened.metadata()[k]) for k in ("encoders", "features"))
        except Exception as error:
            raise BadInput(f"cannot read {file}: {str(error).splitlines()[0]}; fetch it again") from None
        features = open_features(about, segmenter)
        encoders = {}
        for name, values in settings.items():
            if values["prompt"] != segmenter.prompt_width:
                raise BadInput(f"{file} was trained for a SAM with prompts of {values['prompt']} channels, this one has "
                               f"{segmenter.prompt_width}: train it again with python -m finetune reference")
            encoder = encoders[name] = PromptEncoder(**values).eval().requires_grad_(False)
            encoder.load_state_dict({k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(f"{name}.")})
        return cls(segmenter, features, encoders)

    def save(self, file: Path) -> None:
        from safetensors.torch import save_file

        from assistant.files import replace_whole

        state = {f"{name}.{k}": v.contiguous() for name, e in self.encoders.items() for k, v in e.state_dict().items()}
        about = {"encoders": json.dumps({name: e.settings for name, e in self.encoders.items()}),
                 "features": json.dumps(self.features.about)}
        with replace_whole(file) as path:
            save_file(state, path, about)

    def open(self, image: np.ndarray) -> Look:
        """Encode a picture (H, W, 3) uint8 and look at it."""
        return self.look(image, self.features.encode(self.segmenter, image))

    @torch.no_grad()
    def look(self, image: np.ndarray, embedding: Embedding) -> Look:
        """image: (H, W, 3) uint8; embedding: its encoding, as `features.encode` gives it."""
        patches, joint = self.features(image, embedding)
        size = embedding.size
        return Look(patches, joint, cover(self.segmenter, size, np.ones(size, bool), patches.shape[-2:]), embedding)

    def reference(self, image: np.ndarray, mask) -> Reference:
        """image: (H, W, 3) uint8; mask: (H, W), nonzero = inside. BadInput for a mask that says nothing."""
        mask = check_mask(mask, image.shape[:2])
        look = self.open(image)
        return Reference(look, cover(self.segmenter, image.shape[:2], mask, look.patches.shape[-2:]))

    def given(self, query: Look, references: list[Reference], label: str | None = None) -> "Given":
        """What the frozen parts say of an episode; `Given.nameless` of it is what they say without the name."""
        label = " ".join(label.split()) if label else None
        return gather([(query, references, label)], self.encoders["text" if label else "plain"], self.features)

    def logits(self, query: Look, given: "Given") -> tuple[Tensor, Tensor]:
        """Low-resolution logits (1, l, l) and SAM's predicted IoU (1,), by the encoder for names or that without."""
        encoder = self.encoders["plain" if given.names is None else "text"]
        return prompted(self.segmenter, [query], encoder(given), encoder.draw(given))

    @torch.no_grad()
    def answer(self, query: Look, given: "Given") -> tuple[np.ndarray, float]:
        """-> mask (H, W) bool of the query's picture, score in [0, 1]: the mean probability inside the mask."""
        return self._finish(query, self.logits(query, given)[0])

    def segment(self, query: Look, references: list[Reference], label: str | None = None) -> tuple[np.ndarray, float]:
        """What is like the references, which `label` may name: as `answer`."""
        return self.answer(query, self.given(query, references, label))

    @torch.no_grad()
    def match(self, query: Look, given: "Given") -> tuple[np.ndarray, float]:
        """Prototype matching alone, nothing trained: as `answer`."""
        likely = (given.maps[:, 3] + given.maps[:, 5]) / 2 - MATCHED
        low = F.interpolate(likely[None], (self.segmenter.low_side,) * 2, mode="bilinear", align_corners=False)[0]
        return self._finish(query, low * 10)

    def _finish(self, query: Look, low: Tensor) -> tuple[np.ndarray, float]:
        mask = self.segmenter.upsample(query.embedding, low)[0]
        inside = low[0] > 0
        return mask, float(low[0].sigmoid()[inside].mean()) if mask.any() and inside.any() else 0.0


def pocket_matcher(segmenter: Segmenter) -> Matcher:
    """The matcher that comes with the pocket preset; BadInput for another SAM."""
    from assistant.weights import pocket_file

    if not hasattr(segmenter.model, "image_encoder") or not hasattr(segmenter.model.image_encoder, "backbone"):
        raise BadInput("this SAM has no weights for references yet: train them with python -m finetune reference --sam "
                       "... --clip ..., then assistant.matcher = Matcher.load(folder, assistant.segmenter)")
    return Matcher.load(pocket_file("reference.safetensors"), segmenter)


def references(matcher: Matcher, images, masks) -> list[Reference]:
    """Pictures and masks, one or as many of each, as `Scene.segment_like` takes them; the masks are checked first."""
    from assistant.images import open_image

    images, masks = (list(x) if isinstance(x, (list, tuple)) else [x] for x in (images, masks))
    if len(images) != len(masks) or not images:
        raise BadInput(f"{len(images)} reference pictures with {len(masks)} masks: each picture needs its mask")
    opened = [open_image(image) for image in images]
    checked = [check_mask(open_mask(mask), image.shape[:2]) for image, mask in zip(opened, masks)]
    return [matcher.reference(image, mask) for image, mask in zip(opened, checked)]


def open_mask(source) -> np.ndarray:
    """A mask given as an array, a PIL image or a path to one; of a picture with colours, any that is not black."""
    from PIL import Image

    if isinstance(source, (str, Path)):
        try:
            with Image.open(source) as image:
                return open_mask(image)
        except OSError:
            raise BadInput(f"no mask that can be read at {source}: give a PNG, black outside, white inside") from None
    if isinstance(source, Image.Image):
        return np.asarray(source.convert("RGB" if source.mode not in ("1", "L", "I", "I;16") else source.mode))
    return np.asarray(source)


def open_features(about: dict, segmenter: Segmenter):
    """Frozen features from what a weight file says of them."""
    if about["kind"] == "pocket":
        if not hasattr(getattr(segmenter.model, "image_encoder", None), "backbone"):
            raise BadInput("these weights read the pocket SAM's own maps: another SAM needs weights trained on CLIP")
        return PocketFeatures()
    return ClipFeatures(about["model"], segmenter, about["side"], about["deep"])


@torch.no_grad()
def gather(episodes: list[tuple[Look, list[Reference], str | None]], encoder: PromptEncoder, features) -> Given:
    """Episodes with as many references each -> `Given`."""
    queries, several, labels = zip(*episodes)
    grid = queries[0].patches.shape[-2:]
    unit = lambda looks: encoder.unit(torch.stack([look.patches.float() for look in looks]))
    own = lambda looks: torch.stack([look.core(encoder.settings["prompt"]) for look in looks])
    each = lambda of: torch.stack([torch.stack([of(r) for r in some]) for some in several])
    looks = lambda of: torch.stack([of([r.look for r in some]) for some in several])
    query, others, inside = unit(queries), looks(unit), torch.stack([q.inside for q in queries])
    masks, covered = each(lambda r: r.mask), each(lambda r: r.look.inside)
    best, contrast, level, gap = likeness(query, others, masks, covered)
    _, contrast2, level2, gap2 = likeness(own(queries), looks(own), masks, covered)
    maps = [best, scaled(best, inside), contrast * 4, level, contrast2 * 4, level2, gap, gap2, inside]
    seen, shown, names = [scaled(best, inside)], [masks], None
    if encoder.settings["text"]:
        names = torch.stack([features.words(label) for label in labels])
        heat = torch.stack([attention_map(q.joint, n, grid) for q, n in zip(queries, names)])
        heats = torch.stack([torch.stack([attention_map(r.look.joint, n, grid) for r in some]) for some, n in zip(several, names)])
        inner = masks.flatten(1)
        level, gap = relative(heat, heats.flatten(1), inner, (covered.flatten(1) - inner).clamp(min=0))
        maps += [heat * 10, scaled(heat, inside), level, gap * 10]
        seen, shown = [*seen, scaled(heat, inside)], [*shown, scaled(heats, covered)]
    side = [max(1, n // 2) for n in grid]
    half = lambda x: F.adaptive_avg_pool2d(x.flatten(0, -3)[:, None], side)[:, 0].unflatten(0, x.shape[:-2])
    return Given(torch.stack(maps, 1) * inside[:, None], F.normalize(half(query * inside[:, None]), dim=1),
                 F.normalize(half(others * covered[:, :, None]), dim=2),
                 half(inside), half(covered), half(masks), torch.stack([half(m) for m in seen], -1),
                 torch.stack([half(m) for m in shown], -1), names)


def prompted(segmenter: Segmenter, queries: list[Look], prompts: Tensor, coarse: Tensor | None) -> tuple[Tensor, Tensor]:
    """SAM's answers: prompts (B, T, P), coarse (B, h, w) or None -> low-resolution logits (B, l, l), IoU (B,)."""
    if coarse is not None:
        coarse = F.interpolate(coarse[:, None], (segmenter.low_side,) * 2, mode="bilinear", align_corners=False)[:, 0]
    found = [segmenter.prompted(q.embedding, prompts[k : k + 1], None if coarse is None else coarse[k : k + 1])
             for k, q in enumerate(queries)]
    return tuple(torch.cat(x) for x in zip(*found))
