"""The pocket preset's parts, and how they open a picture.

pocket = load_pocket()                      # committed weights over the two wheels
view = pocket.eyes.open(image)              # everything that is computed once per picture
spoken, scored = pocket.ask(turns, view)    # the reply, and each of its targets against the proposals
"""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assistant.errors import BadInput
from assistant.grammar import Turn, parse, reply_for
from assistant.mllm.selector import Scores, Selector, next_best_proposals, select_proposals
from assistant.pipeline import Pipeline, Reply, Selection
from assistant.pocket.attention import PocketProbe, published_probe
from assistant.pocket.llm import PocketLLM, RegionEncoder
from assistant.pocket.opening import (
    PocketImageOpener,
    PocketOpenedImage,
    fast_math,
    load_pocket_opener,
    shrink,
)
from assistant.pocket.question_splitter import questions_in
from assistant.pocket.semantic import Semantic
from assistant.weights import (
    BACKBONE,
    SMOLLM2,
    adapter_file,
    pocket_file,
    read_weights,
    sha256_of,
    smollm2_folder,
)


class PocketPipeline(Pipeline[PocketOpenedImage]):
    """semantic: None for masks by the selector alone."""

    def __init__(
        self, opener: PocketImageOpener, llm: PocketLLM, selector: Selector, semantic: Semantic | None = None
    ):
        self.opener = opener
        self.llm, self.selector, self.semantic = llm, selector, semantic
        self.rows = semantic.rows(llm.forms) if semantic else {}

    @functools.cached_property
    def _probe(self) -> PocketProbe:
        return published_probe(self.llm, self.opener)

    def attention_probe(self) -> PocketProbe:
        """The probe of the pocket LLM, with the tuned attention that is published for it."""
        return self._probe

    @torch.inference_mode()
    def ask(
        self, turns: list, view: PocketOpenedImage, threshold: float, **options
    ) -> tuple[Reply, list[Selection]]:
        """The reply to the last turn and its targets; `threshold` on confidence decides between [SEG] and [ABS]."""
        seen = self.llm.encoder(view.features)
        found: list[Selection] = []

        def decide(state: Tensor, margin: Tensor, phrase: str) -> bool:
            if not len(view.features):
                found.append(Selection(0.0, []))
                return False
            named = self.llm.encoder.match(seen.words, self.llm.name(phrase)[None])
            scores = self.selector(
                state[None], seen.words, seen.shape, named, margin[None], quality=seen.thing
            )
            chosen = self.choose(scores, phrase, view)
            found.append(
                Selection(float(scores.presence[0].sigmoid()), chosen, next_best_proposals(scores, 0, chosen))
            )
            return found[-1].confidence >= threshold

        replies, earlier = [], list(turns[:-1])
        for k, question in enumerate(questions_in(turns[-1].question)):
            if k and options.get("stream"):
                options["stream"](" ")
            replies.append(self.llm.reply([*earlier, Turn(question)], seen, decide=decide, **options))
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

    def choose(self, scores: Scores, phrase: str, view: PocketOpenedImage) -> list[int]:
        """The proposals of the one target that `scores` are of, best first: by the map of names where that knows the
        phrase's."""
        row = self.rows.get(self.llm.row(phrase))
        if row is None:
            return select_proposals(scores, 0)
        if view.names is None:
            with fast_math():
                view.names = self.semantic.names(view.embedding)
        masks = torch.from_numpy(view.proposals.low_res_logits) > 0
        return self.semantic.choose(scores, 0, masks, view.names, row, view.embedding.input_size)

    @torch.inference_mode()
    def name_region(
        self, image: np.ndarray, view: PocketOpenedImage, mask: np.ndarray
    ) -> list[tuple[str, float]]:
        """What a part of the picture is, mask (H, W) bool: [(taught name, probability among the taught names)], most
        likely first; [] where none were taught."""
        encoder = self.llm.encoder
        if not len(encoder.names):
            return []
        low = torch.from_numpy(self.opener.segmenter.low_res_logits(view.embedding, mask))[None]
        if not (low > 0).any():  # smaller than a cell
            low[0].flatten()[low.argmax()] = 1.0
        with fast_math():
            features = self.opener.features(shrink(image), view.embedding, low)
        sure = encoder.name_logits(encoder(features).words, encoder.names)[0].softmax(0)
        words = {}
        for form, row in self.llm.forms.items():
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


def load_pocket(adapter: Path | None = None) -> tuple[PocketPipeline, dict[str, str]]:
    """The pocket preset's parts and the checksums of its weights; `adapter`: a folder that `finetune records` wrote."""
    sam_file = pocket_file("sam.safetensors")
    heads_file, lora = (
        pocket_file(n) if adapter is None else adapter_file(adapter, n)
        for n in ("heads.safetensors", "lora/adapter_model.safetensors")
    )
    heads, about = read_weights(heads_file)
    encoder, selector, forms = heads_of(heads, about)
    folder = smollm2_folder()
    llm = PocketLLM.load(folder, lora.parent, encoder, forms)
    semantic_file = pocket_file("semantic.safetensors")
    weights = {
        "sam": sha256_of(sam_file),
        "heads": sha256_of(heads_file),
        "lora": sha256_of(lora),
        "semantic": sha256_of(semantic_file),
        "llm": SMOLLM2[2],
        "backbone": BACKBONE[2],
    }
    return PocketPipeline(
        load_pocket_opener(sam_file), llm, selector.eval(), Semantic.load(semantic_file)
    ), weights
