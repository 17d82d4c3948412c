"""A multimodal LLM and a selector that `python -m finetune` trained on any SAM's proposals.

    parts = load_tuned(Reasoner.load("Qwen3-VL-4B-Instruct"), eyes, "runs/tuned")      # for Assistant(parts, weights)
    view = parts.eyes.open(image)                       # what `eyes` opens, with features of every proposal
    reply, found = parts.ask([Turn("what keeps the rain off?")], view, threshold=0.5)

A folder holds `lora/` (peft's form; none in a merged model) and `heads.safetensors`: the selector, and in its metadata
which features it reads. As LLM-Seg (arXiv 2404.08767) a proposal is what lies under its mask in SAM's embedding, and in
DINOv2's where the adapter was trained with it; here its geometry and SAM's judgement of it are added.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assistant.errors import BadInput
from assistant.grammar import ABS, SEG, TOKEN, Turn
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.selector import Selector, choose, runners_up
from assistant.pipeline import AttentionProbe, ImageOpener, Pipeline, Reply, Selection
from assistant.sam.image_opener import Progress, SamOpenedImage
from assistant.sam.proposals import Proposals
from assistant.sam.region_features import GEOMETRY, geometry, pooled
from assistant.sam.segmenter import Embedding, Segmenter
from assistant.weights import adapter_file, read_weights, sha256_of

SHAPE = GEOMETRY + 2  # geometry, predicted IoU, stability: the last columns of a proposal's features
DINO_SIDE = 896  # px of the longer side, as LLM-Seg


@dataclasses.dataclass
class TrainedOpenedImage(SamOpenedImage):
    """A picture, opened, with the features (N, R) float32 of its proposals: embedding, then SHAPE."""

    features: Tensor | None = None


class Dino:
    """A frozen DINOv2 of transformers: the patches' features of a picture."""

    def __init__(self, name_or_path, device="cpu"):
        from transformers import AutoImageProcessor, AutoModel

        try:
            self.model = AutoModel.from_pretrained(name_or_path).to(device).eval().requires_grad_(False)
            processor = AutoImageProcessor.from_pretrained(name_or_path)
        except Exception as error:  # a broken folder and an unreachable hub raise a dozen kinds
            raise BadInput(
                f"cannot load {name_or_path} as DINOv2; give a folder that holds one, or a hub id while the "
                f"hub can be reached ({str(error).splitlines()[0]})"
            ) from error
        self.mean, self.std = (
            torch.tensor(v, device=device).view(3, 1, 1) for v in (processor.image_mean, processor.image_std)
        )

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, side: int = DINO_SIDE) -> Tensor:
        """(H, W, 3) uint8 -> (1, D, h, w) float, over the whole picture and nothing else."""
        from PIL import Image

        patch = self.model.config.patch_size
        h, w = (max(1, round(s * side / max(image.shape[:2]) / patch)) for s in image.shape[:2])
        resized = Image.fromarray(image).resize((w * patch, h * patch), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).to(self.mean.device).movedim(-1, 0) / 255
        tokens = self.model(pixel_values=((pixels - self.mean) / self.std)[None]).last_hidden_state
        return tokens[:, -h * w :].transpose(1, 2).unflatten(2, (h, w)).float()  # the class token comes first


class TrainedImageOpener:
    """`plain` (open(image) -> a view with embedding and proposals), with the features that the selector reads."""

    def __init__(self, plain: ImageOpener[SamOpenedImage], dino: Dino | None = None):
        self.plain, self.dino = plain, dino

    @property
    def segmenter(self) -> Segmenter:
        return self.plain.segmenter

    def propose(self, image: np.ndarray, progress: Progress | None = None) -> tuple[Embedding, Proposals]:
        """See `pipeline.ImageOpener`."""
        return self.plain.propose(image, progress)

    @torch.inference_mode()
    def open(self, image: np.ndarray, progress: Progress | None = None) -> TrainedOpenedImage:
        view = self.plain.open(image, progress)
        return TrainedOpenedImage(view.embedding, view.proposals, image, features=self.features(image, view))

    def features(self, image: np.ndarray, view) -> Tensor:
        """(N, C [+ D] + SHAPE) float32 of the view's proposals."""
        proposals, embedding, segmenter = view.proposals, view.embedding, self.segmenter
        maps = embedding.features.float()
        device = maps.device
        low = torch.as_tensor(np.asarray(proposals.low_res_logits), device=device)
        masks = (
            (low > segmenter.threshold).float().reshape(-1, segmenter.low_res_side, segmenter.low_res_side)
        )
        # Only the part of the square that the picture fills.
        inside = lambda x: x[
            ...,
            : max(1, round(x.shape[-2] * embedding.input_size[0] / segmenter.side)),
            : max(1, round(x.shape[-1] * embedding.input_size[1] / segmenter.side)),
        ]
        parts = [pooled(inside(maps), inside(masks))]
        if self.dino is not None:
            parts.append(pooled(self.dino(image).to(device), inside(masks)))
        boxes = torch.as_tensor(proposals.boxes).reshape(-1, 4)
        judged = torch.as_tensor(np.stack([proposals.predicted_iou, proposals.stability], 1)).float()
        shape = torch.cat([geometry(boxes, torch.as_tensor(proposals.areas), image.shape[:2]), judged], 1)
        return torch.cat([*(p.cpu() for p in parts), shape.cpu()], 1)


