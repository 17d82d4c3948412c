"""Attention of chat models that see: from a phrase in the question to the tokens of the picture.

    look = ChatLooker(Reasoner.load("Qwen/Qwen3-VL-2B-Instruct")).look(image, ["mug", "sky"])

Positions are found by the model's own token ids, whatever number of pictures the conversation holds; the last one is
looked at. Scores are noted where queries meet keys, in an attention function that otherwise is transformers' sdpa: the
attention of the text part is exchanged for it while a looker looks.
"""

import contextlib
import re
from contextvars import ContextVar

import torch
from PIL import Image
from torch import Tensor, nn

from assistant.attention.prompt_attention import PromptAttention
from assistant.attention.transformers_probe import BATCH, NO_ATTENTION, Planes, TransformersProbe, WordRows
from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.sam.mask_ops import pad_to_square

RECORDING = "maskpick_recorded"  # the name under which transformers knows our attention
_recorder: ContextVar = ContextVar("recorder", default=None)


class ChatProbe(TransformersProbe):
    """A chat model that sees, as `assistant.mllm.local_model.Reasoner` holds it: "where is the {phrase}?", the answer begun
    with the phrase. Scores are the mean over the phrase's tokens in the question. match: p([SEG]) beside p([ABS]) after
    the answer's phrase (one half for all where these tokens were never trained)."""

    def __init__(self, llm):
        self.llm, self.model, self.tokenizer = llm, llm.model, llm.tokenizer
        self.decoder = self.model.get_decoder()
        blocks = getattr(self.decoder, "layers", None)
        if blocks is None or not hasattr(blocks[0], "self_attn"):
            raise BadInput(NO_ATTENTION)
        self.layers = len(blocks)
        if self.tokenizer.pad_token is None:  # batches need one; the mask hides it
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.words, self.own = WordRows(self.model.get_input_embeddings()), {}

    def attention_modules(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.decoder.layers]

    def tokens(self, name: str) -> list[int]:
        return self.tokenizer(f" {name}", add_special_tokens=False).input_ids

    def attention(
        self, view, prompts: list[str], layers: list[int] | None = None, before: list[Turn] = ()
    ) -> PromptAttention:
        """before: earlier turns of the conversation, with their own pictures."""
        layers = self.chosen(layers)
        image, kept = view.image, (1.0, 1.0)
        if getattr(
            self.llm.processor.image_processor, "do_center_crop", False
        ):  # what is cropped is never seen
            height, width = image.shape[:2]
            image = pad_to_square(image)
            kept = height / len(image), width / len(image)
        scores, match, place = [], [], None
        for first in range(0, len(prompts), BATCH):
            found, fits, place = self._batch(
                image, prompts[first : first + BATCH], layers, list(before), kept
            )
            scores.append(found), match.append(fits)
        return PromptAttention(torch.cat(scores), torch.cat(match), layers, place)

    def _batch(self, image, prompts, layers, before, kept) -> tuple[Tensor, Tensor, Planes]:
        llm = self.llm
        conversations = [[*before, Turn(f"where is the {p}?", None, [image])] for p in prompts]
        texts = [llm.prompt(turns) + p for turns, p in zip(conversations, prompts)]
        images = [[Image.fromarray(i) for turn in turns for i in turn.images] for turns in conversations]
        weight = self.model.get_input_embeddings().weight
        try:
            inputs = llm.processor(
                text=texts, images=images, return_tensors="pt", padding=True, **llm.tokenizer_options(texts[0])
            )
        except ValueError as e:
            raise BadInput(
                f"this model cannot read the picture or the phrase: {str(e).splitlines()[0][:200]}"
            ) from e
        inputs = inputs.to(weight.device, dtype=weight.dtype)
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        places = [
            picture_places(row, self.model.config, self.tokenizer, inputs, len(images[0]), kept)
            for row in ids
        ]
        at = [
            phrase_tokens(self.tokenizer, row, m, int(p[0].max()) + 1, phrase)
            for row, m, p, phrase in zip(ids, mask, places, prompts)
        ]
        with llm.lock, self._recorded(layers, [p[0] for p in places], at) as rows, self.words.active():
            hidden = self.model.model(**inputs).last_hidden_state
        if set(rows) != set(layers):
            raise BadInput(NO_ATTENTION)
        last = torch.stack([m.nonzero()[-1, 0] for m in mask])
        logits = self.model.get_output_embeddings()(hidden[torch.arange(len(ids)), last]).float()
        fits = (logits[:, llm.seg] - logits[:, llm.abs]).sigmoid()
        return torch.stack([rows[k] for k in layers], 1).cpu(), fits.cpu(), places[0][1]

    @contextlib.contextmanager
    def _recorded(self, layers: list[int], places: list[Tensor], at: list[Tensor]):
        """Scores of the rows' phrase tokens on their picture's tokens: {layer: (B, H, N)}, filled while the model
        runs."""
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

        AttentionInterface.register(RECORDING, recorded_attention)
        AttentionMaskInterface.register(RECORDING, sdpa_mask)
        before, rows = self.decoder.config._attn_implementation, {}
        if before not in (None, "eager", "sdpa", RECORDING) and "flash" not in str(before):
            raise BadInput(NO_ATTENTION)
        token = _recorder.set((set(layers), places, at, rows))
        try:
            self.decoder.set_attn_implementation(RECORDING)
            yield rows
        finally:
            _recorder.reset(token)
            self.decoder.set_attn_implementation(before or "sdpa")


