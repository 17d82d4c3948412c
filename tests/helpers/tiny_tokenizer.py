"""A byte-level tokenizer of the kind of Qwen's, trained on a few sentences."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = [
    "You look at a picture and point at what the user means. Name each "
    "thing that is meant, in a sentence or two.",
    "What keeps the rain off, and is there anything to sit on? The umbrella does; there is no bench here.",
    "the cup on the left, a red car, two people and their dogs, something to drink from: a glass of water",
]


def byte_level_tokenizer(special_tokens: Sequence[str], vocabulary: int = 320) -> Any:
    """A tokenizer of transformers with the given special tokens, of at most `vocabulary` tokens in all."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
