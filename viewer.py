"""View generated objects from all sides in the browser.

    python viewer.py out/generator.pth

Prints the address of the page. With --save_picture it instead writes one picture into --output_dir;
the page shows the command line that writes its current picture.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkpoint_io.checkpoints import SavedGenerator
from generators.trajectories import Camera
from rendering import viewing
from system import flags
from system.errors import UsageError
from system.files import output_folder
from web_viewer import address
from web_viewer.checkpoints import Checkpoints
from web_viewer.pictures import save_picture
from web_viewer.request import Request, add_request, from_args

EXTRA = "requirements.txt"


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="View generated objects in the browser.")
    viewing.add_generator(parser)
    add_request(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; the default serves this "
        "machine only, 0.0.0.0 the whole network")  # fmt: skip
    add("--port", type=flags.port_number, help=f"default: {address.DEFAULT_PORTS[0]}, or "
        "the next one that is free; 0 takes any free one")  # fmt: skip
    add("--output_dir", type=Path, default=Path("views"), help="the only folder to which the page "
        "saves")  # fmt: skip
    add("--save_picture", action="store_true", help="write the picture and open no page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write a picture, or serve pages until Ctrl-C."""
    args = build_parser().parse_args(argv)
    saved = viewing.open_generator(args)
    fits = viewing.fitted_objects(saved, args.fit)
    source = Checkpoints(
        args.generator,
        device=flags.resolve_device(args.device),
        curriculum=saved.curriculum if args.curriculum or args.curriculum_file else None,
        fits={shown.name: path for shown, path in zip(fits, args.fit, strict=True)},
        precision=args.precision,
        max_points=saved.generator.points_per_chunk,
    )
    request = from_args(args, saved, source.newest, fits)
    if args.save_picture:
        print(save_picture(source, request, args.output_dir, lambda _: None))
        return 0
    _serve(source, request, saved, {shown.name: shown.camera for shown in fits}, args)
    return 0


def _serve(
    source: Checkpoints,
    request: Request,
    saved: SavedGenerator,
    fit_cameras: dict[str, Camera],
    args: argparse.Namespace,
) -> None:
    """Serve pages until Ctrl-C."""
    try:
        from web_viewer.page import PoseMap, Server  # here: --save_picture does not need viser
        from web_viewer.session import Shared
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the page needs {error.name}; install it with: pip install -r {EXTRA}"
        ) from error
    port = address.free_port(args.host, args.port)
    shared = Shared(
        source=source,
        start=request,
        usual=viewing.usual_camera(saved),
        fit_cameras=fit_cameras,
        output_dir=output_folder(args.output_dir),
        options=_repeated_options(args),
        saver=ThreadPoolExecutor(1, thread_name_prefix="saver"),
    )
    server = Server(shared, PoseMap(saved.curriculum.poses()), args.host, port)
    address.announce(args.host, server.port, os.environ)
    try:
        while True:
            time.sleep(3600)
    finally:
        server.stop()
        shared.saver.shutdown(wait=False, cancel_futures=True)


def _repeated_options(args: argparse.Namespace) -> list[str]:
    """Return flags of this command that a picture depends on and the page does not show."""
    words: list[str] = []
    defaults = {"curriculum": None, "curriculum_file": None, "device": "auto", "precision": "exact"}
    for name, default in defaults.items():
        value = getattr(args, name)
        if value != default:
            words += [f"--{name}", str(value)]
    return [*words, "--output_dir", str(args.output_dir)]


if __name__ == "__main__":
    sys.exit(flags.run(main))
