"""PNG files: exact colors, atomic writes, grids in reading order."""

import numpy as np
import torch
from PIL import Image

from image_io import png


def test_colors_are_scaled_cut_and_never_stretched():
    images = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    assert png.to_uint8(images).tolist() == [0, 0, 128, 191, 255, 255]


def test_a_grid_reads_row_by_row_and_is_filled_up_with_black():
    images = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    sheet = png.grid(images, 3)
    assert sheet.shape == (3, 4, 6)
    assert sheet[0, ::2, ::2].tolist() == [[1, 2, 3], [4, 5, 0]]


def test_a_picture_is_written_exactly_and_replaces_its_elder(tmp_path):
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    path = tmp_path / "new" / "folder" / "a.png"
    for _ in range(2):
        png.save_png(path, image)
        assert np.array_equal(np.asarray(Image.open(path)), image.permute(1, 2, 0).numpy())
        image = 255 - image
    assert {file.name for file in path.parent.iterdir()} == {"a.png", ".pigan_outputs"}
