"""What is seen in training pictures, computed by several processes and kept on disk."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.errors import BadInput
from assistant.sam.mask_ops import encode_rle
from finetune.pocket.outlined import VIEWS, all_regions, outlined_name
from finetune.region_cache import RegionCache


class SamImageOpener:
    """Sees a picture's mean colours, and remembers which process looked."""

    class Segmenter:
        def encode(self, image):
            return None

        def low_res_logits(self, embedding, mask):
            return np.where(mask[:128, :128], 5.0, -5.0)

    segmenter = Segmenter()

    def open(self, image):
        view = type("View", (), {})()
        view.proposals = type("Proposals", (), {"rles": [encode_rle(image[..., 0] > 99)]})
        view.features = torch.full((1, 1305), float(os.getpid() % 1000))
        return view

    def features(self, small, embedding, low):
        return (low > 0).float().mean((1, 2))[:, None].expand(-1, 1305)


@pytest.fixture
def pictures(tmp_path):
    files, named = [], {}
    for k in range(5):
        image = np.full((128, 128, 3), 40 * k, np.uint8)
        image[10:60, 10 : 40 + k] = 200
        Image.fromarray(image).save(tmp_path / f"{k}.png")
        files.append(tmp_path / f"{k}.png")
        named[files[-1]] = [("patch", encode_rle(image[..., 0] == 200))] if k else []
    return files, named


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_several_processes_see_what_one_sees(pictures, tmp_path, threads):
    files, named = pictures
    threads(1)
    alone = all_regions(SamImageOpener, "eyes", files, named, RegionCache(tmp_path / "alone"))
    threads(2)
    kept, random = RegionCache(tmp_path / "together"), torch.get_rng_state()
    together = all_regions(SamImageOpener, "eyes", files, named, kept)
    assert torch.equal(
        torch.get_rng_state(), random
    )  # a run that finds them kept draws the same numbers afterwards
    lookers = {int(r.features[-1, 0]) for r in together.values()}
    assert os.getpid() % 1000 not in lookers and len(lookers) > 1
    assert {int(r.features[-1, 0]) for r in alone.values()} == {os.getpid() % 1000}
    for image in files:
        one, other = alone[image], together[image]
        assert (
            one.rles == other.rles
            and one.names == other.names
            and one.augmented_names == other.augmented_names
        )
        assert torch.equal(one.features[:-1], other.features[:-1]) and torch.equal(
            one.augmented, other.augmented
        )
    assert (
        len(together[files[0]].names) == 0
        and together[files[1]].names == ["patch"]
        and len(together[files[1]].augmented)
    )
    assert sorted(f.name for f in kept.folder.iterdir()) == sorted(
        f.name for f in (tmp_path / "alone").iterdir()
    )
    assert kept.size == sum(f.stat().st_size for f in kept.folder.iterdir())

    def never():
        pytest.fail("what is kept was computed again")

    assert all_regions(never, "eyes", files, named, RegionCache(kept.folder)).keys() == together.keys()
    kept.file_of(outlined_name("eyes", files[2], named[files[2]], VIEWS)).unlink()
    assert torch.equal(
        all_regions(SamImageOpener, "eyes", files, named, kept)[files[2]].augmented,
        together[files[2]].augmented,
    )


def test_a_picture_that_cannot_be_read_is_one_line(pictures, tmp_path, threads):
    files, named = pictures
    files[3].write_bytes(b"no picture")
    for count in (1, 2):
        threads(count)
        with pytest.raises(BadInput, match="3.png") as trouble:
            all_regions(SamImageOpener, "eyes", files, named, RegionCache(tmp_path / str(count)))
        assert "\n" not in str(trouble.value)


def test_what_does_not_fit_is_one_line(pictures, tmp_path, threads):
    files, named = pictures
    for count in (1, 2):
        threads(count)
        with pytest.raises(BadInput, match="--cache-gb"):
            all_regions(SamImageOpener, "eyes", files, named, RegionCache(tmp_path / str(count), 1e-6))
