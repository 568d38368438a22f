"""Damaged and hostile .pth files, by the thousand, through every reader that commands use.

Each mutation is seeded. A reader takes the file or refuses it in one line; anything else (another
exception, a line that is long or more than one, a slow file, much memory) is a failure. The default
suite looks at a few hundred, `make test-slow` at 10,000 and at the commands themselves.
"""

import collections
import io
import pickle
import pickletools
import random
import resource
import struct
import time
import zipfile

import published_files
import pytest
import torch
from conftest import TINY
from PIL import Image

import checkpoints
import convert_checkpoint
import curriculum
import extract_shapes
import inverse_render
import published_run
import render_multiview_images
import run_state
import train
from checkpoints import Fit
from flags import UsageError
from run_state import Progress
from training.adversarial import AdversarialGame, Precision

MAX_SECONDS = 20.0  # for one file, on a busy machine; the files here take some milliseconds
MAX_GROWTH = 300 * 2**20  # bytes of memory, over all mutations
MAX_LINE = 600
# ToyCars, so that train.main finds pictures; the rest is what the published fixtures have.
SMALL = {**TINY, "dataset": "ToyCars", "num_images": 4, "density_scale": 1.0}
SPECIAL = [b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"R", b".", b"(", b"b", b"\x81",
           b"cos\nsystem\n", b"c__builtin__\neval\n", b"Q", b"h\x00", b"\x8a\x00"]  # fmt: skip


def game_of(wanted):
    return AdversarialGame(
        wanted.build_generator(),
        wanted.build_discriminator(),
        wanted.optimizer_options(),
        Precision(),
        seed=0,
    )


