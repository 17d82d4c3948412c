"""Everything mode beside its peers, in one run: seconds, ratios, equal masks, what `fast` loses.

    python -m eval speed                                  # random weights of SAM ViT-B's size, 1,024 clicks
    python -m eval speed --points-per-side 8              # a shorter one
    python -m eval speed --sam sam_vit_b_01ec64.pth       # real weights
    python -m eval speed --model tiny --points-per-side 4 # seconds, for tests

Every program gets the same weights, clicks and thresholds, and the picture's embedding ready-made: what is timed is
everything outside the encoder. Random weights draw noise, which no threshold and no suppression treat as they treat
masks; so the random decoder first learns for some steps (--teach) to draw discs of three sizes around a click and to
judge them, and the thresholds are then set by quantile so that a realistic share survives.
"""

import argparse
import time
from pathlib import Path

VERSION = 1
KEPT = (
    0.4,
    0.6,
)  # random weights: share of masks that pass predicted IoU, and share of those that pass stability


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", choices=("vit_b", "tiny"), default="vit_b", help="size of the random weights"
    )
    parser.add_argument(
        "--sam", type=Path, help="an official SAM checkpoint (.pth) instead of random weights"
    )
    parser.add_argument("--image", type=Path, help="a picture (default: scikit-image's coffee)")
    parser.add_argument("--points-per-side", type=int, default=32, help="clicks are its square (default 32)")
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's own choice)")
    parser.add_argument("--teach", type=int, default=80, help="steps by which random weights learn discs")
    parser.add_argument("--no-transformers", action="store_true", help="leave the transformers pipeline out")
    parser.add_argument(
        "--no-question", action="store_true", help="leave out what a question costs on the pocket preset"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/eval/speed"), help="folder of result.json")


def main(args: argparse.Namespace) -> dict:
    """Measure, print the table, write result.json; returns what was written."""
    import json

    import numpy as np
    import torch

    from assistant.errors import BadInput
    from assistant.files import replace_whole
    from assistant.sam.proposals import everything
    from assistant.sam.segmenter import Segmenter
    from eval.costs import metric_costs, question_costs

    if args.points_per_side < 1:
        raise BadInput("--points-per-side must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    image = picture(args.image)
    if args.sam:
        from assistant.sam.checkpoints import load_official_sam

        sam = load_official_sam(args.sam).to(args.device)
    else:
        sam = random_sam(args.model).to(args.device)
        teach(sam, args.teach, args.seed)
    exact, half = (Segmenter.from_sam(sam, args.device, dtype) for dtype in (torch.float32, torch.bfloat16))
    embedding, encoder = timed(lambda: exact.encode(image))
    ready = embedding.features
    sam.image_encoder.forward = lambda pixels: ready
    settings = dict(points_per_side=args.points_per_side)
    if not args.sam:
        settings |= thresholds(exact, embedding, args.points_per_side)

    programs = {"segment-anything": lambda: reference(sam, image, settings)}
    if not args.no_transformers:
        programs["transformers"] = lambda: pipeline(sam, image, ready, settings)
    programs["ours"] = lambda: everything(exact, exact.encode(image), **settings)
    programs["ours, fast"] = lambda: everything(half, half.encode(image), fast=True, **settings)
    rows, rles = [], {}
    for name, program in programs.items():
        found, seconds = timed(program)
        rles[name] = found if isinstance(found, list) else found.rles
        rows.append({"program": name, "seconds": round(seconds, 3), "masks": len(rles[name])})
    base, first = rows[0]["seconds"], rles["segment-anything"]
    for row in rows:
        best = overlaps(first, rles[row["program"]])
        there, back = (best.max(axis) if best.size else np.zeros(best.shape[1 - axis]) for axis in (1, 0))
        row |= {
            "times_as_fast": round(base / row["seconds"], 2),
            "found": mean(there >= 0.99),
            "confirmed": mean(back >= 0.99),
            "oracle": mean(there),
        }
    result = {
        "benchmark": "speed",
        "version": VERSION,
        "n": 1,
        "model": str(args.sam or args.model),
        "device": args.device,
        "threads": torch.get_num_threads(),
        "picture": list(image.shape[:2]),
        "encoder_seconds": round(encoder, 3),
        "settings": settings,
        "programs": rows,
        "metric": metric_costs(),
        "question": None,
    }
    print(table(result))
    metric = result["metric"]
    print(
        f"counting IoU of {metric['side']} x {metric['side']} px: {metric['seconds'] * 1000:.2f} ms, a plain loop "
        f"{metric['loop_seconds'] * 1000:.1f} ms ({metric['times_as_fast']} times as fast)"
    )
    if not args.no_question:
        from assistant import Assistant

        result["question"] = cost = question_costs(Assistant.from_preset("pocket", device=args.device), image)
        print(
            f"pocket preset: opening {cost['open_seconds']:.2f} s, a question on the opened picture "
            f"{cost['question_seconds']:.2f} s ({cost['times_as_fast_as_opening_again']} times as fast as opening again), "
            f"where it looked {cost['attend_seconds']:.3f} s more ({cost['attend_adds']:.0%})"
        )
    with replace_whole(args.out / "result.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n")
    return result


def picture(path):
    from skimage import data

    if path is None:
        return data.coffee()
    from assistant.images import open_image

    return open_image(path)


def wait() -> None:
    """Until a GPU has done what it was told."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work):
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - start


def mean(values) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def overlaps(a: list[dict], b: list[dict]):
    """IoU of two lists of COCO RLEs, (len(a), len(b)) float64."""
    import numpy as np
    from pycocotools import mask

    if not a or not b:
        return np.zeros((len(a), len(b)))
    return np.asarray(mask.iou(a, b, [0] * len(b)))


def table(result: dict) -> str:
    lines = [
        f"{result['model']}, {result['device']}, {result['threads']} threads, picture of "
        f"{result['picture'][1]} x {result['picture'][0]} px, {result['settings']['points_per_side'] ** 2} clicks; "
        f"the encoder takes {result['encoder_seconds']:.2f} s, the rest:",
        "",
        f"{'program':18}{'seconds':>9}{'x':>7}{'masks':>7}{'found':>8}{'confirmed':>11}{'oracle':>8}",
    ]
    shown = lambda x: "-" if x is None else f"{x:.3f}"
    for row in result["programs"]:
        lines.append(
            f"{row['program']:18}{row['seconds']:9.2f}{row['times_as_fast']:7.2f}{row['masks']:7d}"
            f"{shown(row['found']):>8}{shown(row['confirmed']):>11}{shown(row['oracle']):>8}"
        )
    return "\n".join(
        lines
        + [
            "",
            "x: times as fast as segment-anything's SamAutomaticMaskGenerator. found: its masks "
            "that the program has too, at IoU >= .99;",
            "confirmed: the program's masks that it has. "
            "oracle: mean over its masks of the best IoU among the program's.",
        ]
    )


# The programs ---------------------------------------------------------------------------------------------------


def reference(sam, image, settings: dict) -> list[dict]:
    from segment_anything import SamAutomaticMaskGenerator

    try:
        found = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **settings).generate(image)
    except IndexError:  # its way of saying that no mask was found in a batch
        return []
    return [record["segmentation"] for record in found]


def pipeline(sam, image, features, settings: dict) -> list[dict]:
    from PIL import Image
    from pycocotools import mask
    from transformers import pipeline as make

    model, processor = to_transformers(sam)
    model.get_image_embeddings = lambda pixels, **_: features
    generator = make("mask-generation", model=model, image_processor=processor, device=features.device)
    out = generator(
        Image.fromarray(image),
        points_per_batch=64,
        points_per_crop=settings["points_per_side"],
        output_rle_mask=True,
        pred_iou_thresh=settings.get("pred_iou_thresh", 0.88),
        stability_score_thresh=settings.get("stability_score_thresh", 0.95),
        stability_score_offset=settings.get("stability_score_offset", 1.0),
    )
    return [mask.frPyObjects(rle, *rle["size"]) for rle in out["rle_mask"]]


RENAMED = (  # segment_anything's names -> transformers', for the prompt encoder and the mask decoder
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("point_embeddings", "point_embed"),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("norm_final_attn", "layer_norm_final_attn"),
    (".norm", ".layer_norm"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
)


def to_transformers(sam):
    """A `SamModel` with the prompt encoder and mask decoder of `sam`, and its image processor. Its image encoder is a
    stub: the embedding comes ready-made."""
    import re

    from transformers import (
        SamConfig,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    from assistant.sam.checkpoints import default_processor

    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    width, side, grid = prompts.embed_dim, prompts.input_image_size[0], prompts.image_embedding_size[0]
    patch, heads = side // grid, decoder.transformer.num_heads
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            mlp_dim=16,
            image_size=side,
            patch_size=patch,
            output_channels=width,
            num_pos_feats=width // 2,
            global_attn_indexes=[],
            window_size=4,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=width,
            image_size=side,
            patch_size=patch,
            mask_input_channels=prompts.mask_downscaling[3].out_channels,
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=width,
            mlp_dim=decoder.transformer.mlp_dim,
            num_attention_heads=heads,
            layer_norm_eps=1e-5,
            num_hidden_layers=decoder.transformer.depth,
            iou_head_depth=len(decoder.iou_prediction_head.layers),
            iou_head_hidden_dim=decoder.iou_prediction_head.layers[0].out_features,
        ),
    )
    model, state = SamModel(config), {}
    for key, value in sam.state_dict().items():
        if key.startswith("image_encoder"):
            continue
        for old, new in RENAMED:
            key = key.replace(old, new)
        if feed := re.fullmatch(r"(.*(?:iou_prediction_head|mlps\.\d+))\.layers\.(\d+)\.(\w+)", key):
            stem, i, kind = feed[1], int(feed[2]), feed[3]
            last = (
                len(
                    decoder.iou_prediction_head.layers
                    if "iou" in stem
                    else decoder.output_hypernetworks_mlps[0].layers
                )
                - 1
            )
            key = f"{stem}.{'proj_in' if i == 0 else 'proj_out' if i == last else f'layers.{i - 1}'}.{kind}"
        state[key] = value
        if key.endswith("positional_embedding"):
            state["shared_image_embedding.positional_embedding"] = value
    missing, unknown = model.load_state_dict(state, strict=False)
    wrong = unknown + [key for key in missing if not key.startswith("vision_encoder")]
    if wrong:
        raise RuntimeError(f"SamModel names its tensors differently now: {wrong[0]}")
    return model.eval().to(sam.device), default_processor(model)


# Random weights that draw masks -----------------------------------------------------------------------------------


def random_sam(model: str):
    if model == "vit_b":
        from segment_anything import sam_model_registry

        sam = sam_model_registry["vit_b"]()
    else:
        sam = tiny_sam()
    import torch

    with torch.no_grad():
        sam.image_encoder.neck[-1].weight.mul_(0.3)  # quieter than the positions, so that clicks count
        for layer in sam.mask_decoder.transformer.layers:
            # The image looks for tokens at its own place: the same frequencies on both sides.
            look = layer.cross_attn_image_to_token
            inner, width = look.q_proj.weight.shape
            same = torch.zeros(inner, width)
            frequency = torch.arange(inner // 2) * (width // 2) // (inner // 2)
            same[torch.arange(0, inner, 2), frequency] = 2
            same[torch.arange(1, inner, 2), frequency + width // 2] = 2
            for linear in (look.q_proj, look.k_proj):
                linear.weight.copy_(same)
                linear.bias.zero_()
        prompts = sam.prompt_encoder
        for embedding in (
            sam.mask_decoder.iou_token,
            sam.mask_decoder.mask_tokens,
            prompts.not_a_point_embed,
            *prompts.point_embeddings,
        ):
            embedding.weight.mul_(0.3)
    return sam


def tiny_sam():
    """A random `segment_anything.modeling.Sam` of 128 px and 190 thousand parameters."""
    from functools import partial

    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(
        img_size=128,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=2,
        out_chans=64,
        use_rel_pos=True,
        window_size=4,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=64, num_heads=8, mlp_dim=128)
    decoder = MaskDecoder(transformer_dim=64, transformer=transformer, iou_head_hidden_dim=64)
    return Sam(encoder, PromptEncoder(64, (16, 16), (128, 128), 16), decoder).eval()


def teach(sam, steps: int, seed: int, clicks: int = 16, grid: int = 16, radii=(0.06, 0.12, 0.25)) -> None:
    """Train the mask decoder to draw a disc of each radius (in units of the side) around a click, on a coarse grid
    of random features, and to predict its IoU. Positions are in units of the side, so it carries over to any grid."""
    import torch
    from torch.nn import functional as F

    random = torch.Generator().manual_seed(seed)
    decoder, prompts, device = sam.mask_decoder, sam.prompt_encoder, sam.device
    width, side = prompts.embed_dim, prompts.input_image_size[0]
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    positions = prompts.pe_layer((grid, grid))[None].detach()
    line = (torch.arange(4 * grid, device=device) + 0.5) / (4 * grid)
    labels = torch.ones(clicks, 1, device=device)
    for _ in range(steps):
        features = 0.3 * torch.randn(1, width, grid, grid, generator=random).to(device)
        at = torch.rand(clicks, 1, 2, generator=random).to(device)
        sparse, dense = prompts((at * side, labels), None, None)
        low, iou = decoder(features, positions, sparse.detach(), dense[..., :1, :1].detach(), True)
        x, y = at[..., 0, None] - line, (at[..., 1, None] - line).transpose(1, 2)
        disc = torch.stack([(x**2 + y**2).sqrt() < r for r in radii], 1).float()
        weight = disc / disc.mean((2, 3), keepdim=True).clamp(min=1e-3) + 1 - disc
        loss = F.binary_cross_entropy_with_logits(low, disc, weight=weight) * 2.5
        soft, hard = low.sigmoid(), low.detach() > 0
        loss = loss + 1 - (2 * (soft * disc).sum((2, 3)) / (soft + disc).sum((2, 3))).mean()
        truth = (hard * disc).sum((2, 3)) / ((hard + disc) > 0).sum((2, 3))
        loss = loss + (iou - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sam.requires_grad_(False)


def thresholds(segmenter, embedding, points_per_side: int) -> dict:
    """Thresholds of predicted IoU and stability that let the shares KEPT of a coarse grid's masks pass."""
    import numpy as np
    import torch

    n = min(8, points_per_side)
    line = (np.arange(n) + 0.5) / n
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 1, 2) * embedding.size[::-1]
    low, iou = segmenter.predict_many(embedding, points, np.ones((n * n, 1), int))
    least = float(iou.quantile(1 - KEPT[0]))
    low = low[iou > least]
    offset = 0.25 * float(low.abs().median())
    stability = (low > offset).sum((1, 2)) / (low > -offset).sum((1, 2)).clamp(min=1)
    return {
        "pred_iou_thresh": round(least, 4),
        "stability_score_offset": round(offset, 4),
        "stability_score_thresh": round(float(torch.quantile(stability, 1 - KEPT[1])), 4),
    }
