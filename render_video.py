"""Render a video of each object.

    python render_video.py out/generator.pth --seeds 0 1 2 3 --trajectory orbit

Writes vids/SEED.mp4 for each seed. The videos loop without a jump.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import own_modules  # noqa: F401
from generators.trajectories import TRAJECTORIES
from image_io import video
from rendering import filming, viewing
from system import flags
from system.files import filled_folder


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Render a video of each object.")
    viewing.add_generator(parser)
    viewing.add_objects(parser, psi=0.7)
    filming.add_video(parser, TRAJECTORIES)
    viewing.add_rendering(parser)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("vids"), help="folder of the videos"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Render one video after the other."""
    args = build_parser().parse_args(argv)
    saved = viewing.open_generator(args)
    options = viewing.render_options(saved, args)
    objects = viewing.objects_to_show(saved, args)
    usual = [shown.camera for shown in objects]
    args.trajectory = args.trajectory or filming.usual_trajectory(saved)
    ways = filming.cameras(args, TRAJECTORIES, usual)
    paths = [
        filming.destination(args, args.output_dir, shown.name, len(way))
        for shown, way in zip(objects, ways, strict=True)
    ]
    with (
        filled_folder(args.output_dir),
        filming.progress(sum(len(way) for way in ways), options) as bar,
    ):
        for shown, way, path in zip(objects, ways, paths, strict=True):
            shots = [shown.seen_from(camera) for camera in way]
            frames = filming.frames(saved, shots, options, args, bar)
            video.save_video(path, frames, kind=args.format, fps=args.fps)
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main))
