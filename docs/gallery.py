"""Rebuild every picture of the documents with this project's own commands.

    python -m docs.gallery                  # all pictures, from the generator in assets/demo
    python -m docs.gallery strip.png        # those alone
    python -m docs.gallery --run runs/demo  # take the generator of a run into assets/demo first

assets/gallery.json remembers for each picture the command, what it was made from, and the picture
itself, as hashes: a test tells when one is older than what made it.
"""

import hashlib
import importlib
import json
import shlex
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint_io import checkpoints
from system import flags
from system.errors import UsageError, choose
from system.files import replaced

ASSETS = Path("assets")
DEMO = ASSETS / "demo"
MANIFEST = ASSETS / "gallery.json"
# What is taken from a run as it is; the last of its previews and its options come along.
NETWORKS = ("generator.pth", "ema.pth")
RECORDS = ("log.jsonl",)
PREVIEW, PREVIEW_ENDING = "previews.png", "_random.png"
OPTIONS = "options.json"
KEPT_OPTIONS = ("curriculum_name", "curriculum", "seed", "processes", "device", "field", "versions")
TAKEN = (*NETWORKS, *RECORDS, PREVIEW, OPTIONS)


class Picture(NamedTuple):
    """A file in assets: the command line that makes it, and its name among what that writes."""

    command: str
    made: str


_GENERATOR = "assets/demo/generator.pth"
_CONSISTENCY = f"eval_metrics.py {_GENERATOR} --consistency --num_objects 8 --consistency_size 64"
PICTURES: dict[str, Picture] = {  # in this order: a later one may read an earlier one
    "strip.png": Picture(
        f"render_multiview_images.py {_GENERATOR} --seeds 4 5 15 1 "
        "--yaws 0 0.785 1.571 2.356 3.142 3.927 4.712 5.498 --image_size 96",
        "sheet.png",
    ),
    "interpolation.webp": Picture(
        f"render_video_interpolation.py {_GENERATOR} --seeds 4 5 15 1 --trajectory orbit "
        "--num_frames 18 --fps 15 --image_size 128 --format webp",
        "interp.webp",
    ),
    "multiview.png": Picture(
        f"render_multiview_images.py {_GENERATOR} --seeds 15 --depth_map --image_size 128",
        "grid_15.png",
    ),
    "video.webp": Picture(
        f"render_video.py {_GENERATOR} --seeds 16 --trajectory orbit --depth_map "
        "--num_frames 24 --fps 15 --image_size 128 --format webp",
        "16.webp",
    ),
    "shape.png": Picture(f"extract_shapes.py {_GENERATOR} --seed 15 --format glb", "15.png"),
    "photo.png": Picture(
        "fid_evaluation.py --dataset ToyCars --img_size 64 --num_imgs 2", "00001.png"
    ),
    "fit.png": Picture(
        f"inverse_render.py {_GENERATOR} assets/photo.png --fit_size 64 --num_frames 2 "
        "--image_size 64",
        "fit.png",
    ),
    "normals.png": Picture(
        f"viewer.py {_GENERATOR} --save_picture --seed 1 --show normals --yaw 2.2 --pitch 1.1",
        "1_normals.png",
    ),
    "consistency.png": Picture(_CONSISTENCY, "consistency.png"),
    "demo/metrics.json": Picture(_CONSISTENCY, "metrics.json"),
    "run.png": Picture("plot_run.py assets/demo", "run.png"),
}
BY_HAND = ("viewer.png",)  # a browser's window, which no command can show


