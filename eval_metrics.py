"""Measure a generator: FID, KID, IS, precision and recall, and how consistent it is in 3D.

    python eval_metrics.py out/generator.pth --real_image_dir EvalImages/CelebA_real_images_128
    python eval_metrics.py out/generator.pth --consistency

Writes metrics.json, the generated images and consistency.png into --output_dir. Replaces files of
the same names and changes nothing else there.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import own_modules  # noqa: F401
from checkpoint_io.checkpoints import SavedGenerator
from distributed import processes
from distributed.processes import Place
from image_io import png
from image_io.files import describe_skipped
from metrics import features, inception, real_images, record, report, samples
from metrics.inception import NUM_FEATURES, NUM_LOGITS, Weights
from metrics.real_images import RealSet
from metrics.samples import SampleOptions
from rendering import viewing
from system import flags
from system.errors import UsageError
from system.files import output_folder, write_file
from system.outputs import list_outputs

MAX_IMAGES = 1_000_000  # their features take 8 GiB
LINES = (  # of the table: key in metrics.json, name, figures
    ("fid", "FID", "{fid:.2f}"),
    ("kid_mean", "KID x 100", "{kid_mean:.3f} +- {kid_std:.3f}"),
    ("is_mean", "IS", "{is_mean:.2f} +- {is_std:.2f}"),
    ("precision", "precision", "{precision:.3f}"),
    ("recall", "recall", "{recall:.3f}"),
)
CONSISTENCY_ROWS = (
    ("psnr_db", "reprojection PSNR, dB"),
    ("l1", "reprojection L1"),
    ("depth_error", "depth error, relative"),
    ("depth_agreement", "depths that agree, %"),
    ("compared", "pixels compared, %"),
    ("color_change", "color change by direction, L1"),
    ("half_transparent", "half-transparent rays, %"),
    ("islands", "views with islands, %"),
    ("normal_angle", "normals of neighbors, degrees"),
)


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Measure a saved generator.")
    viewing.add_generator(parser)
    add = parser.add_argument
    add("--real_image_dir", type=Path, help="square images of one size, as fid_evaluation.py "
        "writes them")  # fmt: skip
    add("--num_images", type=flags.whole(1, MAX_IMAGES), default=2048, help="images to generate")
    add("--protocol", choices=real_images.PROTOCOLS, default="clean", help="clean: png files, "
        "renders without randomness; published: jpg files, jittered samples")  # fmt: skip
    add("--consistency", action="store_true", help="measure 3D consistency")
    add("--num_objects", type=flags.whole(1, 100_000), default=16, help="of --consistency")
    add("--consistency_size", type=flags.pixels, default=128, help="pixels per side of the "
        "views of --consistency")  # fmt: skip
    add("--image_size", type=flags.pixels, help="pixels per side of generated images; "
        "default: that of the real ones")  # fmt: skip
    add("--supersampling", type=flags.whole(1, 8), help="render images at that many times the "
        "size, and average; default: 2 for --protocol clean if training took resize=points, as "
        "pictures are antialiased and renders are not; else 1")  # fmt: skip
    add("--psi", type=flags.fraction, default=1.0, help="truncation; published figures "
        "use 1")  # fmt: skip
    add("--seed", type=flags.non_negative_int, default=0, help="of latents and cameras")
    add("--output_dir", type=Path, default=Path("temp"), help="folder of metrics.json and of the "
        "generated images")  # fmt: skip
    add("--cache_dir", type=Path, default=Path("EvalImages/cache"), help="for features of real "
        "images")  # fmt: skip
    add("--inception_weights", type=Path, help="the network's file, if it cannot be downloaded")
    add("--any_inception_weights", action="store_true", help="accept weights other than the "
        "published ones; their figures cannot be compared")  # fmt: skip
    add("--num_processes", type=flags.positive_int, help="default: one per visible CUDA device")
    add("--port", type=flags.port_number, default=processes.ANY_PORT, help="rendezvous port "
        "of the processes; 0 is any free one")  # fmt: skip
    return parser


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The flags, the real images and the network's weights that main hands to all ranks."""

    args: argparse.Namespace
    real: RealSet
    weights: Weights


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the metrics that the flags choose."""
    args = build_parser().parse_args(argv)
    if args.real_image_dir is None and not args.consistency:
        raise UsageError("nothing to measure: give --real_image_dir, --consistency or both")
    saved = viewing.open_generator(args)
    if args.real_image_dir is not None:
        job = find_job(args)
        places = processes.plan(args.device, args.num_processes, os.environ)
        code = processes.launch(measure_images, job, places, port=args.port)
        if code or not places[0].is_main:
            return code
    if args.consistency:
        measure_consistency(saved, args)
    folder = args.output_dir
    print(f"in {folder}: metrics.json{' consistency.png' if args.consistency else ''}")
    return 0


def find_job(args: argparse.Namespace) -> Job:
    """Find the real images and the Inception network before any process starts.

    Raises:
        UsageError: one of them is missing, a library that evaluates them, or a second image.
    """
    real_images.list_real_images(args.real_image_dir)  # quick; reading them may take minutes
    weights = inception.find_weights(args.inception_weights, takes_any=args.any_inception_weights)
    inception.fidelity()
    real = real_images.open_real_set(args.real_image_dir, args.cache_dir)
    if real.left_out:
        print(real.left_out, file=sys.stderr)
    if real.skipped:
        total = len(real) + len(real.skipped)
        text = describe_skipped(real.skipped, total, str(args.real_image_dir))
        print(f"left out: {text}", file=sys.stderr)
    lacking = features.too_few(args.num_images, len(real))
    if lacking.keys() == features.LEAST.keys():
        reasons = "; ".join(f"{name} {reason}" for name, reason in lacking.items())
        raise UsageError(f"--num_images {args.num_images}, {len(real)} real images: {reasons}")
    return Job(args=args, real=real, weights=weights)


def measure_images(place: Place, job: Job) -> int:
    """Compute one rank's share of the image metrics; rank 0 writes and prints them."""
    args = job.args
    args.device = str(place.device)
    saved = viewing.open_generator(args)
    sampling = sampling_of(saved, args, args.image_size or job.real.image_size)
    network = inception.fidelity_network(job.weights, place.device)
    folder = output_folder(args.output_dir)  # only now, when all inputs are known to exist
    if place.is_main:  # the order of the names does not depend on the number of processes
        paths = [real_images.file_path(folder, i, args.protocol) for i in range(args.num_images)]
        list_outputs(folder, [path.name for path in paths])
    real = features.real_features(job.real, network, job.weights, args.cache_dir, place)
    generated = features.features_of(
        partial(_written_image, saved, sampling, args),
        args.num_images,
        network,
        NUM_FEATURES + NUM_LOGITS,
        place,
        title="generated images",
    )
    if generated is None or not place.is_main:
        return 0
    figures = features.image_metrics(generated, real)
    settings = {
        "protocol": args.protocol,
        "num_generated": args.num_images,
        **record.image_settings(job.real, job.weights, sampling, args.protocol),
        **features.metric_settings(args.num_images, len(job.real)),
    }
    _write(saved, args, {"images": {**figures, "settings": settings}})
    _print_images(figures, job)
    return 0


