"""Train the pocket preset's region encoder, LLM and selector from records, in three phases:

1. the region encoder learns the names of labelled instances and what is an object (cheap: no LLM is needed);
2. LoRA and the token rows learn to answer, with sixteen regions of an image as input embeddings;
3. the selector learns to select proposals, from the states of the tuned LLM, which are computed once.

    python -m finetune records --data runs/questions-train/records.jsonl \\
        --named DATA/coco/train/instances.json --sam runs/sam512/sam.safetensors --out runs/reasoner

The same command again continues a run that was stopped. Losses: cross-entropy of the answer (2); LLM-Seg's
alignment and IoP, and presence (3). LoRA is in the upper half of the LLM, so that the lower half needs no
gradient.

Phases 2 and 3 see each image through an encoder that was not trained on it (one of four, each trained on the
other three quarters): on its training images an encoder is far more certain than on new ones, and a selector
that learned from it would trust it too much. Every tenth image is held out of phases 2 and 3; on those the
confidence is calibrated and the final figures are measured.
"""

import argparse
from pathlib import Path

import torch

from assistant.files import make_folder
from finetune.check import must_exist
from finetune.pocket.encoder import train_encoders
from finetune.pocket.examples import RecordData, every_tenth
from finetune.pocket.language import load_trainable_llm, train_llm
from finetune.pocket.selection import train_selector
from finetune.pocket.settings import EncoderSettings, LanguageSettings, RecordSources, SelectorSettings
from finetune.pocket.sources import add_source_arguments, read_sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage to the command line."""
    add_source_arguments(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the weights and the state of the run")
    add("--encoder-steps", type=int, default=800, help="steps of the region encoder")
    add("--steps", type=int, default=900, help="steps of the LLM")
    add("--batch", type=int, default=4, help="images per step of the LLM, with five questions each")
    add(
        "--states", type=int, default=1500, help="images with questions whose states the selector learns from"
    )
    add("--selector-steps", type=int, default=300, help="steps of the selector")
    add("--lr", type=float, default=8e-4, help="learning rate of the LLM")
    add("--rank", type=int, default=16, help="rank of LoRA")
    add("--save-every", type=float, default=4, help="minutes between checkpoints")
    add("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    """Train all three phases, or continue where an earlier run was stopped."""
    torch.manual_seed(args.seed)
    must_exist(*args.data, args.sam)
    make_folder(args.out)
    sources = RecordSources(
        tuple(args.data), tuple(args.named), args.sam, args.regions or args.out / "regions"
    )
    records, regions = read_sources(sources)
    llm = load_trainable_llm(args.rank)
    encoded = train_encoders(EncoderSettings(steps=args.encoder_steps), args.out, llm, records, regions)
    held_out_images = set(every_tenth(list(regions)))
    training_images = set(regions) - held_out_images
    training = RecordData(records, regions, encoded, args.seed, training_images)
    held_out = RecordData(records, regions, encoded, args.seed, held_out_images)
    language = LanguageSettings(steps=args.steps, batch=args.batch, lr=args.lr, save_minutes=args.save_every)
    selector = SelectorSettings(
        llm_steps=args.steps, examples=args.states, steps=args.selector_steps, seed=args.seed
    )
    train_llm(language, args.out, llm, training)
    train_selector(selector, args.out, llm, training, held_out)
