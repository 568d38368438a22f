"""Rebuild every picture of the documents with this project's own commands.

    python -m docs.gallery                  # all pictures, from the generator in assets/demo
    python -m docs.gallery strip.png        # only this picture
    python -m docs.gallery --run runs/demo  # first copy the generator of a run into assets/demo

assets/gallery.json contains for each picture its command and two hashes: of the files that it was
made from, and of the picture. A test fails if a picture is older than these files or its command.
"""

import hashlib
import importlib
import json
import shlex
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import curriculums
from checkpoint_io import checkpoints
from system import flags
from system.errors import UsageError, choose
from system.files import json_bytes, write_file

ASSETS = Path("assets")
DEMO = ASSETS / "demo"
MANIFEST = ASSETS / "gallery.json"
# Files that are copied from a run unchanged; its last preview and options.json are added.
NETWORKS = ("generator.pth", "ema.pth")
RECORDS = ("log.jsonl",)
PREVIEW, PREVIEW_ENDING = "previews.png", "_random.png"
OPTIONS = "options.json"
KEPT_OPTIONS = ("curriculum_name", "curriculum", "seed", "processes", "device", "field", "versions")
TAKEN = (*NETWORKS, *RECORDS, PREVIEW, OPTIONS)


class Picture(NamedTuple):
    """A file in assets: the command line that makes it, and the name of the file that it writes."""

    command: str
    made: str


_GENERATOR = "assets/demo/generator.pth"
_CONSISTENCY = f"eval_metrics.py {_GENERATOR} --consistency"
PICTURES: dict[str, Picture] = {  # in this order, because a later one may read an earlier one
    "strip.png": Picture(
        f"render_multiview_images.py {_GENERATOR} --seeds 4 2 15 1 "
        "--yaws 0 0.785 1.571 2.356 3.142 3.927 4.712 5.498 --image_size 96",
        "sheet.png",
    ),
    "interpolation.webp": Picture(
        f"render_video_interpolation.py {_GENERATOR} --seeds 4 2 15 1 --trajectory orbit "
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
        f"inverse_render.py {_GENERATOR} assets/photo.png --fit_size 64 --tune 200 "
        "--num_frames 2 --image_size 64",
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
# A screenshot of a browser, and pictures from a run of docs/own_photos.md.
BY_HAND = ("viewer.png", "own_prepared.png", "own_previews.png")


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Rebuild the pictures of the documents.")
    add = parser.add_argument
    add("pictures", nargs="*", metavar="PICTURE", help=f"of {', '.join(PICTURES)}; default: all")
    add("--run", type=Path, help=f"first copy the generator of this run into {DEMO}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Copy the generator of --run if it is given, render the pictures, and write the manifest."""
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
        write_file(ASSETS / name, content)
        manifest[name] = {
            "command": PICTURES[name].command,
            "made_from": hash_of_demo(),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        print(ASSETS / name, flush=True)
    manifest = {name: manifest[name] for name in PICTURES if name in manifest}
    write_file(MANIFEST, json_bytes(manifest, indent=1) + b"\n")
    write_file(DEMO / "README.md", about_demo().encode())
    return 0


def render(names: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    """Render pictures in a temporary folder; yields their names and bytes."""
    made: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            command, file = PICTURES[name]
            if command not in made:
                made[command] = Path(scratch) / str(len(made))
                _run(command, made[command])
            yield name, (made[command] / file).read_bytes()


def _run(command: str, folder: Path) -> None:
    """Run a command line that writes into folder."""
    module, *words = shlex.split(command)
    words += ["--output_dir", str(folder)]
    if module == "plot_run.py":
        words[-2:] = ["--output", str(folder / "run.png")]
    if code := importlib.import_module(module.removesuffix(".py")).main(words):
        raise RuntimeError(f"{command}: exit code {code}")


def hash_of_demo() -> str:
    """Return one hash of all files in assets/demo that were copied from a run."""
    digest = hashlib.sha256()
    for name in sorted(TAKEN):
        digest.update(name.encode())
        digest.update(hashlib.sha256((DEMO / name).read_bytes()).digest())
    return digest.hexdigest()


def take_over(run: Path) -> None:
    """Copy a run's networks, log, last preview, options into assets/demo; UsageError if damaged."""
    for name in NETWORKS:
        checkpoints.load_generator(run / name, ema="none")  # raises UsageError if it is damaged
    previews = sorted(run.glob(f"*{PREVIEW_ENDING}"))
    wanted = [*(run / name for name in (*RECORDS, OPTIONS)), *(previews[-1:] or [run / PREVIEW])]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise UsageError(f"--run {run}: {missing[0].name} is missing")
    options = json.loads((run / OPTIONS).read_text("utf-8"))
    for name in (*NETWORKS, *RECORDS):
        write_file(DEMO / name, (run / name).read_bytes())
    write_file(DEMO / PREVIEW, previews[-1].read_bytes())
    # Without the command line, whose paths belong to another machine.
    kept = {key: options[key] for key in KEPT_OPTIONS if key in options}
    write_file(DEMO / OPTIONS, json_bytes(kept, indent=1) + b"\n")


def _changed(saved: checkpoints.SavedGenerator, name: str) -> str:
    """Return flags for what the preset of that name says otherwise since the training."""
    then, now = (asdict(part.settings) for part in (saved.curriculum, curriculums.load(name)))
    return "".join(f" --set {key}={then[key]}" for key in then if then[key] != now[key])


def about_demo() -> str:
    """Return the text of assets/demo/README.md: the generator's training and its figures."""
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
        "views with islands": f"{mean['islands']:.1f} %",
        "normals of neighbors": f"{mean['normal_angle']:.1f} degrees",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "# The included generator\n\n"
        "This command trained `generator.pth` and its averaged weights `ema.pth` (decay 0.999):\n\n"
        f"    python train.py --curriculum {options['curriculum_name']} --seed {options['seed']} "
        f"--num_processes {options['processes']} --output_dir runs/demo"
        f"{_changed(saved, options['curriculum_name'])}\n\n"
        "`options.json` contains the curriculum, `log.jsonl` is the log of the run, and "
        "`previews.png` is its last preview.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "The last five figures are means from `metrics.json`, which this command writes:\n\n"
        f"    python {_CONSISTENCY}\n\n"
        "`make assets RUN=runs/demo` replaces these files by those of another run.\n"
    )


if __name__ == "__main__":
    sys.exit(flags.run(main))
