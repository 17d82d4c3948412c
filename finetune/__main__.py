"""Tune a preset, or any multimodal LLM with any SAM, on your own records:

    python -m finetune --preset pocket --data train.jsonl --val val.jsonl --out runs/tuned
    python -m finetune --help            all settings

Stages of their own:

    python -m finetune sam --help        the pocket SAM: neck, prompt encoder, mask decoder
    python -m finetune boxes --help      the boxes of whatever stands out, where everything mode asks the SAM
    python -m finetune detector --help   convert the published detector of COCO's categories
    python -m finetune records --help    the pocket's region encoder, LoRA, token rows and selector
    python -m finetune reference --help  "segment like this": prompts from a reference, from labelled images
    python -m finetune names --help      more names for the pocket's regions, from images without questions
    python -m finetune semantic --help   the pocket's map of names, and which cells of it a target has
    python -m finetune presence --help   measure how surely the pocket must see a name to say that it is there
    python -m finetune rehearsal --help  pack some of its training images, for later tunings to rehearse
    python -m finetune attention --help  where a model attends, from one labelled image per category
    python -m finetune publish --help    copy what was trained into the package, with checksums
    python -m finetune merge --help      an adapter and its LLM as one model
    python -m finetune push --help       an adapter to a hub
    python -m finetune calibrate --help  how sure the answers of "concepts" are, on records with known truth
"""

if __name__ == "__main__":  # Ctrl-C may come while the modules below are imported
    import signal

    from assistant.interruption import end_at_once

    signal.signal(signal.SIGINT, end_at_once)

import argparse
import contextlib
import importlib
import sys

from assistant.errors import exit_code
from assistant.files import lock_folder

STAGES = {  # name: module
    "sam": "finetune.pocket.sam",
    "boxes": "finetune.pocket.boxes",
    "detector": "finetune.pocket.detector",
    "records": "finetune.pocket.records",
    "reference": "finetune.reference",
    "names": "finetune.pocket.more_names",
    "semantic": "finetune.pocket.semantic",
    "presence": "finetune.pocket.presence",
    "rehearsal": "finetune.pocket.rehearsal",
    "attention": "finetune.attention",
    "publish": "finetune.publish",
    "merge": "finetune.mllm.merge",
    "push": "finetune.mllm.push",
    "calibrate": "finetune.mllm.calibrate",
}
# Those that write a run into the folder --out. Tuning locks its folder itself, once the records are checked.
FOLDER_STAGES = (
    "sam",
    "boxes",
    "records",
    "names",
    "reference",
    "semantic",
    "presence",
    "attention",
    "merge",
)


def main(words: list[str] | None = None) -> int:
    """Run the stage that the command line names, or tuning.

    Args:
        words: The command line without the program's name; None for that of this process.

    Returns:
        The exit code.
    """
    return exit_code(lambda: run(sys.argv[1:] if words is None else words))


def run(words: list[str]) -> None:
    """Run the stage that a command line names, or tuning."""
    stage = words[0] if words and words[0] in STAGES else None
    module = importlib.import_module(STAGES[stage] if stage else "finetune.tune")
    usage = (__doc__ or "").split("\n\n", 2)[2]
    parser = argparse.ArgumentParser(
        prog=f"python -m finetune {stage or ''}".strip(),
        description=module.__doc__,
        epilog=None if stage else usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args = parser.parse_args(words[1:] if stage else words)
    with lock_folder(args.out) if stage in FOLDER_STAGES else contextlib.nullcontext():
        module.main(args)


if __name__ == "__main__":
    sys.exit(main())
