"""Phase 2 of `finetune records`: LoRA and the token rows learn to answer, shown regions as words."""

import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from assistant.files import replace_whole
from assistant.grammar import ABS, SEG
from assistant.pocket.llm import FIRST, OPENING, PocketLLM, RegionEncoder, load_tokenizer
from assistant.weights import smollm2_folder
from finetune.log import Log, rate
from finetune.mllm.adapter import save_lora
from finetune.pocket.examples import Example, RecordData

FIRST_TUNED = 14  # LoRA from this layer of 30 upwards


def build(rank: int, adapter: Path | None = None) -> PocketLLM:
    """SmolLM2 untuned, or with the LoRA of `adapter`: in its upper layers, [SEG] and [ABS] rows trainable."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = load_tokenizer(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if adapter is not None:
        tuned = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        return PocketLLM(tuned, tokenizer, RegionEncoder(model.config.hidden_size))
    rows = tokenizer.convert_tokens_to_ids([SEG, ABS])
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        for row, word in zip(rows, (" here", " missing")):
            table[row] = table[tokenizer(word, add_special_tokens=False).input_ids[0]]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(FIRST_TUNED, model.config.num_hidden_layers)),
        trainable_token_indices=rows,
    )
    return PocketLLM(get_peft_model(model, config), tokenizer, RegionEncoder(model.config.hidden_size))


def sequence(llm: PocketLLM, example: Example) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An example as one sequence: the picture's words once, then every question with its answer.

    Returns input embeddings (L, W), labels (L,) with -100 where nothing is learned, positions (L,), and which token
    sees which (L, L) bool: a chat is read from left to right, questions for themselves do not see each other.
    """
    opening = llm.tokens(OPENING + FIRST)
    parts = [llm.embed(opening), llm.words(example.seen)]
    start = len(opening) + len(parts[1])
    labels, owner, positions = [-100] * start, [-1] * start, list(range(start))
    for k, one in enumerate(example.asked):
        turn = k if example.chat else 0
        earlier = "".join(f"{llm.question(q)}{a}<|im_end|>\n{OPENING}" for q, a in one.before)
        asked = llm.tokens(("\n" if turn == 0 else "\n" + OPENING) + earlier + llm.question(one.question))
        answer = llm.tokens(one.answer) + [llm.end]
        parts.append(llm.embed(asked + answer))
        at = positions[-1] + 1 if example.chat else start
        labels += [-100] * len(asked) + answer
        positions += range(at, at + len(asked) + len(answer))
        owner += [k] * (len(asked) + len(answer))
    owner = torch.tensor(owner)
    sees = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    if not example.chat:
        sees &= (owner[None] == -1) | (owner[None] == owner[:, None])
    return (
        torch.cat([p.to(llm.model.dtype) for p in parts]),
        torch.tensor(labels),
        torch.tensor(positions),
        sees,
    )


def read_batch(llm: PocketLLM, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The LLM over a batch of pictures with their questions and answers.

    Returns the answers' logits (T, vocabulary) and tokens (T,), the states that predict each marker (K, 576), and
    for each example its markers' margins, log p([SEG]) - log p([ABS]).
    """
    with torch.no_grad():
        made = [sequence(llm, e) for e in examples]
    longest = max(len(labels) for _, labels, _, _ in made)
    pad = lambda x, value: F.pad(x, (0, longest - len(x)), value=value)
    x = torch.stack([F.pad(i, (0, 0, 0, longest - len(i))) for i, *_ in made])
    y = torch.stack([pad(labels, -100) for _, labels, _, _ in made])[:, 1:]
    positions = torch.stack([pad(p, 0) for _, _, p, _ in made])
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(made), 1, 1)
    for row, (*_, sees) in zip(mask, made):
        row[: len(sees), : len(sees)] = sees
    base = llm.model.get_base_model() if hasattr(llm.model, "get_base_model") else llm.model
    hidden = base.model(
        inputs_embeds=x, attention_mask=mask[:, None], position_ids=positions
    ).last_hidden_state[:, :-1]
    said = y != -100
    logits = base.lm_head(hidden[said]).float()
    marker = (y == llm.seg) | (y == llm.abs)
    at = logits[marker[said]]
    margins = (at[:, llm.seg] - at[:, llm.abs]).detach()
    return logits, y[said], hidden[marker].float(), list(margins.split(marker.sum(1).tolist()))


def train_llm(args, llm: PocketLLM, data: RecordData) -> None:
    """Phase 2."""
    model, state_file = llm.model, args.out / "llm.pt"
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(trained.values(), lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98))
    start, began = 0, {n: p.detach().clone() for n, p in trained.items()}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for n, p in trained.items():
            p.data.copy_(state["model"][n])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        print(f"resuming the LLM at step {start}", flush=True)
    model.train()
    log, saved = Log(args.out / "llm.jsonl", start), time.time()
    for step in range(start, args.steps):
        examples = [data.example(step * args.batch + i) for i in range(args.batch)]
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate(step, args.steps, 40)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, tokens, _, margins = read_batch(llm, examples)
        loss = F.cross_entropy(logits, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        draw_back(trained, began, args)
        present = torch.tensor([p for e in examples for p in e.present])
        right = ((torch.cat(margins) > 0) == present).float().mean()
        words = (logits.argmax(1) == tokens).float().mean()
        log.add(
            step,
            {"text": loss.item(), "word_right": words.item(), "marker_right": right.item()},
            every=getattr(args, "log_every", 20),
        )
        if time.time() - saved > 60 * args.save_every or step + 1 == args.steps:
            with replace_whole(state_file) as path:
                torch.save(
                    {
                        "model": {n: p.data for n, p in trained.items()},
                        "optimizer": optimizer.state_dict(),
                        "step": step + 1,
                    },
                    path,
                )
            saved = time.time()
    model.eval()
    save_lora(args.out / "lora", model)


def draw_back(now: dict[str, Tensor], began: dict[str, Tensor], args) -> None:
    """Weights that go on from others stay near them (L2-SP, Li et al. 2018), by a share of the way at each step."""
    if share := getattr(args, "anchor", 0):
        with torch.no_grad():
            for n, p in now.items():
                p.data.lerp_(began[n], share)


def states_of(
    llm: PocketLLM, data: RecordData, numbers: range, file: Path, plain: bool = False
) -> dict[str, Tensor]:
    """States and margins of the examples' targets, and how many each example has; kept in `file`."""
    if file.exists():
        return load_file(file)
    states, margins, counts = [], [], []
    for k in tqdm(range(numbers.start, numbers.stop, 8), desc="states", disable=None):
        examples = [data.example(j, plain=plain) for j in range(k, min(k + 8, numbers.stop))]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            _, _, state, margin = read_batch(llm, examples)
        states.append(state)
        margins += margin
        counts += [len(m) for m in margin]
    kept = {"states": torch.cat(states), "margins": torch.cat(margins), "counts": torch.tensor(counts)}
    with replace_whole(file) as path:
        save_file(kept, path)
    return kept
