"""The lines of docs/own_photos.md, in their order, with photos of toy cars."""

import importlib
import shutil
from pathlib import Path

import documented
import pytest
from documented import ROOT
from PIL import Image
from test_documented_commands import TINY

from docs import toy_photos
from system.errors import UsageError

WRITTEN = ["cars.zip", "cars.csv", "cars.png", "cars_curricula.py", "runs/cars/dataset.png",
           "runs/cars/ema.pth", "runs/more/ema.pth", "imgs/sheet.png", "vids/1.mp4",
           "shapes/1.glb"]  # fmt: skip


def lines():
    text = documented.shell_text(documented.text_of("docs/own_photos.md"))
    return [line.split()[1:] for line in text.splitlines() if line.startswith("python ")]


def test_the_lines_of_the_page_work_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shutil.copytree(ROOT / "assets" / "demo", "assets/demo")
    first, *rest = lines()
    assert first == ["-m", "docs.toy_photos", "my_photos", "--count", "500"]
    assert toy_photos.main(["my_photos", "--count", "12"]) == 0
    for name, *words in rest:
        module = name.removesuffix(".py")
        tiny = "--size 32" if module == "prepare_photos" else TINY[module].replace("--level 0", "")
        if "--transfer" in words:  # a network of the size of the included one
            tiny = "--device cpu --max_steps 1 --set 0.batch_size=2 --set 0.num_steps=3"
        run = importlib.import_module(module).main
        if module == "estimate_cameras":  # after one step all renders look alike
            with pytest.raises(UsageError, match="yaw: cannot be found"):
                run([*words, *tiny.split()])
        else:
            assert run([*words, *tiny.split()]) == 0, name
        if "--transfer" in words:  # from here on, objects with a surface
            shutil.copytree("runs/more", "runs/cars", dirs_exist_ok=True)
    assert [name for name in WRITTEN if not Path(name).is_file()] == []


def test_toy_photos_are_as_their_page_says(tmp_path):
    toy_photos.main([str(tmp_path / "photos"), "--count", "8"])
    photos = [Image.open(path) for path in sorted((tmp_path / "photos").iterdir())]
    assert [photo.size for photo in photos] == [(480, 360)] * 8
    assert len({photo.getpixel((0, 0)) for photo in photos}) == 6  # two show another once more
