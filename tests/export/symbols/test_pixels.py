"""What a network sees: the named network's own pixels, unless told otherwise."""

from __future__ import annotations

import pytest

from export.errors import ExportError
from export.symbols.networks import IMAGENET, Pixels, choose_pixels


def test_networks_bring_their_own_pixels() -> None:
    assert choose_pixels("icnet", None, None, None) == IMAGENET
    assert choose_pixels(None, None, None, None) == IMAGENET
    xception = choose_pixels("deeplabv3plus", None, None, None)
    assert [(x / 255 - xception.mean[0]) / xception.std[0] for x in (0, 255)] == [-1.0, 1.0]
    assert choose_pixels("deeplabv3plus", None, None, None, "resnet50") == IMAGENET
    msra = choose_pixels("deeplab_msra", None, None, None)
    assert msra.bgr
    # Blue 104 and red 122 are zero.
    assert msra.mean[2] == pytest.approx(104 / 255)
    assert (1 - msra.mean[0]) / msra.std[0] == pytest.approx(255 - 122)


def test_options_beat_them() -> None:
    found = choose_pixels("deeplab_msra", "0,0.5,1", "1,2,3", False)
    assert found == Pixels((0.0, 0.5, 1.0), (1.0, 2.0, 3.0), bgr=False)


@pytest.mark.parametrize(("mean", "std"), [("1,2", None), ("a,b,c", None), (None, "1,0,1")])
def test_wrong_numbers_are_refused(mean: str | None, std: str | None) -> None:
    with pytest.raises(ExportError, match="three"):
        choose_pixels("icnet", mean, std, None)
