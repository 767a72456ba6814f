"""Forms of characters: fonts and hands, thinned lines, and distances to them."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font

from fedsim.data import letterforms
from fedsim.data.letterforms import CHARACTERS, FONTS, HANDS, NUM_FORMS, TABLE, UNITS, tables


def test_every_font_has_every_character_and_none_is_a_box() -> None:
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in FONTS:
        assert all(FT2Font(str(fonts / f"{name}.ttf")).get_char_index(ord(letter)) for letter in CHARACTERS)


def test_characters_differ_within_a_form_and_resemble_themselves_across_forms() -> None:
    fields = tables().distances.view(NUM_FORMS, 62, -1)[..., ::7].float() / UNITS  # pixels
    for form in fields:
        assert form.amin(dim=1).max() < 0.7  # a line passes through every frame
        # Missing characters would all show the same box; I, l and 1 are one stroke in some forms, O and 0 one circle.
        same = torch.nonzero((torch.cdist(form, form) < 0.1 * form.shape[1] ** 0.5).triu(1)).tolist()
        assert {CHARACTERS[one] + CHARACTERS[other] for one, other in same} <= {"Il", "1I"}
    mean = fields.mean(dim=0)
    nearest = torch.stack([torch.cdist(form, mean).argmin(dim=1) for form in fields])
    assert (nearest == torch.arange(62)).float().mean() > 0.7


def test_hands_write_all_characters_centred_and_in_scale() -> None:
    assert all(set(hand) == set(CHARACTERS) for hand in HANDS)
    for hand in HANDS:
        lines = letterforms._drawn(hand)
        for character, picture in zip(CHARACTERS, lines, strict=True):
            y, x = np.nonzero(picture)
            assert abs(y.min() + y.max() - 127) <= 2, character
            assert abs(x.min() + x.max() - 127) <= 2, character
            if character in "HTXZ":  # of the height of a printed capital
                assert np.ptp(y) in (80, 81)


def test_a_smooth_stroke_passes_through_its_points_and_a_straight_one_is_straight() -> None:
    points = np.array([[0, 7], [3, 5], [6, 8], [5, 11]])
    path = letterforms._path("07 35 68 5b")
    assert all(np.abs(path - point).max(axis=1).min() < 1e-9 for point in points)
    turns = np.diff(np.unwrap(np.arctan2(*np.diff(path, axis=0).T)))
    assert np.abs(turns).max() < 0.2  # no corner
    straight = letterforms._path("-0c 40")
    np.testing.assert_allclose(straight[:, 1], 12 - 3 * straight[:, 0], atol=1e-9)
    closed = letterforms._path("40 06 4c 86 40")
    start, end = np.diff(closed, axis=0)[[0, -1]]
    assert abs(start[0] * end[1] - start[1] * end[0]) < 0.01  # it closes smoothly


def test_the_dot_of_the_i_survives_thinning() -> None:
    for font in FONTS:
        lines = letterforms._thin(letterforms._bitmaps(font))
        rows = np.flatnonzero(lines[CHARACTERS.index("i")].any(axis=1))
        assert np.diff(rows).max() > 5, font  # the gap under the dot


@pytest.mark.parametrize("seed", range(3))
def test_distances_are_those_to_the_nearest_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lines = np.zeros((2, 128, 128), dtype=bool)
    for picture in lines:
        picture[tuple(rng.integers(20, 108, (2, 5)))] = True
    found = letterforms._distances(lines).numpy()
    for picture, table in zip(lines, found, strict=True):
        y, x = np.nonzero(picture)
        # Point i of the table lies on the edge before pixel 2 i + 1; pixels are squares of side 1 with centres at 1/2.
        edge = 2 * np.arange(64) + 1
        squares = (edge[:, None, None] - y - 0.5) ** 2 + (edge[None, :, None] - x - 0.5) ** 2
        expected = np.sqrt(squares.min(axis=2)) * 28 / 128 * UNITS
        near = expected < 60 * 28 / 128 * UNITS  # beyond, all are equally far
        np.testing.assert_allclose(table[near], expected[near], atol=0.51)
        assert table[~near].min(initial=999) >= 60 * 28 / 128 * UNITS - 1


def test_interpolation_is_linear_between_the_points() -> None:
    slope = (3 * torch.arange(64, dtype=torch.int16)[:, None] + torch.arange(64, dtype=torch.int16)).unsqueeze(0)
    fine = letterforms._interpolated(slope)[0].float()
    assert fine.shape == (TABLE, TABLE)
    place = (torch.arange(TABLE) - 0.5) / 2  # of the fine points among the coarse ones
    expected = 3 * place[:, None] + place
    inner = slice(1, -1)
    assert (fine - expected)[inner, inner].abs().max() <= 0.51
