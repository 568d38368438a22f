"""The picture that a visitor of the viewer requests; converts flags to requests and back.

A value is checked once, where it is typed: READERS are the types of the flags and of the fields of
the page, and camera_from keeps the page's camera within what can be shown.
"""

import argparse
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from checkpoint_io.checkpoints import Average, SavedGenerator
from generators.cameras import POLE_MARGIN
from generators.trajectories import Camera, SceneObject
from generators.volumetric_rendering import RenderOptions
from rendering import viewing
from system import flags
from system.errors import UsageError

Show = Literal["color", "depth", "normals", "opacity"]
SHOWS: tuple[Show, ...] = get_args(Show)
NARROWEST, WIDEST = 1.0, 120.0  # angle of view, degrees
MAX_SIZE, MAX_STEPS = 1024, 512
MAX_YAW = 1e6  # radians
MAX_ASPECT = 4.0  # of a longer side to a shorter one
PLAIN_FLAGS = (  # named as the fields of a Request, with the same values
    *("seed", "to_seed", "mix", "psi", "show"),
    *("lock_view_dependence", "image_size", "aspect"),
)
MAX_SHIFT = 0.5  # scene units from the origin to the target, on each axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything a picture depends on apart from the files.

    checkpoint: its name in the picker. fit: the name of a fitted object that takes the place of
    seed, or "". to_seed: the seed at the other end of an interpolation, of which mix is the share.
    num_steps: samples per ray, coarse; as many fine ones follow. image_size: pixels of the shorter
    side. aspect: width over height.
    """

    checkpoint: str
    ema: Average
    camera: Camera
    num_steps: int
    seed: int = 0
    fit: str = ""
    to_seed: int | None = None
    mix: float = 0.0
    psi: float = 0.7
    show: Show = "color"
    lock_view_dependence: bool = False
    image_size: int = 256
    aspect: float = 1.0

    def shape(self, image_size: int) -> tuple[int, int]:
        """Return (H, W) of the picture whose shorter side has image_size pixels."""
        longer = round(image_size * max(self.aspect, 1 / self.aspect))
        return (image_size, longer) if self.aspect >= 1 else (longer, image_size)

    def object_name(self) -> str:
        """Return the name of the object that is shown, for file names."""
        if self.fit:
            return self.fit
        return str(self.seed) if self.to_seed is None else f"{self.seed}_to_{self.to_seed}"


def camera_from(place: Sequence[float], target: Sequence[float], usual_fov: float) -> Camera:
    """Convert a page's camera at place to one at distance 1 from target that shows the same.

    A page's camera zooms by coming nearer. Ours keeps the distance of training and narrows its
    angle of view so that the target is as large: tan(fov / 2) is proportional to the distance. What
    lies beyond the limits of the flags is moved to them. Raises UsageError if place and target are
    one point, or not finite.
    """
    if not all(map(math.isfinite, [*place, *target])):
        raise UsageError("the camera must stand somewhere")
    offset = [a - b for a, b in zip(place, target, strict=True)]
    distance = math.hypot(*offset)
    if distance == 0:
        raise UsageError("the camera cannot stand on what it looks at")
    x, y, z = (part / distance for part in offset)
    shift = [min(MAX_SHIFT, max(-MAX_SHIFT, part)) for part in target]
    half = math.atan(distance * math.tan(math.radians(usual_fov) / 2))
    return Camera(
        pitch=min(math.pi - POLE_MARGIN, max(POLE_MARGIN, math.acos(min(1.0, max(-1.0, y))))),
        yaw=math.atan2(z, x),
        fov_degrees=min(WIDEST, max(NARROWEST, 2 * math.degrees(half))),
        target=(shift[0], shift[1], shift[2]),
    )


def distance_of(camera: Camera, usual_fov: float) -> float:
    """Return the distance from its target at which a page's camera shows the same as ours."""
    return math.tan(math.radians(camera.fov_degrees) / 2) / math.tan(math.radians(usual_fov) / 2)


def quick_steps(saved: SavedGenerator) -> int:
    """Return the samples per ray of coarse pictures: those of the curriculum's first stage."""
    return saved.curriculum.stage_settings(0).num_steps


