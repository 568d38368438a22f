"""Render a video that interpolates from object to object and back to the first.

    python render_video_interpolation.py out/generator.pth --seeds 0 1 2 3 --trajectory orbit

Writes vids/interp.mp4 with --num_frames from each object to the next, in which the camera completes
its path. The video loops without a jump.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import own_modules  # noqa: F401
from generators.trajectories import INTERPOLATION_TRAJECTORIES, Camera, SceneObject
from image_io import video
from rendering import filming, viewing
from system import flags
from system.errors import UsageError
from system.files import filled_folder


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Render a video that interpolates objects.")
    viewing.add_generator(parser)
    viewing.add_objects(parser, psi=0.7)
    filming.add_video(parser, INTERPOLATION_TRAJECTORIES)
    viewing.add_rendering(parser)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("vids"), help="folder of the videos"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Render the video."""
    args = build_parser().parse_args(argv)
    saved = viewing.open_generator(args)
    options = viewing.render_options(saved, args)
    objects = viewing.objects_to_show(saved, args)
    if len(objects) == 1:
        raise UsageError(
            f"{objects[0].name} is only one object, and an interpolation goes between several; "
            "render_video.py films one"
        )
    args.trajectory = args.trajectory or filming.usual_trajectory(saved)
    ways = filming.cameras(args, INTERPOLATION_TRAJECTORIES, [shown.camera for shown in objects])
    shots = morph(objects, ways)
    path = filming.destination(args, args.output_dir, "interp", len(shots))
    with filled_folder(args.output_dir), filming.progress(len(shots), options) as bar:
        frames = filming.frames(saved, shots, options, args, bar)
        video.save_video(path, frames, kind=args.format, fps=args.fps)
    print(path)
    return 0


def morph(objects: Sequence[SceneObject], ways: Sequence[Sequence[Camera]]) -> list[SceneObject]:
    """Return shots from each object to the next, and from the last to the first, linearly."""
    shots = []
    for index, (start, way) in enumerate(zip(objects, ways, strict=True)):
        end, end_way = objects[(index + 1) % len(objects)], ways[(index + 1) % len(objects)]
        for i, (camera, end_camera) in enumerate(zip(way, end_way, strict=True)):
            weight = i / len(way)
            film = start.film.lerp(end.film, weight)
            shots.append(SceneObject(start.name, film, camera.lerp(end_camera, weight)))
    return shots


if __name__ == "__main__":
    sys.exit(flags.run(main))
