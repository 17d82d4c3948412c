"""What few-shot segmentation compares pictures and names by, all of it frozen: the pocket preset's own, or any CLIP's.

features = PocketFeatures()                      # or ClipFeatures(folder or hub id, segmenter)
patches, joint = features(image, features.encode(segmenter, image))
name = features.words("mug")
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.sam.segmenter import Embedding, Segmenter


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
        from assistant.pocket.opening import fast_math

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
            alike = torch.full((1000,), -1.0).scatter_reduce(
                0, owner, names @ self._embed([label])[0], "amax"
            )
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
        means = torch.stack([self._table[torch.tensor(row)].float().mean(0) for row in ids])
        return F.normalize(means - self._common, dim=1)


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
            self.model = (
                CLIPModel.from_pretrained(where, attn_implementation="eager").eval().requires_grad_(False)
            )
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

        height, width = (
            max(1, round(used * self.side / self.segmenter.side)) for used in embedding.input_size
        )
        pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        square = torch.full(
            (3, self.side, self.side), 0.0
        )  # the mean colour, where the picture does not reach
        mean, std = (
            torch.tensor(v)[:, None, None]
            for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        )  # CLIP's, of all its models
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
        tokens = self.tokenizer(f"a photo of a {label}", return_tensors="pt", truncation=True).to(
            self.segmenter.device
        )
        found = self.model.get_text_features(**tokens)
        found = getattr(found, "pooler_output", found)  # transformers 5 wraps it
        return F.normalize(found[0], dim=0).float().cpu()


def open_features(about: dict, segmenter: Segmenter):
    """Frozen features from what a weight file says of them."""
    if about["kind"] == "pocket":
        if not hasattr(getattr(segmenter.model, "image_encoder", None), "backbone"):
            raise BadInput(
                "these weights read the pocket SAM's own maps: another SAM needs weights trained on CLIP"
            )
        return PocketFeatures()
    return ClipFeatures(about["model"], segmenter, about["side"], about["deep"])
