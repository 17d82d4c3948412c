"""How the parts of a pipeline are named, and what a user may ask of them."""

from assistant.errors import BadInput

EMBEDDED = "pocket"  # the name of the embedded LLM and of its SAM, wherever a part is named
SERVER_PREFIX = "openai:"  # of a multimodal LLM on an OpenAI-compatible server
SELECTIONS = ("hybrid", "marks", "boxes", "concepts", "trained")
MIN_PIXELS = 256 * 256  # that an LLM may be limited to; Qwen3-VL's processor enlarges smaller images to it
MIN_TOKENS = 64  # that an LLM may be limited to; an answer that names one thing takes about 60


def check_pixels(pixels: int | None) -> None:
    """Raise BadInput for fewer pixels than a model can make something of; None is no limit of one's own."""
    if pixels is not None and pixels < MIN_PIXELS:
        raise BadInput(f"--pixels {pixels} is too few: give {MIN_PIXELS} (256 x 256) or more")


def check_tokens(max_tokens: int | None) -> None:
    """Raise BadInput for fewer tokens than the shortest answer takes; None is no limit of one's own."""
    if max_tokens is not None and max_tokens < MIN_TOKENS:
        raise BadInput(f"--max-tokens {max_tokens} is too few for an answer: give {MIN_TOKENS} or more")
