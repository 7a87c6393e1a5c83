"""Greyscale of more than eight bits, whichever type its numbers have."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lcmem_filter.decoding import decode_image, eight_bits

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def decoded(values: np.ndarray, kind: str = "TIFF") -> np.ndarray:
    """The red channel of what comes out of a file with ``values``."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    picture = decode_image(buffer.getvalue())
    assert picture.mode == "RGB"
    seen = np.asarray(picture)
    assert (seen[..., 0] == seen[..., 1]).all() and (seen[..., 0] == seen[..., 2]).all()
    return seen[..., 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_files_are_scaled_from_the_bits_that_they_use(kind, bits):
    values = (RAMP * (2**bits - 1)).round().astype(np.uint16)
    seen = decoded(values, kind)
    assert np.array_equal(seen, (values * (255 / (2**bits - 1))).round())
    assert len(np.unique(seen)) == 64  # nothing clipped together


def test_a_middle_grey_stays_one():
    assert np.unique(decoded(np.full((4, 4), 32_768, np.uint16), "PNG")).tolist() == [128]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_negative_and_large_values_are_stretched_between_percentiles(dtype):
    for low, high in ((-1000, 3000), (0, 5_000_000)):
        values = (RAMP * (high - low) + low).astype(dtype)
        black, white = np.percentile(values, (0.5, 99.5))
        expected = ((values - black) / (white - black) * 255).round().clip(0, 255)
        assert np.array_equal(decoded(values), expected)


def test_fractions_reach_from_nought_to_one():
    values = (RAMP * 0.5).astype(np.float32)
    assert np.array_equal(decoded(values), (values.astype(float) * 255).round())


@pytest.mark.parametrize(("low", "high"), [(0, 1.0001), (-0.05, 1.08)])
def test_what_resampling_leaves_beyond_nought_and_one_is_clipped(low, high):
    values = (RAMP * (high - low) + low).astype(np.float32)
    assert np.array_equal(decoded(values), (values.astype(float) * 255).round().clip(0, 255))


@pytest.mark.parametrize("high", [0.003, 0.1, 2.5, 10.5, 1234.5])
def test_other_fractions_are_stretched_between_percentiles(high):
    values = (RAMP * high).astype(np.float32)
    black, white = np.percentile(values, (0.5, 99.5))
    assert np.array_equal(decoded(values), ((values - black) / (white - black) * 255).round().clip(0, 255))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_whole_numbers_are_scaled_from_their_bits_whichever_their_type(dtype):
    values = (RAMP * 1023).round().astype(dtype)
    assert np.array_equal(decoded(values), (values * (255 / 1023)).round())


@pytest.mark.parametrize(("dtype", "most", "hot"), [(np.uint16, 400, 65_535), (np.float32, 0.003, 1)])
def test_a_hot_pixel_does_not_blacken_a_picture(dtype, most, hot):
    values = (np.tile(RAMP, (8, 8)) * most).astype(dtype)
    values[3, 3] = hot
    seen = decoded(values)
    assert len(np.unique(seen)) >= 60 and seen[3, 3] == 255


def test_a_picture_of_few_greys_keeps_its_scale():
    values = np.tile(np.array([0, 1, 2, 3], np.uint16) * 1000, (4, 1))
    assert np.array_equal(decoded(values), (values * (255 / 4095)).round())


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_a_picture_that_shows_in_its_transparency_alone_is_refused(mode):
    """Black lines on nothing would be black all over."""

    def saved(alpha: np.ndarray, grey: np.ndarray) -> bytes:
        picture = Image.merge("LA", [Image.fromarray(one.astype(np.uint8)) for one in (grey, alpha)])
        given = picture if mode == "LA" else picture.convert("RGBA")
        given = given.quantize(32, Image.Quantize.FASTOCTREE) if mode == "P" else given
        buffer = io.BytesIO()
        given.save(buffer, "PNG")
        return buffer.getvalue()

    shape, black = RAMP * 255, np.zeros((8, 8))
    with pytest.raises(ValueError, match="its content is in its transparency; flatten it"):
        decode_image(saved(shape, black))
    for alpha, grey in ((shape, RAMP * 255), (black + 255, black), (black + 128, black), (black, RAMP * 255)):
        assert decode_image(saved(alpha, grey)).mode == "RGB"


def test_programs_that_draw_pictures_are_not_run():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    with pytest.raises(ValueError, match="it is EPS, a program that draws a picture; export it as PNG"):
        decode_image(buffer.getvalue())


def test_a_few_outliers_do_not_blacken_a_picture():
    values = np.tile(RAMP, (32, 32)) * 100 - 50
    values[0, 0] = 1e6
    assert 100 < np.median(eight_bits(values)) < 155


def test_one_value_is_black_where_nothing_says_how_bright_it_is():
    assert eight_bits(np.full((4, 4), -7)).tolist() == np.zeros((4, 4)).tolist()
    mostly = np.full((40, 40), -7)
    mostly[3, 3] = 9
    assert eight_bits(mostly)[3, 3] == 255 and eight_bits(mostly).sum() == 255


def test_values_that_are_no_numbers_are_refused():
    values = RAMP.astype(np.float32)
    values[2, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        eight_bits(values)


def test_eight_bits_stay_as_they_are():
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(decoded(values, "PNG"), values)
