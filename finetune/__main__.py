"""python -m finetune sam|... : see each stage's --help."""
import argparse

from finetune import sam

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m finetune", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    sam.add_arguments(stages.add_parser("sam"))
    args = parser.parse_args()
    sam.main(args)
