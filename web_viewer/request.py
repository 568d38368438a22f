"""BOUNDARY: what a visitor of the viewer asks to see, from a command line and back to one.

The same flags open the page at a picture and write that picture without a page.
"""

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from checkpoint_io.checkpoints import Average, SavedGenerator
from generators.cameras import POLE_MARGIN, Poses, Rays, camera_origins, camera_rotations, rays_from
from generators.trajectories import SceneObject
from generators.volumetric_rendering import RenderOptions
from rendering import viewing
from system import flags
from system.errors import UsageError

Show = Literal["color", "depth", "normals", "opacity"]
SHOWS: tuple[Show, ...] = get_args(Show)
NARROWEST, WIDEST = 1.0, 120.0  # angle of view, degrees
MAX_SIZE, MAX_STEPS, MAX_SEED = 1024, 512, 2**63 - 1
MAX_ASPECT = 4.0  # of a longer side to a shorter one
PLAIN_FLAGS = (  # that have a Request's name and value
    *("seed", "to_seed", "mix", "psi", "show"),
    *("lock_view_dependence", "image_size", "aspect"),
)
MAX_SHIFT = 0.5  # scene units that what the camera looks at can lie off the origin, on each axis


class Eye(NamedTuple):
    """A camera at distance 1 from the point that it looks at.

    pitch, yaw: on which side of that point, radians. fov_degrees: of the picture's shorter side.
    target: the point, scene units; the origin is where training cameras look.
    """

    pitch: float
    yaw: float
    fov_degrees: float
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def placed(self) -> tuple[Tensor, Tensor]:
        """The place (1, 3) and the rotation (1, 3, 3) from camera to world."""
        pose = Poses(torch.tensor([self.pitch]), torch.tensor([self.yaw]))
        return camera_origins(pose) + torch.tensor([self.target]), camera_rotations(pose)

    def rays(self, shape: tuple[int, int]) -> Rays:
        """The rays of a picture of shape (H, W)."""
        return rays_from(*self.placed(), shape, self.fov_degrees)

    def distance(self) -> float:
        """How far before the camera the origin is, along its axis; 1 unless target moved it."""
        place, rotation = self.placed()
        return float((place * rotation[..., 2]).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that a picture depends on, but the files.

    checkpoint: its name in the picker. fit: the name of a fitted object that takes the place of
    seed, or "". to_seed: the seed at the other end of an interpolation, of which mix is the share.
    num_steps: samples per ray, coarse; as many fine ones follow. image_size: pixels of the shorter
    side. aspect: width over height.

    Raises:
        UsageError: a value cannot be shown; the text names its flag.
    """

    checkpoint: str
    ema: Average
    eye: Eye
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

    def __post_init__(self) -> None:
        eye = self.eye
        _within("seed", self.seed, 0, MAX_SEED)
        _within("to_seed", 0 if self.to_seed is None else self.to_seed, 0, MAX_SEED)
        _within("mix", self.mix, 0, 1)
        _within("psi", self.psi, 0, 1)
        _within("num_steps", self.num_steps, 3, MAX_STEPS)
        _within("image_size", self.image_size, 1, MAX_SIZE)
        _within("aspect", self.aspect, 1 / MAX_ASPECT, MAX_ASPECT)
        _within("pitch", eye.pitch, POLE_MARGIN, math.pi - POLE_MARGIN)
        _within("yaw", eye.yaw, -1e6, 1e6)
        _within("fov", eye.fov_degrees, NARROWEST, WIDEST)
        for coordinate in eye.target:
            _within("target", coordinate, -MAX_SHIFT, MAX_SHIFT)
        if self.show not in SHOWS:
            raise UsageError(f"--show {self.show}: choose one of {', '.join(SHOWS)}")

    def shape(self, image_size: int) -> tuple[int, int]:
        """(H, W) of the picture whose shorter side has so many pixels."""
        longer = round(image_size * max(self.aspect, 1 / self.aspect))
        return (image_size, longer) if self.aspect >= 1 else (longer, image_size)

    def object_name(self) -> str:
        """What is shown, fit for a file's name."""
        if self.fit:
            return self.fit
        return str(self.seed) if self.to_seed is None else f"{self.seed}_to_{self.to_seed}"


def _within(flag: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:  # written so that NaN is refused
        raise UsageError(f"--{flag} {value}: must be from {lowest:g} to {highest:g}")


def usual_eye(saved: SavedGenerator) -> Eye:
    """The middle of the training cameras."""
    pitch, yaw = saved.curriculum.poses().center()
    return Eye(pitch, yaw, saved.curriculum.settings.fov)


def quick_steps(saved: SavedGenerator) -> int:
    """Samples per ray of pictures that have to be quick: those of the curriculum's first stage."""
    return saved.curriculum.stage_settings(0).num_steps


def render_options(saved: SavedGenerator, request: Request, num_steps: int) -> RenderOptions:
    """How the request is rendered with so many samples per ray.

    Depths follow the camera where its distance to the origin is another than in training.
    """
    usual = saved.curriculum.preview_render(saved.step, request.image_size)
    moved = request.eye.distance() - 1
    return replace(
        usual,
        fov_degrees=request.eye.fov_degrees,
        near=max(0.0, usual.near + moved),
        far=usual.far + moved,
        num_steps=num_steps,
        lock_view_dependence=usual.lock_view_dependence or request.lock_view_dependence,
    )


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is shown first; for from_args."""
    which, add = parser.add_mutually_exclusive_group(), parser.add_argument
    which.add_argument("--seed", type=flags.non_negative_int, default=0, help="the object")
    add("--to_seed", type=flags.non_negative_int, help="the object at the other end of an "
        "interpolation")  # fmt: skip
    add("--mix", type=flags.fraction, default=0.0, help="how far towards --to_seed")
    which.add_argument("--fit", type=Path, nargs="+", default=[], metavar="fit.pth", help="objects "
        "that inverse_render.py fitted to photos; the first is shown first")  # fmt: skip
    add("--psi", type=flags.fraction, default=0.7, help="truncation: 0 is the mean object, 1 is "
        "the full variety")  # fmt: skip
    add("--show", choices=SHOWS, default="color")
    add("--num_steps", type=flags.positive_int, help="samples per ray; default: twice those of the "
        "curriculum's first stage")  # fmt: skip
    add("--pitch", type=flags.finite_float, help="radians from straight above; default: the middle "
        "of the training cameras")  # fmt: skip
    add("--yaw", type=flags.finite_float, help="radians around the object; likewise")
    add("--fov", type=flags.positive_float, help="angle of view in degrees; likewise")
    add("--target", type=flags.finite_float, nargs=3, default=[0.0, 0.0, 0.0],
        metavar=("X", "Y", "Z"), help="the point that the camera turns around")  # fmt: skip
    add("--image_size", type=flags.positive_int, default=256, help="pixels of the shorter side of "
        "the finished picture")  # fmt: skip
    add("--aspect", type=flags.positive_float, default=1.0, help="width over height of a saved "
        "picture; the page takes its window's")  # fmt: skip
    viewing.add_field_flags(parser)


def from_args(
    args: argparse.Namespace,
    saved: SavedGenerator,
    checkpoint: str,
    fits: list[SceneObject],
) -> Request:
    """What the flags of add_request ask for.

    Raises:
        UsageError: it cannot be shown.
    """
    shown = fits[0] if fits else None
    usual = usual_eye(saved) if shown is None else shown.camera
    pitch, yaw, fov = (
        own if given is None else given
        for given, own in zip((args.pitch, args.yaw, args.fov), usual[:3], strict=True)
    )
    return Request(
        checkpoint=checkpoint,
        ema=saved.average,
        eye=Eye(pitch, yaw, fov, tuple(args.target)),
        num_steps=args.num_steps or 2 * quick_steps(saved),
        fit=shown.name if shown else "",
        **{name: getattr(args, name) for name in PLAIN_FLAGS},
    )


def to_command_line(
    request: Request, *, generator: Path, fits: Mapping[str, Path], options: Sequence[str]
) -> str:
    """The command that writes the picture of request.

    Args:
        request: what is to be seen.
        generator: the file of its checkpoint.
        fits: the files of fitted objects by name.
        options: further words of the command line.
    """
    eye = request.eye
    words: list[object] = ["python", "viewer.py", generator, *options, "--ema", request.ema]
    if request.fit:
        words += ["--fit", fits[request.fit]]
    else:
        words += ["--seed", request.seed, "--psi", request.psi]
        if request.to_seed is not None:
            words += ["--to_seed", request.to_seed, "--mix", request.mix]
    words += ["--pitch", eye.pitch, "--yaw", eye.yaw, "--fov", eye.fov_degrees]
    if any(eye.target):
        words += ["--target", *eye.target]
    if request.show != "color":
        words += ["--show", request.show]
    if request.lock_view_dependence:
        words.append("--lock_view_dependence")
    words += ["--num_steps", request.num_steps, "--image_size", request.image_size]
    words += ["--aspect", request.aspect, "--save_picture"]
    return shlex.join(map(str, words))
