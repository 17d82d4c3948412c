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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.few_shot.features import open_features
from assistant.few_shot.prompt_encoder import PromptEncoder, prompted
from assistant.few_shot.similarity import Given, Look, Reference, cover, gather
from assistant.sam.segmenter import Embedding, Segmenter
from assistant.weights import read_weights

# Likeness relative to the reference's own from which prototype matching takes a cell; set on training photos.
MATCHED = 0.6


class Matcher:
    """Frozen features, a frozen SAM and what is trained between them.

    encoders: {"text": with a name, "plain": without}; without any, masks come from `likeness` alone.
    """

    def __init__(self, segmenter: Segmenter, features, encoders: dict[str, PromptEncoder]):
        self.segmenter, self.features, self.encoders = segmenter, features, encoders

    @classmethod
    def load(cls, file: Path, segmenter: Segmenter) -> "Matcher":
        """file: `reference.safetensors`, as `finetune reference` writes it. BadInput: unreadable, or for another
        SAM."""
        file = Path(file) / "reference.safetensors" if Path(file).is_dir() else Path(file)
        if not file.is_file():
            raise BadInput(
                f"no {file}: train it with python -m finetune reference, or give the folder that it wrote"
            )
        state, described = read_weights(file)
        try:
            settings, about = (json.loads(described[k]) for k in ("encoders", "features"))
        except (KeyError, ValueError) as error:
            raise BadInput(f"cannot read {file}: {error}; fetch it again") from None
        features = open_features(about, segmenter)
        encoders = {}
        for name, values in settings.items():
            if values["prompt"] != segmenter.prompt_width:
                raise BadInput(
                    f"{file} was trained for a SAM with prompts of {values['prompt']} channels, this one "
                    f"has {segmenter.prompt_width}: train it again with python -m finetune reference"
                )
            encoder = encoders[name] = PromptEncoder(**values).eval().requires_grad_(False)
            encoder.load_state_dict(
                {k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(f"{name}.")}
            )
        return cls(segmenter, features, encoders)

    def save(self, file: Path) -> None:
        from safetensors.torch import save_file

        from assistant.files import replace_whole

        state = {
            f"{name}.{k}": v.contiguous()
            for name, e in self.encoders.items()
            for k, v in e.state_dict().items()
        }
        about = {
            "encoders": json.dumps({name: e.settings for name, e in self.encoders.items()}),
            "features": json.dumps(self.features.about),
        }
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
        return Look(
            patches, joint, cover(self.segmenter, size, np.ones(size, bool), patches.shape[-2:]), embedding
        )

    def reference(self, image: np.ndarray, mask) -> Reference:
        """image: (H, W, 3) uint8; mask: (H, W), nonzero = inside. BadInput for a mask that says nothing."""
        mask = check_mask(mask, image.shape[:2])
        look = self.open(image)
        return Reference(look, cover(self.segmenter, image.shape[:2], mask, look.patches.shape[-2:]))

    def given(self, query: Look, references: list[Reference], label: str | None = None) -> Given:
        """What the frozen parts say of an episode; `Given.nameless` of it is what they say without the name."""
        label = " ".join(label.split()) if label else None
        return gather(
            [(query, references, label)], self.encoders["text" if label else "plain"], self.features
        )

    def logits(self, query: Look, given: Given) -> tuple[Tensor, Tensor]:
        """Low-resolution logits (1, l, l) and SAM's predicted IoU (1,), by the encoder for names or that without."""
        encoder = self.encoders["plain" if given.names is None else "text"]
        return prompted(self.segmenter, [query], encoder(given), encoder.draw(given))

    @torch.no_grad()
    def answer(self, query: Look, given: Given) -> tuple[np.ndarray, float]:
        """-> mask (H, W) bool of the query's picture, score in [0, 1]: the mean probability inside the mask."""
        return self._finish(query, self.logits(query, given)[0])

    def segment(
        self, query: Look, references: list[Reference], label: str | None = None
    ) -> tuple[np.ndarray, float]:
        """What is like the references, which `label` may name: as `answer`."""
        return self.answer(query, self.given(query, references, label))

    @torch.no_grad()
    def match(self, query: Look, given: Given) -> tuple[np.ndarray, float]:
        """Prototype matching alone, nothing trained: as `answer`."""
        likely = (given.maps[:, 3] + given.maps[:, 5]) / 2 - MATCHED
        low = F.interpolate(
            likely[None], (self.segmenter.low_res_side,) * 2, mode="bilinear", align_corners=False
        )[0]
        return self._finish(query, low * 10)

    def _finish(self, query: Look, low: Tensor) -> tuple[np.ndarray, float]:
        mask = self.segmenter.upsample(query.embedding, low)[0]
        inside = low[0] > 0
        return mask, float(low[0].sigmoid()[inside].mean()) if mask.any() and inside.any() else 0.0


def pocket_matcher(segmenter: Segmenter) -> Matcher:
    """The matcher that comes with the pocket preset; BadInput for another SAM."""
    from assistant.weights import pocket_file

    if not hasattr(segmenter.model, "image_encoder") or not hasattr(
        segmenter.model.image_encoder, "backbone"
    ):
        raise BadInput(
            "this SAM has no weights for references yet: train them with python -m finetune reference --sam "
            "... --clip ..., then assistant.matcher = Matcher.load(folder, assistant.segmenter)"
        )
    return Matcher.load(pocket_file("reference.safetensors"), segmenter)


def references(matcher: Matcher, images, masks) -> list[Reference]:
    """Pictures and masks, one or as many of each, as `Scene.segment_like` takes them; the masks are checked first."""
    from assistant.images import open_image

    images, masks = (list(x) if isinstance(x, (list, tuple)) else [x] for x in (images, masks))
    if len(images) != len(masks) or not images:
        raise BadInput(
            f"{len(images)} reference pictures with {len(masks)} masks: each picture needs its mask"
        )
    opened = [open_image(image) for image in images]
    checked = [check_mask(open_mask(mask), image.shape[:2]) for image, mask in zip(opened, masks)]
    return [matcher.reference(image, mask) for image, mask in zip(opened, checked)]


def check_mask(mask, size: tuple[int, int]) -> np.ndarray:
    """A reference's mask as (H, W) bool; BadInput where it is no mask of its picture."""
    mask = np.asarray(mask)
    if mask.ndim == 3 and mask.shape[2] in (3, 4):  # a PNG saved with colours
        mask = mask[..., :3].any(2)
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise BadInput(
            f"a reference mask is (H, W) of bool or whole numbers, not {mask.shape} of {mask.dtype}"
        )
    if mask.shape != tuple(size):
        raise BadInput(
            f"the reference mask is {mask.shape[1]}x{mask.shape[0]}, its picture {size[1]}x{size[0]}: "
            "give a mask of the picture's size"
        )
    mask = mask != 0
    if not mask.any():
        raise BadInput("the reference mask is empty: paint what you mean")
    if mask.all():
        raise BadInput("the reference mask covers the whole picture: paint only what you mean")
    return mask


def open_mask(source) -> np.ndarray:
    """A mask given as an array, a PIL image or a path to one; of a picture with colours, any that is not black."""
    from PIL import Image

    if isinstance(source, (str, Path)):
        try:
            with Image.open(source) as image:
                return open_mask(image)
        except OSError:
            raise BadInput(
                f"no mask that can be read at {source}: give a PNG, black outside, white inside"
            ) from None
    if isinstance(source, Image.Image):
        return np.asarray(
            source.convert("RGB" if source.mode not in ("1", "L", "I", "I;16") else source.mode)
        )
    return np.asarray(source)
