"""Train the parts of a preset. Each stage resumes when the same command is given again.

    python -m finetune sam --help        the pocket SAM: neck, prompt encoder, mask decoder
    python -m finetune records --help    region encoder, LoRA, token rows and selector, from records
    python -m finetune reference --help  "segment like this": prompts from a reference, from outlined pictures
    python -m finetune attention --help  where a model looks, from one labelled photo per category
    python -m finetune publish --help    copy what was trained into the package, with checksums
"""

import argparse
import importlib
import sys

from assistant.errors import exit_code

STAGES = ("sam", "records", "reference", "attention", "publish")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m finetune", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    if len(sys.argv) < 2 or sys.argv[1] not in STAGES:
        parser.parse_args()
    stage = importlib.import_module(f"finetune.{sys.argv[1]}")
    parser = argparse.ArgumentParser(prog=f"python -m finetune {sys.argv[1]}", description=stage.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    stage.add_arguments(parser)
    return exit_code(lambda: stage.main(parser.parse_args(sys.argv[2:])))


if __name__ == "__main__":
    sys.exit(main())
