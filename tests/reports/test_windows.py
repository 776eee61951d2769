import matplotlib.pyplot as plt
import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.reports.windows import windows_figure


def numbers(axis):
    """Returns (x, y) -> the number in a plotted map."""
    return {text.get_position(): int(text.get_text()) for text in axis.texts}


def test_regions_follow_the_shift_and_masks_are_drawn():
    figure = windows_figure()
    axes = figure.get_axes()
    titles = [axis.get_title() for axis in axes]
    assert titles[:3] == ["regular windows", "shifted windows: regions", "after the cyclic shift"]
    assert titles[3:] == [f"mask of window {i}" for i in (1, 2, 3, 4)]
    before, after = numbers(axes[1]), numbers(axes[2])
    assert len(before) == 64 and set(before.values()) == set(range(1, 10))
    for (x, y), number in after.items():
        assert number == before[(x + 2) % 8, (y + 2) % 8]
    drawn = [np.asarray(axis.images[0].get_array()) for axis in axes[3:]]
    allowed = [(mask < 1).any(-1).mean() for mask in drawn]  # not white
    assert allowed == [1, 1 / 2, 1 / 2, 1 / 4]
    plt.close(figure)


def test_a_wide_map_has_one_mask_per_window():
    figure = windows_figure((8, 16), 4)
    assert sum(axis.get_title().startswith("mask") for axis in figure.get_axes()) == 8
    plt.close(figure)


@pytest.mark.parametrize("size", [(4, 4), (9, 8)])
def test_nothing_to_draw(size):
    with pytest.raises(UserError, match="windows of 4 do not divide"):
        windows_figure(size, 4)


def test_the_entry_point_needs_no_run(entry, tmp_path):
    file = tmp_path / "new" / "windows.png"
    assert entry("figures", "--windows", file) == (0, f"wrote {file}\n", "")
    assert file.stat().st_size > 10_000
    code, _, err = entry("figures", "--windows", tmp_path / "windows.xyz")
    assert (code, err.count("\n")) == (2, 1) and "cannot write" in err
