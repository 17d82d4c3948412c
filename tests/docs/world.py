"""The folder in which a document's commands run: what a reader has, under the documented names.

write_user_files(folder)          # photo.jpg, photos/, instances.json, DATA/, train.jsonl, FOLDER, ...
write_hub_cache(folder / "hub")   # HF_HOME: tiny models under the ids of the published ones
copy_packages(folder)             # for commands that write into the package
"""

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from assistant.pocket.detector import Detector
from tests.helpers.nanodet_graph import write_nanodet_graph
from tests.helpers.small_datasets import (
    AS_CAR_PARTS,
    AS_GARMENTS,
    AS_STREET,
    CAR_PARTS,
    COCO,
    GARMENTS,
    STREET,
    photo_named,
    photos,
    renamed,
    save_images,
    write_coco,
    write_expressions,
    write_label_maps,
    write_question_records,
    write_reasonseg,
)
from tests.helpers.tiny_concepts import tiny_grounding_dino, tiny_sam3
from tests.helpers.tiny_models import tiny_llava, tiny_qwen3_vl, tiny_sam

ROOT = Path(__file__).parents[2]
PACKAGES = ("assistant", "datagen", "eval", "finetune")


def write_user_files(folder: Path, car_parts: bool = False) -> None:
    """Everything that the documents name as the reader's own. car_parts: photos/ is outlined as those."""
    folder.mkdir(parents=True, exist_ok=True)
    photo_named("chelsea").image.save(folder / "photo.jpg", quality=90)
    photo_named("motorcycle").image.save(folder / "other.jpg", quality=90)
    mug = photo_named("coffee")
    mug.image.save(folder / "mug.jpg", quality=90)
    Image.fromarray(mug.mask("cup")).save(folder / "mug-mask.png")

    if car_parts:
        write_coco(folder, renamed(photos(8), AS_CAR_PARTS), CAR_PARTS, images="photos")
    else:
        write_coco(folder, photos(8), COCO, images="photos")
    save_images(folder / "two-photos", photos(2))  # in the place of photos/, where that would take long
    (folder / "names.txt").write_text("cat\ncup\n")
    for file, count in (("train.jsonl", 4), ("streets.jsonl", 2), ("val.jsonl", 2)):
        write_question_records(folder / file, photos(count), images=f"images-of-{file.split('.')[0]}")
    write_reasonseg(folder / "ReasonSeg/val", photos(2), folder / "lisa-7b")
    write_data(folder / "DATA")

    write_nanodet_graph(Detector().state_dict(), folder / "package/models/nanodet.json")
    tiny_qwen3_vl(folder / "FOLDER")
    tiny_qwen3_vl(folder / "Qwen3-VL-4B-Instruct")
    for name in ("sam_vit_b.pth", "sam_vit_h_4b8939.pth"):
        torch.save(official_sam().state_dict(), folder / name)


def write_data(folder: Path) -> None:
    """The data root of docs/training.md, a few photos each."""
    write_coco(folder / "coco/train", photos(8), COCO)
    for name in ("voc", "duts"):  # sets that teach names alone, of which every name needs a few instances
        write_coco(folder / name / "train", photos(24), COCO)
    write_coco(folder / "coco/dev", photos(4), COCO)
    write_expressions(folder / "refcocos/dev", photos(2))
    write_label_maps(folder / "camvid/train", renamed(photos(2), AS_STREET), STREET)
    write_label_maps(folder / "camvid/dev", renamed(photos(2), AS_STREET), STREET)
    write_label_maps(folder / "clothing/train", renamed(photos(2), AS_GARMENTS), GARMENTS)


def write_hub_cache(folder: Path) -> None:
    """The cache of a model hub with the ids of the presets: random models of the same classes, but tiny."""
    models = {
        "Qwen/Qwen3-VL-4B-Instruct": tiny_qwen3_vl,
        "Qwen/Qwen3-VL-8B-Instruct": tiny_qwen3_vl,
        "llava-hf/llava-1.5-7b-hf": tiny_llava,
        "facebook/sam-vit-large": tiny_sam,
        "facebook/sam-vit-huge": tiny_sam,
        "facebook/sam3": tiny_sam3,
        "IDEA-Research/grounding-dino-base": tiny_grounding_dino,
    }
    commit = "0" * 40
    for name, make in models.items():
        cached = folder / "hub" / f"models--{name.replace('/', '--')}"
        make(cached / "snapshots" / commit)
        (cached / "refs").mkdir()
        (cached / "refs/main").write_text(commit)


def copy_packages(folder: Path) -> None:
    """The packages themselves, which `python -m` then takes in place of the installed ones."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))


def link_coco_photos(source: Path, folder: Path, count: int) -> None:
    """The first photos with several outlines of a COCO-format data set, as photos/ and instances.json."""
    data = json.loads((source / "instances.json").read_text())
    outlines = Counter(annotation["image_id"] for annotation in data["annotations"])
    chosen = [image for image in data["images"] if outlines[image["id"]] > 2][:count]
    numbers = {image["id"] for image in chosen}
    data["images"] = chosen
    data["annotations"] = [row for row in data["annotations"] if row["image_id"] in numbers]
    (folder / "photos").mkdir()
    for image in chosen:
        (folder / "photos" / image["file_name"]).symlink_to(source / "images" / image["file_name"])
    (folder / "instances.json").write_text(json.dumps(data))


def official_sam() -> torch.nn.Module:
    """A random SAM of 128 px in the layout of the official checkpoints."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ImageEncoderViT(
            img_size=128,
            patch_size=16,
            embed_dim=32,
            depth=2,
            num_heads=2,
            mlp_ratio=2,
            out_chans=32,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            qkv_bias=True,
            use_rel_pos=True,
            window_size=4,
            global_attn_indexes=[1],
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=64)
        decoder = MaskDecoder(
            transformer_dim=32,
            transformer=transformer,
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=32,
        )
        return Sam(encoder, PromptEncoder(32, (8, 8), (128, 128), 8), decoder)