class Lab:
    """A folder of sound files, and for each of them the readers that use it."""

    def __init__(self, folder):
        self.wanted = curriculum.build("Small", SMALL)
        self.folder, self.ours, self.published = folder, folder / "ours", folder / "published"
        game = game_of(self.wanted)
        run_state.save_state(self.ours, game, self.wanted, Progress(step=2, images_seen=6))
        saved = self.load(self.ours / "generator.pth")
        film = saved.generator.mapping(torch.randn(1, saved.generator.z_dim))
        fit = Fit(film=film, pitch=1.5, yaw=1.5, fov_degrees=12.0)
        checkpoints.save_fit(self.ours / "fit.pth", fit, saved)
        published_files.write_run(self.published)
        legacy = folder / "legacy"
        legacy.mkdir()
        published_files.save(published_files.generator(), legacy / "generator.pth", legacy=True)
        self.saved, self.game = saved, game
        self.files = {
            self.ours / "generator.pth": self.load,
            self.ours / "ema.pth": lambda p: self.load(p.with_name("generator.pth")),
            self.ours / "discriminator.pth": self.discriminator,
            self.ours / "fit.pth": lambda p: checkpoints.load_fit(p, self.saved),
            self.ours / "training_state.pth": self.state,
            legacy / "generator.pth": self.load,
            self.published / "generator.pth": self.load,
            self.published / "discriminator.pth": self.discriminator,
            **dict.fromkeys(
                (self.published / f"{name}.pth" for name in ("ema", "ema2", "optimizer_G",
                                                             "optimizer_D", "scaler")),
                self.run,
            ),
        }  # fmt: skip

    def load(self, path):
        return checkpoints.load_generator(path, ema="ema" if path.parent == self.ours else "none")

    def discriminator(self, path):
        return checkpoints.load_discriminator(path, self.wanted)

    def state(self, path):
        content = run_state.read_state(path, self.wanted)
        run_state.seed_of(content)
        return run_state.load_state(content, self.game)

    def run(self, path):
        run = published_run.open_run(path.parent)
        wanted = run.adapt(curriculum.build("Small", {**SMALL, "discriminator_width": None}))
        if path.name in ("ema.pth", "ema2.pth"):
            checkpoints.load_generator(path)
        return run_state.read_state(path.parent, wanted)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def flip_bits(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 4, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncate(data, rng):
    return data[: rng.randrange(len(data))]


def splice(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + rng.choice(SPECIAL) + data[at + rng.choice([0, 0, 1, 8, 100]) :]


def end_of_zip(data, rng):
    """Damage where sizes and places are declared: the last bytes."""
    at = max(0, len(data) - rng.randrange(1, 300))
    return data[:at] + rng.choice(SPECIAL) + data[at + rng.choice([1, 4, 8]) :]


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(content, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


def pickle_of(content):
    return next(name for name in content if name.endswith("/data.pkl"))


def change_pickle(change):
    """A mutation of the program in the archive, whose checksums then fit it."""

    def mutate(data, rng):
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return change(data, rng)
        content = members(data)
        name = pickle_of(content)
        return zipped({**content, name: change(content[name], rng)})

    return mutate


def swap_texts(data, rng):
    """Swap two names, numbers or classes of the same length within the program."""
    words = sorted(set(_words(data)))
    if not words:
        return splice(data, rng)
    one, other = rng.choice(words), rng.choice(words)
    if len(one) != len(other):
        other = (other * len(one))[: len(one)]
    return data.replace(one, b"\0" * len(one)).replace(other, one).replace(b"\0" * len(one), other)


def _words(data):
    for op, argument, _ in _genops(data):
        if op.name in ("BINUNICODE", "GLOBAL") and argument and argument.isascii():
            yield from (word.encode() for word in argument.split(" "))


def _genops(data):
    try:
        yield from pickletools.genops(io.BytesIO(data))
    except ValueError:
        return


def huge_numbers(data, rng):
    """Replace a small number by a huge one: sizes, strides, offsets, counts."""
    places = [place for op, _, place in _genops(data) if op.name == "BININT1"]
    if not places:
        return b""
    at = rng.choice(places)
    number = rng.choice([2**31 - 1, -1, 2**40, 2**62, 10**25])
    return data[:at] + pickle.dumps(number, 2)[2:-1] + data[at + 2 :]


def resize_storage(data, rng):
    content = members(data) if zipfile.is_zipfile(io.BytesIO(data)) else {}
    stored = [name for name in content if "/data/" in name]
    if not stored:
        return truncate(data, rng)
    name = rng.choice(stored)
    change = rng.choice(["drop", "shorter", "longer", "nan", "bomb"])
    if change == "drop":
        del content[name]
    elif change == "shorter":
        content[name] = content[name][: rng.randrange(len(content[name]) + 1)]
    elif change == "longer":
        content[name] += bytes(rng.randrange(1, 10**5))
    elif change == "nan":
        content[name] = struct.pack("<f", float("nan")) * (len(content[name]) // 4)
    else:
        content[name] = bytes(10**7)
        return zipped(content, zipfile.ZIP_DEFLATED)
    return zipped(content)


VALUES = [None, True, -1, 2**62, 3.5, float("nan"), "x" * 10**4, "os.system", [], {}, (1, 2),
          [[[[[]]]]], {"a": {1: 2}}, torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64),
          torch.full((4,), float("inf")), torch.zeros(1, dtype=torch.float64)]  # fmt: skip


def change_content(data, rng):
    """Load a plain file, change one thing somewhere in it, and write it again."""
    try:
        content = torch.load(io.BytesIO(data), weights_only=True)
    except pickle.UnpicklingError:  # a published object: only its bytes can be changed
        return huge_numbers(data, rng)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        inner = [key for key in keys if isinstance(place[key], (dict, list)) and place[key]]
        if not inner or rng.random() < 0.4:
            break
        place = place[rng.choice(inner)]
    key, kind = rng.choice(keys), rng.choice(["drop", "set", "set", "rename", "swap"])
    if kind == "drop" or (kind == "rename" and isinstance(place, list)):
        del place[key]
    elif kind == "rename":
        place[rng.choice(["x", 7, str(key) + "_"])] = place.pop(key)
    elif kind == "swap":
        other = rng.choice(keys)
        place[key], place[other] = place[other], place[key]
    else:
        place[key] = rng.choice(VALUES)
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def web_page(data, rng):
    return rng.choice([b"<!DOCTYPE html><html>", b"\n<HTML>", b"", b"\x89PNG\r\n", b"PK\x03\x04"])


OF_PICKLES = (flip_bits, splice, truncate, swap_texts, huge_numbers)
MUTATIONS = [flip_bits, truncate, splice, end_of_zip, resize_storage, change_content, web_page,
             *map(change_pickle, OF_PICKLES)]  # fmt: skip


def outcome(use, path, seconds=MAX_SECONDS):
    """Whether a reader took the file; its one line where it did not."""
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
    """Counts of outcomes over that many mutations."""
    counts = collections.Counter()
    sound = {path: path.read_bytes() for path in lab.files}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
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
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert growth < MAX_GROWTH
    counts["MiB of memory grown"] = growth // 2**20
    return counts


def test_sound_files_are_taken(lab):
    for path, use in lab.files.items():
        assert outcome(use, path) == "", path


def test_a_few_hundred_mutations(lab):
    counts = run_mutations(lab, 208, seed=1)
    assert counts["refused"] > 120
    assert counts["refused by name"] > 5


@pytest.mark.slow
def test_ten_thousand_mutations(lab, capsys):
    counts = run_mutations(lab, 10_000, seed=2)
    with capsys.disabled():
        print(f"\n10,000 mutations: {dict(counts)}")
    assert counts["taken"] + counts["refused"] == 10_000


def commands(lab, photo):
    """{what is done: (file that is read, the command's main, its arguments)}."""
    tiny = ["--image_size", "4", "--ray_step_multiplier", "1", "--device", "cpu"]
    ours, published = lab.ours / "generator.pth", lab.published / "generator.pth"
    ema = ours.with_name("ema.pth")  # what the commands read by default
    shape = ["--level", "0", "--voxel_resolution", "8", "--device", "cpu", "--format", "ply"]
    fast = ["--candidates", "2", "--starts", "1", "--latent_steps", "1", "--film_steps", "1"]
    file = lab.folder / "small.py"
    file.write_text(f"Small = {SMALL!r}\n")
    small = ["--curriculum", "Small", "--curriculum_file", file]
    widths = ["--max_steps", "43", "--set", "discriminator_width=None", "--device", "cpu"]
    return {
        "render": (ema, render_multiview_images.main, [ours, "--seeds", "0", *tiny]),
        "render published": (
            published, render_multiview_images.main, [published, "--ema", "none", *tiny]),
        "render a fit": (lab.ours / "fit.pth", render_multiview_images.main,
                         [ours, "--fit", lab.ours / "fit.pth", *tiny]),
        "shapes": (ema, extract_shapes.main, [ours, "--seed", "0", *shape]),
        "invert": (ema, inverse_render.main, [ours, photo, "--fit_size", "4", *fast, *tiny]),
        "convert": (published, convert_checkpoint.main, [published]),
        "go on": (lab.ours / "training_state.pth", train.main,
                  [*small, "--load_dir", lab.ours, "--max_steps", "2", "--device", "cpu"]),
        "go on from published": (lab.published / "optimizer_G.pth", train.main,
                                 [*small, "--load_dir", lab.published, *widths]),
    }  # fmt: skip


@pytest.mark.slow
def test_mutations_through_the_commands(lab, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), (200, 40, 40)).save(photo)
    counts = collections.Counter()
    for name, (path, main, words) in commands(lab, photo).items():
        sound = path.read_bytes()
        for number in range(40):
            rng = random.Random(f"{name} {number}")
            path.write_bytes(rng.choice(MUTATIONS)(sound, rng))
            out = tmp_path / f"{name} {number}"
            target = [out] if main is convert_checkpoint.main else ["--output_dir", out]

            def command(_, main=main, words=words, target=target):
                assert main([str(word) for word in [*words, *target]]) == 0

            line = outcome(command, path, seconds=120)
            check_line(line)
            assert not line or not out.exists() or not list(out.glob("*.p*"))
            counts[f"{name}: {'refused' if line else 'done'}"] += 1
        path.write_bytes(sound)
    with capsys.disabled():
        print(f"\nmutations through commands: {dict(counts)}")
