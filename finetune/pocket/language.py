"""Phase 2 of `finetune records`: LoRA and the token rows learn to answer, with regions as input embeddings.

llm = load_trainable_llm(rank=16)
train_llm(LanguageSettings(), out, llm, data)
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from assistant.files import replace_whole
from assistant.grammar import ABS, SEG
from assistant.pocket.llm import (
    END_OF_TURN,
    REGIONS_INTRODUCTION,
    USER_TURN,
    PocketLLM,
    load_tokenizer,
    without_rename_warnings,
)
from assistant.pocket.region_encoder import RegionEncoder
from assistant.pocket.wheels import smollm2_folder
from finetune.log import TrainingLog, cosine_schedule
from finetune.mllm.adapter import save_lora
from finetune.pocket.examples import Example, RecordData
from finetune.pocket.settings import LanguageSettings

FIRST_TUNED_LAYER = 14  # of 30; LoRA is in the layers from this one upwards
LORA_LAYERS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
# The rows of the new tokens start as those of words that say the same.
INITIAL_WORDS = {SEG: " here", ABS: " missing"}
WARM_UP_STEPS = 40
WEIGHT_DECAY = 0.02
ADAM_BETAS = (0.9, 0.98)
MAX_GRADIENT_NORM = 1.0
NOT_LEARNED = -100  # label of a token that is only read, as in `torch.nn.functional.cross_entropy`
STATES_BATCH = 8  # examples at a time


def load_trainable_llm(rank: int, adapter: Path | None = None) -> PocketLLM:
    """SmolLM2 with LoRA in its upper layers, trainable [SEG] and [ABS] rows and an untrained region encoder.

    Args:
        rank: Of a new LoRA.
        adapter: A peft folder to continue from, whose rank is then used.
    """
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = smollm2_folder()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = load_tokenizer(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    width = model.config.hidden_size
    if adapter is not None:
        with without_rename_warnings():
            tuned = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        return PocketLLM(tuned, tokenizer, RegionEncoder(width))
    rows = tokenizer.convert_tokens_to_ids(list(INITIAL_WORDS))
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        for row, word in zip(rows, INITIAL_WORDS.values(), strict=True):
            table[row] = table[tokenizer(word, add_special_tokens=False).input_ids[0]]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=LORA_LAYERS,
        layers_to_transform=list(range(FIRST_TUNED_LAYER, model.config.num_hidden_layers)),
        trainable_token_indices=rows,
    )
    with without_rename_warnings():
        tuned = get_peft_model(model, config)
    return PocketLLM(tuned, tokenizer, RegionEncoder(width))


class TrainingSequence(NamedTuple):
    """An example as one sequence of L tokens: the image's regions, then every question with its answer."""

    embeddings: Tensor  # (L, W) input embeddings in the model's dtype
    labels: Tensor  # (L,) int64 tokens, NOT_LEARNED where nothing is learned
    positions: Tensor  # (L,) int64
    attends: Tensor  # (L, L) bool, which token attends to which


def training_sequence(llm: PocketLLM, example: Example) -> TrainingSequence:
    """Turn an example into a sequence.

    A chat is read from left to right. Questions that are asked by themselves do not attend to each other, and
    each stands where the first one stands.
    """
    opening = llm.tokens(USER_TURN + REGIONS_INTRODUCTION)
    parts = [llm.embed(opening), llm.region_tokens(example.regions)]
    start = len(opening) + len(parts[1])
    labels = [NOT_LEARNED] * start
    question_of = [-1] * start  # index of the question that a token belongs to
    positions = list(range(start))
    for k, question in enumerate(example.questions):
        is_first_turn = k == 0 or not example.is_chat
        history = "".join(
            f"{llm.question_text(asked)}{answer}{END_OF_TURN}\n{USER_TURN}"
            for asked, answer in question.history
        )
        text = ("\n" if is_first_turn else "\n" + USER_TURN) + history + llm.question_text(question.question)
        asked_tokens = llm.tokens(text)
        answer_tokens = llm.tokens(question.answer) + [llm.end_token]
        length = len(asked_tokens) + len(answer_tokens)
        parts.append(llm.embed(asked_tokens + answer_tokens))
        first_position = positions[-1] + 1 if example.is_chat else start
        labels += [NOT_LEARNED] * len(asked_tokens) + answer_tokens
        positions += range(first_position, first_position + length)
        question_of += [k] * length
    owner = torch.tensor(question_of)
    attends = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    if not example.is_chat:
        attends &= (owner[None] == -1) | (owner[None] == owner[:, None])
    embeddings = torch.cat([part.to(llm.model.dtype) for part in parts])
    return TrainingSequence(embeddings, torch.tensor(labels), torch.tensor(positions), attends)


class BatchOutput(NamedTuple):
    """What the LLM gives for a batch of examples with T learned tokens and K markers."""

    logits: Tensor  # (T, vocabulary) float32
    tokens: Tensor  # (T,) int64, what they should predict
    states: Tensor  # (K, W) float32, the hidden states that predict the markers
    margins: list[Tensor]  # of each example's markers, log p([SEG]) - log p([ABS])