def recorded_attention(module, query, key, value, attention_mask, scaling=None, **options):
    """transformers' sdpa attention; on the way it notes the scores that the current looker asked for."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    asked = _recorder.get()
    if asked and getattr(module, "layer_idx", None) in asked[0]:
        layers, places, at, rows = asked
        groups, factor = (
            query.shape[1] // key.shape[1],
            query.shape[-1] ** -0.5 if scaling is None else scaling,
        )
        each = []
        for b, (keys, queries) in enumerate(zip(places, at)):
            k = key[b][:, keys].float().repeat_interleave(groups, 0)
            each.append((query[b][:, queries].float() @ k.transpose(1, 2) * factor).mean(1))
        rows[module.layer_idx] = torch.stack(each)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


def phrase_tokens(tokenizer, ids: Tensor, mask: Tensor, start: int, phrase: str) -> Tensor:
    """Positions of the first mention of `phrase` in ids[start:]: where the decoded text grows through it."""
    positions = [int(i) for i in mask.nonzero()[:, 0] if i >= start]
    text = [
        tokenizer.decode(ids[positions[:k]], clean_up_tokenization_spaces=False)
        for k in range(len(positions) + 1)
    ]
    begin = text[-1].find(phrase)
    if begin < 0:
        raise BadInput(f'this model\'s tokenizer cannot write "{phrase}": use other words')
    found = [
        p
        for p, before, after in zip(positions, text, text[1:])
        if len(after) > begin and len(before) < begin + len(phrase)
    ]
    return torch.tensor(found, device=ids.device)


def picture_places(
    ids: Tensor, config, tokenizer, inputs, count: int, kept: tuple[float, float]
) -> tuple[Tensor, Planes]:
    """Positions (N,) in ids of the tokens of the last of `count` pictures, found by the model's own token ids, and the
    grid that they lie on. Tiles (SmolVLM) make one grid, the whole picture beside them another."""
    token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    positions = (ids == token).nonzero()[:, 0]
    if not len(positions):
        raise BadInput(
            "this model does not show its pictures as tokens of the text; attention maps need one that does"
        )
    breaks = (positions.diff() > 1).nonzero()[:, 0] + 1
    runs = list(torch.tensor_split(positions, breaks.cpu()))
    if "image_grid_thw" in inputs:  # Qwen-VL: one run a picture, of its own shape
        merge = config.vision_config.spatial_merge_size
        shapes = [(int(h) // merge, int(w) // merge) for _, h, w in inputs["image_grid_thw"][:count]]
        h, w = shapes[-1]
        chosen = positions[sum(a * b for a, b in shapes[:-1]) :]
        return _checked(chosen, h * w), Planes([(torch.arange(h * w).view(h, w), kept)])
    tiles: dict[tuple[int, int], Tensor] = {}
    whole, ended = None, True
    for run in runs:  # a picture is its tiles, row by row, and then the whole of it
        said = tokenizer.decode(ids[max(0, int(run[0]) - 3) : int(run[0])])
        tile = re.findall(r"row_(\d+)_col_(\d+)", said)
        if ended:
            tiles, whole = {}, None
        if tile:
            tiles[tuple(int(n) - 1 for n in tile[-1])] = run
        else:
            whole = run
        ended = not tile
    parts, planes, first = [], [], 0
    if whole is not None:
        side = _side(whole)
        planes.append((torch.arange(side * side).view(side, side), kept))
        parts.append(whole)
        first = side * side
    if tiles:
        side, high, wide = _side(next(iter(tiles.values()))), *(max(n) + 1 for n in zip(*tiles))
        grid = torch.empty(high * side, wide * side, dtype=torch.long)
        for (i, j), run in sorted(tiles.items()):
            own = first + torch.arange(side * side).view(side, side)
            grid[i * side : (i + 1) * side, j * side : (j + 1) * side] = own
            parts.append(run)
            first += side * side
        planes.append((grid, kept))
    return torch.cat(parts), Planes(planes)


def _side(run: Tensor) -> int:
    side = round(len(run) ** 0.5)
    _checked(run, side * side)
    return side


def _checked(run: Tensor, expected: int) -> Tensor:
    if len(run) != expected:
        raise BadInput(
            f"the picture takes {len(run)} tokens, which is no grid that is known: attention maps need "
            "LLaVA 1.5, Qwen-VL or SmolVLM"
        )
    return run
