"""Thousands of damaged and hostile .pth files through every reader that commands use.

Each mutation is seeded. A reader takes the file or refuses it in one line; anything else (another
exception, a line that is long or more than one, a slow file, much memory) is a failure. The default
suite looks at a few hundred, `make test-slow` at 10,000 and at the commands themselves.
"""

import collections
import random
import shutil
import time

import published_files
import pytest
import torch
from conftest import TINY
from mutations import MUTATIONS
from PIL import Image

import convert_checkpoint
import eval_metrics
import extract_shapes
import inverse_render
import render_multiview_images
import render_video
import render_video_interpolation
import train
import viewer
from checkpoint_io import checkpoints, published_run, safe_load
from config import curriculum
from config.stage import Precision
from generators.trajectories import Camera, SceneObject
from geometry import mesh_extraction
from metrics import report
from system.errors import UsageError
from system.machine import peak_memory_bytes
from training import state
from training.adversarial import AdversarialGame
from training.state import Progress

MAX_SECONDS = 20.0  # for one file, on a busy machine; the files here take some milliseconds
MAX_GROWTH = 300 * 2**20  # bytes of memory, over all mutations
MAX_LINE = 600
BY_EACH_COMMAND = 720  # the sound file among them
# ToyCars, so that train.main finds pictures; the rest is what the published fixtures have.
SMALL = {**TINY, "dataset": "ToyCars", "num_images": 4, "density_scale": 1.0}


class Lab:
    """A folder of valid files, and for each of them the readers that use it."""

    def __init__(self, folder):
        self.wanted = curriculum.build("Small", SMALL)
        self.folder, self.ours, self.published = folder, folder / "ours", folder / "published"
        networks = self.wanted.build_generator(), self.wanted.build_discriminator()
        game = AdversarialGame(*networks, self.wanted.optimizer_options(), Precision(), seed=0)
        state.save_state(self.ours, game, self.wanted, Progress(step=2, images_seen=6))
        saved = self.load(self.ours / "generator.pth")
        film = saved.generator.mapping(torch.randn(1, saved.generator.z_dim))
        fit = SceneObject("cat", film, Camera(1.5, 1.5, 12.0))
        checkpoints.save_fit(self.ours / "fit.pth", fit, saved)
        published_files.write_run(self.published)
        old = folder / "old.pth"  # as the weights of Inception are
        published_files.save(published_files.generator().state_dict(), old, legacy=True)
        self.saved, self.game = saved, game
        self.files = {
            self.ours / "generator.pth": self.load,
            self.ours / "ema.pth": lambda p: self.load(p.with_name("generator.pth")),
            self.ours / "discriminator.pth": self.discriminator,
            self.ours / "fit.pth": lambda p: checkpoints.load_fit(p, self.saved),
            self.ours / "training_state.pth": self.state,
            old: safe_load.read,
            self.published / "generator.pth": self.load,
            self.published / "discriminator.pth": self.discriminator,
            **dict.fromkeys(
                (self.published / f"{name}.pth" for name in ("ema", "ema2", "optimizer_G",
                                                             "optimizer_D", "scaler")),
                self.run,
            ),
        }  # fmt: skip

    def load(self, path):
        return checkpoints.load_generator(
            path,
            ema="ema" if path.parent == self.ours else "none",
            published_curriculum=self.wanted,
        )

    def discriminator(self, path):
        return checkpoints.load_discriminator(path, self.wanted)

    def state(self, path):
        content = state.read_state(path, self.wanted)
        state.seed_of(content)
        return state.load_state(content, self.game)

    def run(self, path):
        run = published_run.open_run(path.parent)
        wanted = run.adapt(curriculum.build("Small", {**SMALL, "discriminator_width": None}))
        if path.name in ("ema.pth", "ema2.pth"):
            checkpoints.load_generator(path, published_curriculum=self.wanted)
        return state.published_content(run, wanted)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def outcome(use, path, seconds=MAX_SECONDS):
    """Return "" if a reader accepts the file, else its one-line error."""
    started = time.monotonic()
    try:
        use(path)
        line = ""
    except UsageError as error:
        line = str(error)
    assert time.monotonic() - started < seconds
    return line


def check_line(line):
    assert "\n" not in line
    assert len(line) < MAX_LINE
    assert line.isprintable()


def run_mutations(lab, count, *, seed):
    """Read count mutations of the files; return the counts of outcomes."""
    counts = collections.Counter()
    sound = {path: path.read_bytes() for path in lab.files}
    before = peak_memory_bytes(torch.device("cpu"))
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        path, use = list(lab.files.items())[number % len(lab.files)]
        mutate = rng.choice(MUTATIONS)
        path.write_bytes(mutate(sound[path], rng))
        try:
            line = outcome(use, path)
            check_line(line)
        except Exception as error:
            raise AssertionError(f"mutation {number}: {mutate} of {path}") from error
        counts["refused" if line else "taken"] += 1
        counts["refused by name"] += "nothing in it was run" in line
        path.write_bytes(sound[path])
    growth = peak_memory_bytes(torch.device("cpu")) - before
    assert growth < MAX_GROWTH
    counts["MiB of memory grown"] = growth // 2**20
    return counts