def read_batch(llm: PocketLLM, examples: Sequence[Example]) -> BatchOutput:
    """Run the LLM over examples with their answers."""
    with torch.no_grad():
        sequences = [training_sequence(llm, example) for example in examples]
    longest = max(len(sequence.labels) for sequence in sequences)

    def pad(row: Tensor, value: int) -> Tensor:
        return F.pad(row, (0, longest - len(row)), value=value)

    embeddings = torch.stack([F.pad(s.embeddings, (0, 0, 0, longest - len(s.labels))) for s in sequences])
    targets = torch.stack([pad(s.labels, NOT_LEARNED) for s in sequences])[:, 1:]
    positions = torch.stack([pad(s.positions, 0) for s in sequences])
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(sequences), 1, 1)  # padding attends to itself
    for row, sequence in zip(mask, sequences, strict=True):
        length = len(sequence.labels)
        row[:length, :length] = sequence.attends
    base = base_model(llm.model)
    output = base.model(inputs_embeds=embeddings, attention_mask=mask[:, None], position_ids=positions)
    hidden = output.last_hidden_state[:, :-1]
    is_learned = targets != NOT_LEARNED
    logits = base.lm_head(hidden[is_learned]).float()
    is_marker = (targets == llm.seg_token) | (targets == llm.abs_token)
    marker_logits = logits[is_marker[is_learned]]
    margins = (marker_logits[:, llm.seg_token] - marker_logits[:, llm.abs_token]).detach()
    counts = is_marker.sum(1).tolist()
    return BatchOutput(logits, targets[is_learned], hidden[is_marker].float(), list(margins.split(counts)))


def base_model(model: Any) -> Any:
    """The LLM inside a peft model, or the model itself."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def train_llm(settings: LanguageSettings, out: Path, llm: PocketLLM, data: RecordData) -> None:
    """Phase 2: train the LLM, or continue from OUT/llm.pt; its LoRA is then in OUT/lora.

    Args:
        settings: Of the training.
        out: Folder of the run.
        llm: With LoRA, see `load_trainable_llm`; in evaluation mode afterwards.
        data: The training examples.
    """
    model = llm.model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(
        trained.values(), lr=settings.lr, weight_decay=WEIGHT_DECAY, betas=ADAM_BETAS
    )
    initial = {name: p.detach().clone() for name, p in trained.items()}
    first_step = _restore(out / "llm.pt", trained, optimizer)
    model.train()
    log = TrainingLog(out / "llm.jsonl", first_step)
    saved = time.time()
    for step in range(first_step, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * cosine_schedule(step, settings.steps, WARM_UP_STEPS)
        examples = [data.example(step * settings.batch + i) for i in range(settings.batch)]
        figures = _train_step(llm, examples, trained, optimizer)
        pull_back(trained, initial, settings.anchor)
        log.add(step, figures, every=settings.log_every)
        if time.time() - saved > 60 * settings.save_minutes or step + 1 == settings.steps:
            _save(out / "llm.pt", trained, optimizer, step + 1)
            saved = time.time()
    model.eval()
    save_lora(out / "lora", model)


def _train_step(
    llm: PocketLLM,
    examples: Sequence[Example],
    trained: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """One step of training; returns its figures."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = read_batch(llm, examples)
    loss = F.cross_entropy(output.logits, output.tokens)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained.values(), MAX_GRADIENT_NORM)
    optimizer.step()
    present = torch.tensor([is_present for example in examples for is_present in example.present])
    return {
        "text": loss.item(),
        "word_right": (output.logits.argmax(1) == output.tokens).float().mean().item(),
        "marker_right": ((torch.cat(output.margins) > 0) == present).float().mean().item(),
    }


def _restore(file: Path, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Read a checkpoint if there is one; returns the step to continue at."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    for name, parameter in trained.items():
        parameter.data.copy_(state["model"][name])
    optimizer.load_state_dict(state["optimizer"])
    print(f"resuming the LLM at step {state['step']}", flush=True)
    return state["step"]


def _save(file: Path, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
    model = {name: parameter.data for name, parameter in trained.items()}
    with replace_whole(file) as path:
        torch.save({"model": model, "optimizer": optimizer.state_dict(), "step": step}, path)


def pull_back(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor], share: float) -> None:
    """Move weights a share of the way back to their initial values (L2-SP, Li et al. 2018)."""
    if share:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.data.lerp_(initial[name], share)


class MarkerStates(NamedTuple):
    """What the LLM gives at the markers of examples, one after the other."""

    states: Tensor  # (K, W) float32
    margins: Tensor  # (K,) float32
    counts: Tensor  # (examples,) int64, markers of each example

    def rows(self, k: int) -> slice:
        """Where the markers of example k are."""
        end = int(self.counts[: k + 1].sum())
        return slice(end - int(self.counts[k]), end)


def marker_states(
    llm: PocketLLM, data: RecordData, numbers: range, file: Path, as_in_use: bool = False
) -> MarkerStates:
    """The states at the markers of examples, read from `file` or computed and stored there.

    Args:
        llm: The LLM.
        data: Draws the examples.
        numbers: Of the examples.
        file: A safetensors file.
        as_in_use: See `RecordData.example`.
    """
    if file.exists():
        return MarkerStates(**load_file(file))
    states, margins, counts = [], [], []
    for k in tqdm(range(numbers.start, numbers.stop, STATES_BATCH), desc="states", disable=None):
        batch = range(k, min(k + STATES_BATCH, numbers.stop))
        examples = [data.example(j, as_in_use=as_in_use) for j in batch]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            output = read_batch(llm, examples)
        states.append(output.states)
        margins += output.margins
        counts += [len(of_example) for of_example in output.margins]
    computed = MarkerStates(torch.cat(states), torch.cat(margins), torch.tensor(counts))
    with replace_whole(file) as path:
        save_file(computed._asdict(), path)
    return computed
