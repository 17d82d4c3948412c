"""The cache of the images' regions: computed once, limited in size."""

import numpy as np
import pytest

from assistant.errors import BadInput
from finetune.region_cache import RegionCache


def test_regions_are_computed_once_and_bounded(tmp_path):
    cache, computed = RegionCache(tmp_path, gigabytes=3e-6), []

    def compute():
        computed.append(1)
        return {"x": np.random.default_rng(0).random(100)}

    cache.load_or_compute("a", compute)
    cache.load_or_compute("a", compute)
    assert len(computed) == 1
    cache.load_or_compute("b", compute)
    later = RegionCache(tmp_path, gigabytes=2.2e-6)  # another run, which needs neither
    later.load_or_compute("c", compute)
    assert not (tmp_path / "a.npz").exists() and (tmp_path / "c.npz").exists()
    with pytest.raises(BadInput, match="--cache-gb"):
        later.load_or_compute("d", compute)
        later.load_or_compute("e", compute)