def test_sound_files_are_taken(lab):
    for path, use in lab.files.items():
        assert outcome(use, path) == "", path


def test_a_hundred_mutations(lab):
    counts = run_mutations(lab, 104, seed=1)
    assert counts["refused"] > 60
    assert counts["refused by name"] > 2


@pytest.mark.slow
def test_ten_thousand_mutations(lab, counted):
    counts = run_mutations(lab, 10_000, seed=2)
    counted(f"10,000 mutations: {dict(counts)}")
    assert counts["taken"] + counts["refused"] == 10_000


def commands(lab, photo):
    """Return {use: (file that is read, the command's main, its arguments)}."""
    tiny = ["--image_size", "4", "--ray_step_multiplier", "1", "--device", "cpu"]
    ours, published = lab.ours / "generator.pth", lab.published / "generator.pth"
    ema = ours.with_name("ema.pth")  # what the commands read by default
    shape = ["--level", "-1", "--voxel_resolution", "8", "--device", "cpu", "--format", "ply"]
    fast = ["--candidates", "2", "--starts", "1", "--latent_steps", "1", "--film_steps", "1"]
    file = lab.folder / "small.py"
    file.write_text(f"Small = {SMALL!r}\nWide = Small | {{'discriminator_width': None}}\n")
    small = ["--curriculum", "Small", "--curriculum_file", file]
    widths = ["--max_steps", "43", "--set", "discriminator_width=None", "--device", "cpu"]
    video = [*tiny, "--num_frames", "1", "--format", "frames"]
    view = ["--save_picture", "--image_size", "4", "--num_steps", "3", "--device", "cpu"]
    measure = ["--consistency", "--num_objects", "1", "--consistency_size", "4", "--device", "cpu"]
    return {
        "render": (ema, render_multiview_images.main, [ours, "--seeds", "0", *tiny]),
        "render published": (
            published, render_multiview_images.main, [published, "--ema", "none", *tiny]),
        "render a fit": (lab.ours / "fit.pth", render_multiview_images.main,
                         [ours, "--fit", lab.ours / "fit.pth", *tiny]),
        "video": (ema, render_video.main, [ours, "--seeds", "0", *video]),
        "interpolation": (ema, render_video_interpolation.main,
                          [ours, "--seeds", "0", "1", *video]),
        "view": (ema, viewer.main, [ours, *view]),
        "view published": (published, viewer.main, [published, "--ema", "none", *view]),
        "measure": (ema, eval_metrics.main, [ours, *measure]),
        "shapes": (ema, extract_shapes.main, [ours, "--seed", "0", *shape]),
        "invert": (ema, inverse_render.main, [ours, photo, "--fit_size", "4", *fast, *tiny]),
        "convert": (published, convert_checkpoint.main, [published]),
        "convert a run": (lab.published / "optimizer_D.pth", convert_checkpoint.main,
                          [lab.published, "--curriculum", "Wide", "--curriculum_file", file]),
        "go on": (lab.ours / "training_state.pth", train.main,
                  [*small, "--load_dir", lab.ours, "--max_steps", "2", "--device", "cpu"]),
        "go on from published": (lab.published / "optimizer_G.pth", train.main,
                                 [*small, "--load_dir", lab.published, *widths]),
    }  # fmt: skip


@pytest.mark.slow
def test_ten_thousand_mutations_through_the_commands(lab, tmp_path, monkeypatch, counted):
    monkeypatch.setattr(report, "SHAPE_RESOLUTION", 12)
    monkeypatch.setattr(mesh_extraction, "PREVIEW_SIZE", 24)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), (200, 40, 40)).save(photo)
    counts = collections.Counter()
    for name, (path, main, words) in commands(lab, photo).items():
        sound = path.read_bytes()
        for number in range(BY_EACH_COMMAND):
            rng = random.Random(f"{name} {number}")
            if number > 0:  # the first time it is as it was
                path.write_bytes(rng.choice(MUTATIONS)(sound, rng))
            out = tmp_path / f"{name} {number}"
            target = [out] if main is convert_checkpoint.main else ["--output_dir", out]

            def command(_, main=main, words=words, target=target):
                assert main([str(word) for word in [*words, *target]]) == 0

            line = outcome(command, path, seconds=120)
            check_line(line)
            assert number > 0 or line == "", name
            assert not line or not out.exists() or not list(out.glob("*.p*"))
            counts[f"{name}: {'refused' if line else 'done'}"] += number > 0
            if out.exists():
                shutil.rmtree(out)
        path.write_bytes(sound)
    assert sum(counts.values()) >= 10_000
    counted(f"{sum(counts.values())} mutations through commands: {dict(counts)}")
