"""Attention of models that transformers knows: image-text matchers with cross-attention, and chat models that see.

    looker = load_looker("Salesforce/blip-itm-large-coco")       # or LLaVA, Qwen-VL, SmolVLM: a folder or a hub id
    look = looker.look(image, ["mug", "sky"])                    # see `assistant.attention.maps.Look`

BLIP's text layers attend to the patches (Li et al. 2022, arXiv 2201.12086); in chat models the picture's tokens are
part of the text and later words attend to them (`assistant.attention.chat_probe`). Scores are taken before the softmax, where
queries meet keys; prompts go through in batches.
"""

import contextlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.attention.maps import Look, Ranking
from assistant.errors import BadInput
from assistant.images import open_image

NO_ATTENTION = (
    "this model exposes no attention: load it with attn_implementation='eager' or 'sdpa' in a version of "
    "transformers that lets attention be exchanged (flash attention keeps no scores)"
)
BATCH = 16  # prompts at once
SIDE = 512  # px, about, of the longer side of what BLIP is shown


class Planes:
    """Grids of places over a picture: [(index (h, w) into the N places, share of its height and width that is
    picture)]."""

    def __init__(self, planes: list[tuple[Tensor, tuple[float, float]]]):
        self.planes = planes

    def spread(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """(K, N) -> (K, H, W): bilinear, the mean of the grids."""
        maps = []
        for index, (high, wide) in self.planes:
            full = [max(side, round(side / part)) for side, part in zip(size, (high, wide))]
            grid = values[:, index.to(values.device)][None]
            drawn = F.interpolate(grid, full, mode="bilinear", align_corners=False)[0]
            maps.append(drawn[:, : size[0], : size[1]])
        return torch.stack(maps).mean(0)


class WordRows:
    """Embeddings of some tokens in place of the model's own while a looker looks; rows: {token: (W,)}."""

    def __init__(self, embedding: nn.Module):
        self.embedding, self.rows = embedding, {}

    @contextlib.contextmanager
    def active(self):
        handle = self.embedding.register_forward_hook(self._replace) if self.rows else None
        try:
            yield
        finally:
            if handle:
                handle.remove()

    def _replace(self, module, args, out: Tensor) -> Tensor:
        for token, row in self.rows.items():
            out = torch.where((args[0] == token)[..., None], row.to(out.dtype), out)
        return out


class Looker:
    """What the two kinds share. layers: how many; `attention_modules()[l]` is what tuning trains of layer l. A view is
    the picture (H, W, 3) uint8, or has it as `image`. Without a ranking all layers are averaged."""

    ranking: Ranking | None = None
    kept: dict | None = None  # the pocket's keeps here what is read again and again; these keep nothing

    def open(self, image, keep: Path | None = None) -> np.ndarray:
        """A picture as `look` takes it: (H, W, 3) uint8. BadInput: no picture."""
        return open_image(image)

    def size(self, view) -> tuple[int, int]:
        return getattr(view, "image", view).shape[:2]

    def rles(self, view) -> list[dict] | None:
        """COCO RLE of the view's regions; None: what is looked at is a grid."""
        return None

    def chosen(self, layers: list[int] | None) -> list[int]:
        layers = list(range(self.layers)) if layers is None else sorted(layers)
        if layers[0] < 0 or layers[-1] >= self.layers:
            raise BadInput(f"there is no layer {layers[-1]}: this model has {self.layers}")
        return layers

    def tunable_attention(self, layers: list[int]) -> dict[str, nn.Parameter]:
        """What one-shot tuning trains first: the attention of `layers`, in the model itself. The rest is frozen.
        `restore({})` takes it back."""
        self.model.requires_grad_(False)
        found = {}
        for k in self.chosen(layers):
            for name, parameter in self.attention_modules()[k].named_parameters():
                self.own.setdefault(f"layers.{k}.{name}", parameter.detach().clone())
                found[f"layers.{k}.{name}"] = parameter.requires_grad_(True)
        return found

    def tunable_words(self, prompts: list[str]) -> dict[str, nn.Parameter]:
        """What it trains then: embeddings of the prompts' tokens."""
        table = self.model.get_input_embeddings().weight.detach()
        tokens = sorted({t for p in prompts for t in self.tokens(p)})
        self.words.rows = {t: nn.Parameter(table[t].clone()) for t in tokens}
        return {f"rows.{t}": p for t, p in self.words.rows.items()}

    def restore(self, tuned: dict[str, Tensor]) -> None:
        """Take over what the two named; {} gives back the model's own."""
        self.words.rows = {int(name[5:]): value for name, value in tuned.items() if name.startswith("rows.")}
        before = dict(self.own)
        for name, value in (before | {n: v for n, v in tuned.items() if n.startswith("layers.")}).items():
            _, k, *rest = name.split(".")
            parameter = self.attention_modules()[int(k)].get_parameter(".".join(rest))
            self.own.setdefault(name, parameter.detach().clone())
            parameter.data.copy_(value)


class BlipLooker(Looker):
    """BlipForImageTextRetrieval. Prompts are "image of {name}"; scores are the mean over the name's tokens."""

    def __init__(self, model, processor):
        self.model, self.processor = model.eval(), processor
        self.tokenizer = processor.tokenizer
        self.text = model.text_encoder
        self.layers = len(self.attention_modules())
        self.words, self.own = WordRows(model.get_input_embeddings()), {}

    def attention_modules(self) -> list[nn.Module]:
        return [layer.crossattention.self for layer in self.text.encoder.layer]

    def tokens(self, name: str) -> list[int]:
        return self.tokenizer(f" {name}", add_special_tokens=False).input_ids

    def pixels(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """(1, 3, h, w) normalised, in the picture's own shape (both sides whole patches), and its grid."""
        patch = self.model.config.vision_config.patch_size
        longest = min(SIDE, 2 * self.model.config.vision_config.image_size)
        scale = longest / max(image.shape[:2])
        grid = tuple(max(1, round(side * scale / patch)) for side in image.shape[:2])
        resized = Image.fromarray(image).resize((grid[1] * patch, grid[0] * patch), Image.Resampling.BICUBIC)
        norm = self.processor.image_processor
        mean, std = torch.tensor(norm.image_mean), torch.tensor(norm.image_std)
        values = (torch.from_numpy(np.array(resized)).float() / 255 - mean) / std
        weight = self.model.vision_model.embeddings.patch_embedding.weight
        return values.permute(2, 0, 1)[None].to(weight), grid

    def look(self, view, prompts: list[str], layers: list[int] | None = None) -> Look:
        layers = self.chosen(layers)
        pixels, grid = self.pixels(getattr(view, "image", view))
        with torch.no_grad():
            patches = self.model.vision_model(
                pixel_values=pixels, interpolate_pos_encoding=True
            ).last_hidden_state
        scores, match = [], []
        for first in range(0, len(prompts), BATCH):
            one = self._batch(patches, prompts[first : first + BATCH], layers)
            scores.append(one[0]), match.append(one[1])
        index = torch.arange(grid[0] * grid[1]).view(grid)
        return Look(torch.cat(scores), torch.cat(match), layers, Planes([(index, (1.0, 1.0))]))

    def _batch(self, patches: Tensor, prompts: list[str], layers: list[int]) -> tuple[Tensor, Tensor]:
        texts = [f"image of {p}" for p in prompts]
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, return_offsets_mapping=True)
        start = len("image of ")
        named = (encoded.offset_mapping[..., 1] > start) & encoded.attention_mask.bool()  # (P, T)
        device = patches.device
        kept: dict[tuple[int, str], Tensor] = {}
        modules, handles = self.attention_modules(), []
        for k in layers:
            for part in ("query", "key"):
                hook = lambda module, args, out, key=(k, part): kept.__setitem__(key, out)
                handles.append(getattr(modules[k], part).register_forward_hook(hook))
        try:
            with self.words.active():
                states = self.text(
                    input_ids=encoded.input_ids.to(device),
                    attention_mask=encoded.attention_mask.to(device),
                    encoder_hidden_states=patches.expand(len(prompts), -1, -1),
                    encoder_attention_mask=torch.ones(len(prompts), patches.shape[1], device=device),
                ).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        if len(kept) < 2 * len(layers):
            raise BadInput(NO_ATTENTION)
        rows, weight = [], named.float().to(device)
        for k in layers:
            heads = modules[k].num_attention_heads
            q, key = (
                kept[k, part].unflatten(-1, (heads, -1)).transpose(1, 2).float() for part in ("query", "key")
            )
            # (P, H, T, N): without the picture's own token
            each = q @ key[:, :, 1:].transpose(2, 3) / q.shape[-1] ** 0.5
            rows.append((each * weight[:, None, :, None]).sum(2) / weight.sum(1)[:, None, None])
        fits = self.model.itm_head(states).float().softmax(-1)[..., 1]
        inside = encoded.attention_mask.bool().to(device)  # padding says nothing about the match
        return torch.stack(rows, 1).cpu(), fits.masked_fill(~inside, 0).amax(1).cpu()


def load_looker(name_or_path, device: str = "cpu", adapter=None) -> Looker:
    """A folder in transformers' layout or a hub id; adapter: what finetune wrote for a chat model. BadInput: what
    cannot be loaded, or looks at nothing."""
    from transformers import AutoConfig

    from assistant.attention.chat_probe import ChatLooker
    from assistant.mllm.local_model import Reasoner, _check_folder, _first_line

    _check_folder(name_or_path)
    try:
        kind = AutoConfig.from_pretrained(name_or_path).model_type
    except Exception as e:
        raise BadInput(
            f"cannot load {name_or_path}; give a folder that holds a model, or a hub id while the hub can "
            f"be reached ({_first_line(e)})"
        ) from e
    if kind != "blip":
        lora = Path(adapter) / "lora" if adapter and (Path(adapter) / "lora").is_dir() else adapter
        return ChatLooker(Reasoner.load(name_or_path, adapter=lora, device=device))
    from transformers import AutoProcessor, BlipForImageTextRetrieval

    try:
        model = BlipForImageTextRetrieval.from_pretrained(name_or_path).to(device)
        return BlipLooker(model, AutoProcessor.from_pretrained(name_or_path))
    except Exception as e:
        raise BadInput(f"cannot load {name_or_path} as BLIP's image-text matcher ({_first_line(e)})") from e


def open_looker(args):
    """The looker of what the options of `assistant.presets.add_model_arguments` name. BadInput: it cannot be had, or it
    exposes no attention."""
    from assistant.presets import PRESETS, load_preset, pick_device
    from assistant.weights import fingerprint, resolve_model

    name = args.mllm or (PRESETS[args.preset].mllm if args.preset in PRESETS else None)
    if name in (None, "pocket"):  # an unknown preset says so
        parts, weights = load_preset(args.preset, args.adapter, args.device, args.mllm)
        looker = looker_of(parts)
        looker.weights = weights
        return looker
    if str(name).startswith("openai:"):
        raise BadInput("a model on a server shows nobody its attention: give --mllm a folder or a hub id")
    where = resolve_model(name)
    looker = load_looker(where, pick_device(args.device), args.adapter)
    looker.weights = {"mllm": fingerprint(where)}
    return looker


def looker_of(parts):
    """The looker of an assistant's parts. BadInput: their model exposes no attention."""
    looker = getattr(parts, "looker", None)
    reasoner = getattr(parts, "reasoner", None) or getattr(getattr(parts, "model", None), "reasoner", None)
    if looker is None and reasoner is not None:
        from assistant.attention.chat_probe import ChatLooker

        looker = parts.looker = ChatLooker(reasoner)
    if looker is None:
        raise BadInput(
            "a model on a server shows nobody its attention: use the pocket preset, or --mllm with a folder "
            "or a hub id"
        )
    return looker