def build_parser() -> flags.ArgumentParser:
    """All flags of this command."""
    parser = flags.ArgumentParser(description="Rebuild the pictures of the documents.")
    add = parser.add_argument
    add("pictures", nargs="*", metavar="PICTURE", help=f"of {', '.join(PICTURES)}; default: all")
    add("--run", type=Path, help=f"take the generator of this run into {DEMO} first")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Take over a run where one is given, render, and remember what was made of what."""
    args = build_parser().parse_args(argv)
    for name in args.pictures:
        choose("picture", name, PICTURES)
    if args.run is not None:
        if args.pictures:
            raise UsageError("--run: all pictures change with the run; name none")
        take_over(args.run)
    if not (DEMO / NETWORKS[0]).is_file():
        raise UsageError(f"no {DEMO / NETWORKS[0]} here; start in the repository's root")
    names = args.pictures or list(PICTURES)
    manifest = json.loads(MANIFEST.read_text("utf-8")) if MANIFEST.is_file() else {}
    for name, content in render(names):
        _write(ASSETS / name, content)
        manifest[name] = {
            "command": PICTURES[name].command,
            "made_from": hash_of_demo(),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        print(ASSETS / name, flush=True)
    manifest = {name: manifest[name] for name in PICTURES if name in manifest}
    _write(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    _write(DEMO / "README.md", about_demo().encode())
    return 0


def render(names: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    """Names and bytes of pictures, each rendered into a folder that goes away."""
    made: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            command, file = PICTURES[name]
            if command not in made:
                made[command] = Path(scratch) / str(len(made))
                _run(command, made[command])
            yield name, (made[command] / file).read_bytes()


def _run(command: str, folder: Path) -> None:
    """Do what a command line says, with folder in place of where it would write."""
    module, *words = shlex.split(command)
    target = ["--output", str(folder / "run.png")]
    if module != "plot_run.py":
        target = ["--output_dir", str(folder)]
    code = importlib.import_module(module.removesuffix(".py")).main([*words, *target])
    if code:
        raise RuntimeError(f"{command}: exit code {code}")


def hash_of_demo() -> str:
    """One hash of everything in assets/demo that was taken from a run."""
    digest = hashlib.sha256()
    for name in sorted(TAKEN):
        digest.update(name.encode())
        digest.update(hashlib.sha256((DEMO / name).read_bytes()).digest())
    return digest.hexdigest()


def take_over(run: Path) -> None:
    """Copy a run's networks, log and last previews into assets/demo, and what it was made with.

    Raises:
        UsageError: run is no whole run.
    """
    for name in NETWORKS:
        checkpoints.load_generator(run / name, ema="none")  # or one line about what is wrong
    previews = sorted(run.glob(f"*{PREVIEW_ENDING}"))
    wanted = [*(run / name for name in (*RECORDS, OPTIONS)), *(previews[-1:] or [run / PREVIEW])]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise UsageError(f"--run {run}: there is no {missing[0].name} in it")
    options = json.loads((run / OPTIONS).read_text("utf-8"))
    for name in (*NETWORKS, *RECORDS):
        _write(DEMO / name, (run / name).read_bytes())
    _write(DEMO / PREVIEW, previews[-1].read_bytes())
    # Without the command, whose paths mean nothing elsewhere.
    kept = {key: options[key] for key in KEPT_OPTIONS if key in options}
    _write(DEMO / OPTIONS, (json.dumps(kept, indent=1) + "\n").encode())


def about_demo() -> str:
    """The text beside the generator: where it is from, and its figures."""
    saved = checkpoints.load_generator(DEMO / NETWORKS[0])
    options = json.loads((DEMO / OPTIONS).read_text("utf-8"))
    lines = (DEMO / "log.jsonl").read_text("utf-8").splitlines()
    steps = [entry for entry in map(json.loads, lines) if "seconds_per_step" in entry]
    gaps = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *steps], steps, strict=False)]
    seconds = sum(g * e["seconds_per_step"] for g, e in zip(gaps, steps, strict=True))
    metrics = json.loads((DEMO / "metrics.json").read_text("utf-8"))
    mean = metrics["consistency"]["mean"]
    size = sum((DEMO / name).stat().st_size for name in NETWORKS)
    rows: dict[str, Any] = {
        "curriculum": options["curriculum_name"],
        "seed": options["seed"],
        "steps": saved.step,
        "device": f"{options['device']}, {options['processes']} process(es)",
        "training steps took": f"{seconds / 60:.0f} minutes",
        "most memory": f"{max(e['memory_bytes'] for e in steps) / 2**30:.2f} GiB",
        "PyTorch": options["versions"]["torch"],
        "parameters": f"{sum(p.numel() for p in saved.generator.parameters()):,}",
        "both files": f"{size / 1000:.0f} KB",
        "reprojection PSNR": f"{mean['psnr_db']:.1f} dB",
        "depths that agree": f"{mean['depth_agreement']:.1f} %",
        "half-transparent rays": f"{mean['half_transparent']:.1f} %",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "# The trained generator\n\n"
        "`generator.pth` and its average `ema.pth` (decay 0.999), as `make demo` leaves them:\n"
        "`train.py --curriculum Demo`, on two processor cores in two processes of half a batch "
        "each.\n`options.json` holds the curriculum as it was trained, `log.jsonl` the run's log, "
        "`previews.png` its last previews.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "The last three are means of `metrics.json`, which this command writes:\n\n"
        f"    python {_CONSISTENCY}\n\n"
        "`make assets RUN=runs/demo` replaces all of this by the networks of another run.\n"
    )


def _write(path: Path, content: bytes) -> None:
    with replaced(path) as file:
        file.write(content)


if __name__ == "__main__":
    sys.exit(flags.run(main))
