"""The command lines of the documents are parsed, and run with tiny sizes."""

import importlib
import re
import shutil
import zipfile
from pathlib import Path

import documented
import numpy as np
import published_files
import pytest
from documented import ROOT
from PIL import Image

import curriculums

LINES = documented.all_lines()
COMMANDS = sorted(
    path.stem for path in ROOT.glob("*.py") if "def build_parser" in path.read_text("utf-8")
)
RUN = [line for line in LINES if line.command() is not None and line.words[0] == "python"]
# FID needs weights from the internet.
RUN = [line for line in RUN if "--real_image_dir" not in line.words]
# The generator of these tests is untrained: it shows no cameras.
RUN = [line for line in RUN if line.command()[0] != "estimate_cameras"]
TINY_RENDER = "--image_size 8 --ray_step_multiplier 1 --device cpu"
TINY_VIDEO = f"{TINY_RENDER} --num_frames 2"
TINY = {
    "train": "--device cpu --max_steps 1 --set hidden_dim=8 --set num_layers=2 "
    "--set mapping_hidden_dim=8 --set discriminator_width=4 --set 0.img_size=8 --set 0.num_steps=3 "
    "--set 0.batch_size=2 --set 0.batch_split=1 --set preview_size=4",
    "render_multiview_images": TINY_RENDER,
    "render_video": TINY_VIDEO,
    "render_video_interpolation": TINY_VIDEO,
    "extract_shapes": "--voxel_resolution 16 --level 0 --device cpu",
    "inverse_render": f"{TINY_VIDEO} --fit_size 8 --candidates 4 --starts 1 --latent_steps 1 "
    "--film_steps 1",
    "fid_evaluation": "--img_size 8",
    "eval_metrics": "--num_objects 1 --consistency_size 8 --device cpu",
    "estimate_cameras": "--num_photos 200 --device cpu",  # of test_own_photos
    "prepare_photos": "--kind crop --size 16",  # the photos of this test are noise
    "train_encoder": "--steps 1 --batch_size 2 --renders_per_step 2 --device cpu",
    "viewer": "--save_picture --image_size 8 --num_steps 4 --device cpu",
}
OURS = ("runs/demo", "assets/demo", "out")
PUBLISHED = (".", "path", "celeba", "carla", "published_folder")
PHOTOS = ("car.jpg", "photo.jpg", "assets/photo.png", "my_photos/1.jpg",
          "data/celeba/img_align_celeba/1.jpg")  # fmt: skip


def parser_of(module):
    return importlib.import_module(module).build_parser()


def flags_of(module):
    return {flag for flag in parser_of(module)._option_string_actions if flag.startswith("--")}


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_documented_line_is_understood(line):
    if line.command() is not None:
        module, arguments = line.command()
        parsed = parser_of(module).parse_args(arguments)
        if module == "train" and parsed.curriculum_file is None and not parsed.list_curricula:
            curriculums.load(parsed.curriculum, overrides=parsed.set)
    elif line.words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", documented.text_of("Makefile"), re.MULTILINE)
        assert line.words[1] in targets
    elif line.words[0] == "pip":
        assert line.words[1] == "install"
        assert line.words[2] == "torch" or (ROOT / line.words[3]).exists()
    elif line.words[0] == "bash":
        assert (ROOT / line.words[1]).is_file()
    elif line.words[:3] == ("python", "-m", "pytest"):
        files = [word for word in line.words if word.endswith(".py")]
        assert files
        assert all((ROOT / file).is_file() for file in files)
    else:
        check_benchmark(line)


def check_benchmark(line):
    """Assert that a benchmark's module exists and has the flags."""
    words = line.words[2:] if line.words[1] == "-m" else line.words[1:]
    path = ROOT / (words[0] if words[0].endswith(".py") else f"{words[0].replace('.', '/')}.py")
    source = path.read_text("utf-8")
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in source, word


def test_the_lines_are_found():
    assert len(LINES) > 80
    assert {line.document for line in LINES} == set(documented.DOCUMENTS)
    assert set(COMMANDS) <= {line.command()[0] for line in LINES if line.command()}


