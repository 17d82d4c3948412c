"""The regions of training images, computed by several processes and stored on disk."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.errors import BadInput
from assistant.pocket.region_features import FEATURE_DIM
from assistant.sam.mask_ops import encode_rle
from finetune.pocket.regions import AUGMENTED_COPIES, instance_cache_key, load_regions
from finetune.region_cache import RegionCache


class ProcessOpener:
    """Opens an image with one proposal, whose features say which process computed them."""

    class Segmenter:
        def encode(self, image):
            return None

        def low_res_logits(self, embedding, mask):
            return np.where(mask[:128, :128], 5.0, -5.0)

    segmenter = Segmenter()

    def open(self, image):
        opened = type("OpenedImage", (), {})()
        opened.proposals = type("Proposals", (), {"rles": [encode_rle(image[..., 0] > 99)]})
        opened.features = torch.full((1, FEATURE_DIM), float(os.getpid() % 1000))
        return opened

    def features(self, image, embedding, low_res_logits):
        return (low_res_logits > 0).float().mean((1, 2))[:, None].expand(-1, FEATURE_DIM)


@pytest.fixture
def images(tmp_path):
    files, instances = [], {}
    for k in range(5):
        pixels = np.full((128, 128, 3), 40 * k, np.uint8)
        pixels[10:60, 10 : 40 + k] = 200
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        files.append(tmp_path / f"{k}.png")
        instances[files[-1]] = [("patch", encode_rle(pixels[..., 0] == 200))] if k else []
    return files, instances


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_several_processes_compute_what_one_computes(images, tmp_path, threads):
    files, instances = images
    threads(1)
    by_one = load_regions(ProcessOpener, "sam", files, instances, RegionCache(tmp_path / "one"))
    threads(2)
    cache, random = RegionCache(tmp_path / "several"), torch.get_rng_state()
    by_several = load_regions(ProcessOpener, "sam", files, instances, cache)
    # A run that finds them stored draws the same random numbers afterwards.
    assert torch.equal(torch.get_rng_state(), random)
    processes = {int(r.features[-1, 0]) for r in by_several.values()}
    assert os.getpid() % 1000 not in processes and len(processes) > 1
    assert {int(r.features[-1, 0]) for r in by_one.values()} == {os.getpid() % 1000}
    for image in files:
        a, b = by_one[image], by_several[image]
        assert a.rles == b.rles and a.names == b.names and a.augmented_names == b.augmented_names
        assert torch.equal(a.features[:-1], b.features[:-1]) and torch.equal(a.augmented, b.augmented)
    assert len(by_several[files[0]].names) == 0
    assert by_several[files[1]].names == ["patch"] and len(by_several[files[1]].augmented)
    names = [sorted(f.name for f in folder.iterdir()) for folder in (cache.folder, tmp_path / "one")]
    assert names[0] == names[1]
    assert cache.size == sum(f.stat().st_size for f in cache.folder.iterdir())


def test_what_is_stored_is_not_computed_again(images, tmp_path):
    files, instances = images
    cache = RegionCache(tmp_path / "regions")
    regions = load_regions(ProcessOpener, "sam", files, instances, cache)

    def never():
        pytest.fail("what is stored was computed again")

    again = load_regions(never, "sam", files, instances, RegionCache(cache.folder))
    assert again.keys() == regions.keys()
    cache.file_of(instance_cache_key("sam", files[2], instances[files[2]], AUGMENTED_COPIES)).unlink()
    completed = load_regions(ProcessOpener, "sam", files, instances, cache)
    assert torch.equal(completed[files[2]].augmented, regions[files[2]].augmented)


@pytest.mark.parametrize("count", [1, 2])
def test_an_image_that_cannot_be_read_is_one_line(images, tmp_path, threads, count):
    files, instances = images
    files[3].write_bytes(b"no image")
    threads(count)
    with pytest.raises(BadInput, match="3.png") as trouble:
        load_regions(ProcessOpener, "sam", files, instances, RegionCache(tmp_path / "regions"))
    assert "\n" not in str(trouble.value)


@pytest.mark.parametrize("count", [1, 2])
def test_what_does_not_fit_is_one_line(images, tmp_path, threads, count):
    files, instances = images
    threads(count)
    with pytest.raises(BadInput, match="--cache-gb"):
        load_regions(ProcessOpener, "sam", files, instances, RegionCache(tmp_path / "regions", 1e-6))
