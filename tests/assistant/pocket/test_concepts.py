"""The pocket's taught names as a concept segmenter, behind the same interface as SAM 3's."""

import numpy as np
import pytest
import torch
from skimage import data

from assistant.errors import BadInput
from assistant.loading.concepts import concepts_checksum, load_concept_segmenter
from assistant.loading.sams import load_image_opener
from assistant.pocket.concepts import ImageEvidence, ProposalEvidence, separate
from assistant.sam.image_opener import SamImageOpener
from tests.helpers.pocket_wheels import require_pocket_wheels
from tests.helpers.tiny_sams import tiny_official_sam


def test_proposals_of_one_instance_count_once():
    masks = torch.zeros(5, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = True  # a thing
    masks[1, :3, :4] = True  # most of it
    masks[2, 4:, 4:] = True  # another
    masks[3] = True  # both
    masks[4, 5:, :3] = True  # hardly one
    scores = torch.tensor([0.8, 0.7, 0.6, 0.5, 0.1])
    assert separate(scores, masks) == [0, 2]
    assert separate(torch.zeros(5), masks) == []


def test_more_evidence_means_more():
    def score(log_name, log_map):
        rows = [torch.tensor([value]) for value in (log_name, 1.0, log_map, 0.8)]
        return float(ProposalEvidence(*rows).score())

    assert score(-0.1, -0.1) > score(-3.0, -0.1) > score(-3.0, -6.0)
    assert 0 < ImageEvidence(-3.0, -6.0).presence() < ImageEvidence(2.0, -0.2).presence() < 1


@pytest.fixture(scope="module")
def opened_and_finder():
    require_pocket_wheels()
    opener, _ = load_image_opener("pocket")
    finder, checksum = load_concept_segmenter("pocket", opener)
    assert checksum == concepts_checksum("pocket")
    return opener.open(data.chelsea()), finder


def test_a_cat_is_found_by_its_name_and_a_bus_is_not(opened_and_finder):
    opened, finder = opened_and_finder
    cat = finder.find(opened, "a ginger cat")
    assert len(cat) and cat.presence > 0.5 and cat.mask(0)[150, 220] and cat.confidence > 0.5
    assert cat.boxes.shape == (len(cat), 4) and (np.diff(cat.scores) <= 0).all()
    assert finder.find(opened, "bus").presence < 0.5
    unknown = finder.find(opened, "flux capacitor")
    assert len(unknown) == 0 and unknown.presence == 0


def test_it_goes_with_the_pocket_sam_only():
    from assistant.sam.backends import OfficialSegmenter

    with pytest.raises(BadInput, match="give --sam pocket"):
        load_concept_segmenter("pocket", SamImageOpener(OfficialSegmenter(tiny_official_sam())))