def render_options(saved: SavedGenerator, request: Request, num_steps: int) -> RenderOptions:
    """Return the options of the request; near and far move with the camera's distance."""
    curriculum, is_locked = saved.curriculum, request.lock_view_dependence
    usual = curriculum.preview_render(saved.last_step, request.image_size, is_locked=is_locked)
    moved = request.camera.distance() - 1
    return replace(
        usual,
        fov_degrees=request.camera.fov_degrees,
        near=max(0.0, usual.near + moved),
        far=usual.far + moved,
        num_steps=num_steps,
    )


def _show(text: str) -> str:
    if text not in SHOWS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SHOWS)}")
    return text


READERS: dict[str, Callable[[str], Any]] = {
    "seed": flags.non_negative_int,
    "to_seed": flags.non_negative_int,
    "mix": flags.fraction,
    "psi": flags.fraction,
    "show": _show,
    "num_steps": flags.whole(3, MAX_STEPS),
    "image_size": flags.whole(1, MAX_SIZE),
    "aspect": flags.number(1 / MAX_ASPECT, MAX_ASPECT),
    "pitch": flags.number(POLE_MARGIN, math.pi - POLE_MARGIN),
    "yaw": flags.number(-MAX_YAW, MAX_YAW),
    "fov": flags.number(NARROWEST, WIDEST),
    "target": flags.number(-MAX_SHIFT, MAX_SHIFT),
}


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the first picture, for from_args."""
    which = parser.add_mutually_exclusive_group()

    def add(name: str, **options: Any) -> None:
        group = which if name == "seed" else parser
        group.add_argument(f"--{name}", type=READERS[name], **options)

    add("seed", default=0, help="the object")
    add("to_seed", help="the object at the other end of an interpolation")
    add("mix", default=0.0, help="how far towards --to_seed")
    which.add_argument("--fit", type=Path, nargs="+", default=[], metavar="fit.pth", help="objects "
        "that inverse_render.py fitted to photos; the first is shown first")  # fmt: skip
    add("psi", default=0.7, help="truncation: 0 is the mean object, 1 is the full variety")
    add("show", default="color", metavar="|".join(SHOWS), help="kind of picture")
    add("num_steps", help="samples per ray, of which normals take twice as many; default: twice "
        "those of the curriculum's first stage")  # fmt: skip
    add("pitch", help="radians from straight above; default: the middle of the training cameras")
    add("yaw", help="radians around the object; default likewise")
    add("fov", help="angle of view in degrees; default likewise")
    add("target", nargs=3, default=[0.0, 0.0, 0.0], metavar=("X", "Y", "Z"),
        help="the point that the camera turns around")  # fmt: skip
    add("image_size", default=256, help="pixels of the shorter side of the finished picture")
    add("aspect", default=1.0, help="width over height of a saved picture; the page takes its "
        "window's")  # fmt: skip


def from_args(
    args: argparse.Namespace,
    saved: SavedGenerator,
    checkpoint: str,
    fits: list[SceneObject],
) -> Request:
    """Return the request of the flags of add_request; fits are the opened files of --fit."""
    shown = fits[0] if fits else None
    usual = viewing.usual_camera(saved) if shown is None else shown.camera
    pitch, yaw, fov = (
        own if given is None else given
        for given, own in zip((args.pitch, args.yaw, args.fov), usual[:3], strict=True)
    )
    return Request(
        checkpoint=checkpoint,
        ema=saved.average,
        camera=Camera(pitch, yaw, fov, tuple(args.target)),
        num_steps=args.num_steps or 2 * quick_steps(saved),
        fit=shown.name if shown else "",
        **{name: getattr(args, name) for name in PLAIN_FLAGS},
    )


def to_command_line(
    request: Request, *, generator: Path, fits: Mapping[str, Path], options: Sequence[str]
) -> str:
    """Return the command that writes the picture of request; options are further words of it."""
    words: list[object] = ["python", "viewer.py", generator, *options, "--ema", request.ema]
    if request.fit:
        words += ["--fit", fits[request.fit]]
    else:
        words += ["--seed", request.seed, "--psi", request.psi]
        if request.to_seed is not None:
            words += ["--to_seed", request.to_seed, "--mix", request.mix]
    pitch, yaw, fov, target = request.camera
    words += ["--pitch", pitch, "--yaw", yaw, "--fov", fov]
    words += ["--target", *target] if any(target) else []
    words += ["--show", request.show] if request.show != "color" else []
    words += ["--lock_view_dependence"] if request.lock_view_dependence else []
    words += ["--num_steps", request.num_steps, "--image_size", request.image_size]
    words += ["--aspect", request.aspect, "--save_picture"]
    return shlex.join(map(str, words))