class StandardisedSelector(nn.Module):
    """The selector over regions as `TunedEyes` describes them, (N, R) standardised by what training saw."""

    def __init__(
        self, state_dim: int, region_dim: int, width: int = 192, depth: int = 2, dropout: float = 0.1
    ):
        super().__init__()
        self.config = {
            "state_dim": state_dim,
            "region_dim": region_dim,
            "width": width,
            "depth": depth,
            "dropout": dropout,
        }
        self.selector = Selector(state_dim, region_dim - SHAPE, SHAPE, width, depth, dropout)
        self.register_buffer("mean", torch.zeros(region_dim))
        self.register_buffer("scale", torch.ones(region_dim))

    def forward(self, states: Tensor, features: Tensor, margin: Tensor, ignored: Tensor | None = None):
        """states (M, state_dim), features (N, R) or (M, N, R), margin (M,), ignored (M, N) -> Scores."""
        features = (features - self.mean) / self.scale
        return self.selector(
            states.float(), features[..., :-SHAPE], features[..., -SHAPE:], None, margin, ignored
        )


class TrainedPipeline(Pipeline[TrainedOpenedImage]):
    """The parts of an `Assistant`."""

    def __init__(self, opener: TrainedImageOpener, llm: MultimodalLLM, selector: StandardisedSelector):
        self.opener = opener
        self.llm, self.selector = llm, selector

    @functools.cached_property
    def _probe(self) -> AttentionProbe:
        from assistant.attention.chat_probe import ChatProbe

        return ChatProbe(self.llm)

    def attention_probe(self) -> AttentionProbe:
        """The probe of the language model. Raises BadInput where it exposes no attention."""
        return self._probe

    def ask(
        self, turns: list[Turn], opened: TrainedOpenedImage, threshold: float, **options: Any
    ) -> tuple[Reply, list[Selection]]:
        """See `pipeline.Pipeline`."""
        turns = list(turns)
        if not any(
            turn.images for turn in turns
        ):  # earlier turns may have been forgotten, the image never is
            turns[0] = dataclasses.replace(turns[0], images=[opened.image])
        return answer(self.llm, self.selector, turns, opened.features, threshold, **options)


@torch.inference_mode()
def answer(
    llm: MultimodalLLM,
    selector: StandardisedSelector,
    turns: list[Turn],
    features: Tensor,
    threshold: float,
    **options: Any,
) -> tuple[Reply, list[Selection]]:
    """Answer the last turn and select among proposals; all that answering needs of the proposals is their features.

    Training answers its validation questions with this, from the features that it has stored.

    Args:
        llm: The language model.
        selector: Reads the states of the reply's markers.
        turns: The conversation, with the image in one of the turns.
        features: (N, R) float32, as `TrainedImageOpener` gives them.
        threshold: Confidence from which a target counts as present. The confidence is the selector's, which knows the
            margin of the language model.
        options: See `MultimodalLLM.reply`.

    Returns:
        The reply, with the markers as the selector decides them, and a selection for each.
    """
    reply = llm.reply(turns, **options)
    selections = select(selector, reply.states, reply.margins, features)
    present = iter([one.confidence >= threshold and bool(one.proposals) for one in selections])
    text = TOKEN.sub(lambda _: SEG if next(present) else ABS, reply.text)
    return dataclasses.replace(reply, text=text), selections


@torch.inference_mode()
def select(
    selector: StandardisedSelector, states: Tensor, margins: Tensor, features: Tensor
) -> list[Selection]:
    """states (M, state_dim) and margins (M,) of markers against proposals (N, R)."""
    if not len(states) or not len(features):
        return [Selection(0.0, []) for _ in states]
    device = selector.mean.device
    scores = selector(states.to(device), features.to(device), margins.to(device))
    found = []
    for k in range(len(states)):
        chosen = choose(scores, k)
        found.append(Selection(float(scores.presence[k].sigmoid()), chosen, runners_up(scores, k, chosen)))
    return found


def read_heads(folder: Path) -> tuple[StandardisedSelector, dict]:
    """The selector of a folder and what its file says of itself. BadInput: none, or the pocket preset's."""
    file = adapter_file(folder)
    state, about = read_weights(file)
    try:
        config = json.loads(about.get("tuned", "null"))
    except ValueError as error:
        raise BadInput(f"cannot read {file}: {error}; fetch it again") from None
    if config is None:
        raise BadInput(f"{file} belongs to the pocket preset; use it with --preset pocket")
    selector = StandardisedSelector(**config["selector"])
    selector.load_state_dict(state)
    return selector.eval(), config


def load_trained_pipeline(llm: MultimodalLLM, opener, adapter) -> TrainedPipeline:
    """The parts that the folder `adapter` makes of a multimodal LLM and of `eyes`. Merges LoRA into the LLM, unless its
    weights are 4-bit. BadInput: what is missing, or was trained on another LLM or SAM."""
    adapter = Path(adapter)
    selector, config = read_heads(adapter)
    width = llm.model.get_output_embeddings().weight.shape[-1]
    if width != selector.config["state_dim"]:
        raise BadInput(
            f"the adapter {adapter} was trained on a language model of width {selector.config['state_dim']}, "
            f"this one has {width}; give --mllm the model it was trained on: {config.get('mllm')}"
        )
    if not config.get("merged"):
        lora = adapter_file(adapter, "lora/adapter_model.safetensors")
        if sha256_of(lora) != config["lora"]:
            raise BadInput(
                f"the files in {adapter} are of two checkpoints: training was stopped while it saved; give its "
                "command again"
            )
        llm.adapt(lora.parent, merge=not getattr(llm.model, "is_quantized", False))
    device, dino = llm.model.device, config.get("dino")
    return TrainedPipeline(
        TrainedImageOpener(opener, Dino(dino, device) if dino else None), llm, selector.to(device)
    )