def _written_image(
    saved: SavedGenerator, sampling: SampleOptions, args: argparse.Namespace, number: int
) -> Tensor:
    """Write the image of a number to a file and return the decoded file, (3, H, W) uint8."""
    image = samples.sample_image(saved.generator, number, sampling)
    content = real_images.encoded(png.to_uint8(image).numpy(), args.protocol)
    path = real_images.file_path(args.output_dir, number, args.protocol)
    write_file(path, content, is_synced=False)  # there are thousands
    return real_images.decoded(content)


def measure_consistency(saved: SavedGenerator, args: argparse.Namespace) -> None:
    """Measure 3D consistency; write, plot and print it."""
    output_folder(args.output_dir)
    sampling = sampling_of(saved, args, args.consistency_size)
    found = report.measure(saved, sampling, args.num_objects)
    title = f"{saved.curriculum.name} at step {saved.step}"
    report.save_plot(args.output_dir / "consistency.png", found["by_yaw"], title)
    _print_consistency(found)
    _write(saved, args, {"consistency": found})


def sampling_of(saved: SavedGenerator, args: argparse.Namespace, size: int) -> SampleOptions:
    """Return the options of the images: the stage's samples per ray, the evaluation's cameras."""
    curriculum = saved.curriculum
    is_locked = args.lock_view_dependence
    render = curriculum.preview_render(saved.last_step, size, is_locked=is_locked)
    is_published = args.protocol == "published"
    is_sharp = curriculum.settings.resize == "points" and not is_published
    if is_published:
        render = replace(render, spreads_weights=False)
    return replace(
        SampleOptions.of(curriculum, render, seed=args.seed),
        psi=args.psi,
        mean=None if args.psi == 1 else viewing.mean_film(saved),
        is_jittered=is_published,
        supersampling=args.supersampling or (2 if is_sharp else 1),
    )


def _write(saved: SavedGenerator, args: argparse.Namespace, part: dict[str, Any]) -> None:
    about = record.about(saved, seed=args.seed, psi=args.psi)
    record.update(args.output_dir / "metrics.json", about, part)


def _print_images(figures: dict[str, float], job: Job) -> None:
    """Print the table of the image metrics, and warn if they cannot be compared."""
    args = job.args
    scaled = {key: value * (100 if "kid" in key else 1) for key, value in figures.items()}
    print(f"{args.num_images} generated against {len(job.real)} real images, "
          f"{args.protocol} protocol")  # fmt: skip
    for key, name, text in LINES:
        if key in figures:
            print(f"  {name:12} {text.format_map(scaled)}")
    for name, reason in features.too_few(args.num_images, len(job.real)).items():
        print(f"  {name} left out: {reason}")
    if not job.weights.is_official:
        print("  The network is not the published one: these figures cannot be compared.")
    made = job.real.made
    if made is not None and made.get("protocol") != args.protocol:
        print(f"  The real images were made by the {made.get('protocol')} protocol.")


def _print_consistency(found: dict[str, Any]) -> None:
    settings = found["settings"]
    angles = ", ".join(f"{offset:+g}" for offset in settings["yaw_offsets"])
    print(f"3D consistency of {settings['num_objects']} objects, turned by {angles} radians: mean")
    for name, text in CONSISTENCY_ROWS:
        value = found["mean"][name]
        print(f"  {text:32} {'-' if value is None else f'{value:.4g}'}")
    shape = found["shape"]
    print(f"  {'meshes':32} {shape['components']:.3g} components (the largest has "
          f"{shape['main_share']:.1%} of the area), {shape['holes']:.3g} holes, "
          f"{shape['seen_share']:.1%} of the surface seen by cameras")  # fmt: skip
    pose = found["pose"]
    if pose is not None:
        print(f"  {'pose head, degrees of error':32} pitch {pose['pitch_error_degrees']:.2f}, "
              f"yaw {pose['yaw_error_degrees']:.2f}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(flags.run(main))