def test_flags_named_in_a_sentence_exist_and_every_flag_is_described():
    known = set().union(*(flags_of(module) for module in COMMANDS))
    for document in documented.DOCUMENTS:
        prose = re.sub(r"```.*?```", "", documented.text_of(document), flags=re.DOTALL)
        for code in re.findall(r"`([^`]+)`", prose):
            if "benchmarks" not in code:
                unknown = set(re.findall(r"(?<![\w-])--[a-z_]+", code)) - known
                assert not unknown, (document, code)
    described = documented.text_of("docs/commands.md")
    assert {flag for flag in known if not re.search(rf"{flag}\b", described)} <= {"--help"}


@pytest.fixture
def place(tiny_run, tmp_path, monkeypatch):
    """Return a working folder with all files that the command lines name."""
    folder = tmp_path / "place"
    for name in OURS:
        shutil.copytree(tiny_run, folder / name)
        shutil.copy(ROOT / "assets" / "demo" / "log.jsonl", folder / name)
    for name in PUBLISHED:
        published_files.write_run(folder / name, critic="CCSEncoderDiscriminator")
    rng = np.random.default_rng(0)
    for name in PHOTOS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / name)
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.write(folder / "car.jpg", "car.jpg")
    (folder / "my_way.csv").write_text("pitch,yaw\n1.5,1.5\n1.4,1.6\n")
    (block,) = re.findall(r"```python\n(.*?)```", documented.text_of("README.md"), re.DOTALL)
    (folder / "my_curricula.py").write_text(block)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return folder


def run(line):
    """Run a line with the flags of TINY added; return the files that it wrote."""
    module, arguments = line.command()
    before = set(Path().rglob("*"))
    words = [*arguments, *TINY.get(module, "").split()]
    if "--trajectory" in words and words[words.index("--trajectory") + 1].endswith(".csv"):
        words = [*words[: words.index("--num_frames")]]
    if "--instant" in words:
        del words[words.index("--candidates") : words.index("--candidates") + 2]
    if module == "prepare_photos" and "--share" in words:  # of --kind object
        del words[words.index("--share") : words.index("--share") + 2]
    if module == "train" and "--resume" not in words:
        folder = parser_of(module).parse_args(words).output_dir
        if (folder / "generator.pth").exists():  # place has a finished run there
            folder.rename(f"{folder}_before")
    assert importlib.import_module(module).main(words) == 0
    return {str(path) for path in set(Path().rglob("*")) - before}


DEFAULT = [
    ("render_multiview_images", "imgs/grid_15.png"),
    ("render_video", "vids/16.mp4"),
    ("render_video_interpolation", "vids/interp.mp4"),
    ("extract_shapes", "shapes/15.glb"),
    ("inverse_render", "photo_fit/fit.pth"),
    ("eval_metrics", "temp/consistency.png"),
    ("viewer", "views/0.png"),
    ("plot_run", "run.png"),
    ("fid_evaluation", "EvalImages/CelebA_real_images_8/00000.jpg"),
    ("convert_checkpoint", "converted/generator.pth"),
    ("train", "runs/celeba/generator.pth"),
    ("prepare_photos", "faces.zip"),
]


def test_every_command_of_the_readme_does_what_it_says(place):
    for module, file in DEFAULT:
        lines = [line for line in RUN if line.document == "README.md"]
        written = set()
        for line in lines:
            if line.command()[0] == module and file not in written:
                if module == "train" and "runs/celeba" not in line.words:
                    continue
                if module != "render_multiview_images" or "15" in line.words:
                    written |= run(line)
        assert file in written, (module, sorted(written))


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", ["README.md", "docs/training.md", "docs/commands.md", "docs/faq.md"]
)
def test_every_line_of_a_document_does_what_it_says(document, place):
    if document == "docs/training.md":
        shutil.copy("photos.zip", "cars.zip")
    for line in RUN:
        if line.document == document:
            print(line)
            run(line)
