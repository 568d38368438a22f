"""Find upright or tilted faces in photos, with a cascade of local binary patterns.

A cascade answers for each window of a photo whether it holds a face (Viola and Jones 2001; local
binary patterns: Liao et al. 2007). A true face is found in many windows that differ little in
place, size and angle; how many is the certainty.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade

from image_io.placing import Square
from system.errors import UsageError

SEARCH_SIZE = 200  # pixels of the longer side that is searched
MIN_WINDOW = 24  # pixels there: the window of the frontal cascade
SCALE_STEP = 1.1
TILTS = ((0,), (-20, 20))  # degrees that are searched; the later ones if the first show no face
# Pixels between windows: two take a quarter of the time of one; one is tried if two show no face.
STEPS = (2, 1)
MIN_WINDOWS, MAX_CANDIDATES = 3, 6  # of a candidate in the search; candidates that are looked at
PART = 0.7  # of a face's width: a narrower window may be a part of the face, such as its mouth
FINE_TILTS = (-18, 0, 18, -36, -27, -9, 9, 27, 36)  # degrees around a candidate's tilt
FIRST_TILTS, FIRST_WINDOWS = 3, 4  # a candidate with fewer windows at the first tilts is no face
FINE_WINDOW, FINE_SIZE = 32, 77  # pixels of the face and of the square around it
FINE_REACH = 0.45 * FINE_WINDOW  # pixels that a window's centre may be away from the candidate's
FINE_RANGES = ((24, 32), (35, 48))  # widths of windows, whose squares are as small as they may be
CERTAIN = 20  # windows of a face over all fine tilts; 3 of 160 photos without one have as many
# Part of a cascade's window in the square that CelebA's curriculum shows: the side's share, and how
# far below the middle its centre is (medians of renders with CelebA's cameras: 0.663 and 0.030;
# from the eyes' places in CelebA's aligned pictures: 0.667).
WINDOW_SHARE, WINDOW_BELOW = 0.663, 0.03


class _Window(NamedTuple):
    x: float  # of the centre
    y: float
    width: float
    tilt: float  # degrees clockwise
    hits: int = 1  # windows of one face


def open_cascade(path: Path | None) -> Cascade:
    """Read a cascade in OpenCV's XML format; None is scikit-image's for frontal faces.

    Raises:
        UsageError: it is no such file.
    """
    name = str(path) if path is not None else lbp_frontal_face_cascade_filename()
    try:
        return Cascade(name)
    except Exception as error:  # its reader of XML fails in many ways
        raise UsageError(f"--cascade {name}: no cascade of local binary patterns") from error


def find_faces(image: Image.Image, cascade: Cascade) -> list[Square]:
    """Return upright squares around the faces of a photo, the most certain first.

    A square shows as much around the face as CelebA's curriculum does. Faces narrower than about an
    eighth of the photo's longer side are not found, nor those tilted by more than about 45 degrees.
    The search ends where it shows any face: windows at every second pixel show 84 % of the faces
    that windows at every pixel show, so others beside it may be missed.
    """
    scale = min(1.0, SEARCH_SIZE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    grey = image.convert("L").resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    for step in STEPS:
        for tilts in TILTS:
            faces: list[_Window] = []
            for candidate in _candidates(grey, cascade, tilts, step):
                if all(_distance(candidate, face) > 0.6 * face.width for face in faces):
                    looked_at = _refined(grey, candidate, cascade)
                    faces += [looked_at] if looked_at.hits >= CERTAIN else []
            if faces:
                return [_square(face, scale) for face in sorted(faces, key=lambda face: -face.hits)]
    return []


def _square(face: _Window, scale: float) -> Square:
    """Return the square around a face in the photo, of which the searched one is scale as large."""
    side = face.width / WINDOW_SHARE
    turn, up = math.radians(face.tilt), WINDOW_BELOW * side
    x, y = face.x + math.sin(turn) * up, face.y - math.cos(turn) * up
    return Square(x=x / scale, y=y / scale, side=side / scale, angle=face.tilt)


def _candidates(
    grey: Image.Image, cascade: Cascade, tilts: Sequence[int], step: int
) -> list[_Window]:
    """Search a grey photo at some tilts; return groups of windows, the largest first.

    step is that between windows in pixels.
    """
    groups: list[_Window] = []
    ground = round(float(np.median(np.asarray(grey))))
    for tilt in tilts:
        turned = grey.rotate(tilt, Image.Resampling.BILINEAR, fillcolor=ground)
        for group in _groups(_windows(turned, cascade, MIN_WINDOW, max(grey.size), step)):
            x, y = _turned(group.x - grey.width / 2, group.y - grey.height / 2, tilt)
            groups.append(
                group._replace(x=x + grey.width / 2, y=y + grey.height / 2, tilt=float(tilt))
            )
    groups = [group for group in groups if group.hits >= MIN_WINDOWS]
    whole = [one for one in groups if not any(_is_within(one, other) for other in groups)]
    return sorted(whole, key=lambda group: -group.hits)[:MAX_CANDIDATES]


def _is_within(one: _Window, other: _Window) -> bool:
    """Return whether one is a part of a face that other may be, such as its mouth."""
    return one.width < PART * other.width and _distance(one, other) < 0.5 * other.width


def _windows(
    grey: Image.Image, cascade: Cascade, least: int, most: int, step: int = 1
) -> NDArray[np.float64]:
    """Return centre and width (N, 3) of all windows in which the cascade sees a face.

    least and most are widths of windows; step is that between the smallest ones, in pixels.
    """
    boxes = cascade.detect_multi_scale(
        np.asarray(grey, dtype=np.float64) / 255,
        scale_factor=SCALE_STEP,
        step_ratio=step,
        min_size=(least, least),
        max_size=(most, most),
        min_neighbor_number=1,
        intersection_score_threshold=2.0,  # never reached: each window stays alone
    )
    sides = [(box["c"], box["r"], box["width"]) for box in boxes]
    left, top, width = np.array(sides, dtype=np.float64).reshape(-1, 3).T
    return np.stack([left + width / 2, top + width / 2, width], axis=-1)


def _groups(windows: NDArray[np.float64]) -> list[_Window]:
    """Join windows that differ little from the one with the most neighbours, and so on.

    The others around it are dropped, except those so large that it may be a part of their face.
    """
    groups = []
    while len(windows):
        x, y, width = windows.T
        distance = np.hypot(x[:, None] - x, y[:, None] - y)
        ratio = np.abs(np.log(width[:, None] / width))
        near = (distance < 0.3 * width[:, None]) & (ratio < 0.35)
        best = int(near.sum(1).argmax())
        x_mean, y_mean, mean_width = windows[near[best]].mean(0)
        groups.append(_Window(x_mean, y_mean, mean_width, tilt=0.0, hits=int(near[best].sum())))
        is_elsewhere = distance[best] >= 0.6 * width[best]
        windows = windows[~near[best] & (is_elsewhere | (width > mean_width / PART))]
    return groups


def _refined(grey: Image.Image, candidate: _Window, cascade: Cascade) -> _Window:
    """Look at a candidate at fine tilts; return its place, size, tilt and number of windows."""
    step = candidate.width / FINE_WINDOW
    seen: list[tuple[float, float, float, float]] = []
    counts: dict[int, int] = {}
    for offset in FINE_TILTS:
        if len(counts) == FIRST_TILTS and len(seen) < FIRST_WINDOWS:
            return candidate._replace(hits=0)
        tilt = candidate.tilt + offset
        cos, sin = step * math.cos(math.radians(tilt)), step * math.sin(math.radians(tilt))
        half = FINE_SIZE / 2
        matrix = (
            *(cos, -sin, candidate.x - half * (cos - sin)),
            *(sin, cos, candidate.y - half * (sin + cos)),
        )
        view = grey.transform(
            (FINE_SIZE, FINE_SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        parts = [np.empty((0, 3))]
        for least, most in FINE_RANGES:
            border = max(0, math.floor(half - FINE_REACH - most / 2))
            part = view.crop((border, border, FINE_SIZE - border, FINE_SIZE - border))
            parts.append(_windows(part, cascade, least, most) + (border, border, 0))
        windows = np.concatenate(parts) - (half, half, 0)
        windows = windows[np.hypot(windows[:, 0], windows[:, 1]) < FINE_REACH]
        counts[offset] = len(windows)
        for right, down, width in windows:
            x, y = _turned(right * step, down * step, tilt)
            seen.append((candidate.x + x, candidate.y + y, width * step, tilt))
    tilts = sorted(counts)
    best = tilts[np.convolve([counts[tilt] for tilt in tilts], (1, 2, 1), "same").argmax()]
    near = np.array([window for window in seen if abs(window[3] - candidate.tilt - best) <= 2 * 9])
    x, y, width = np.median(near[:, :3], axis=0)
    return _Window(x, y, width, tilt=float(near[:, 3].mean()), hits=len(seen))


def _turned(right: float, down: float, degrees: float) -> tuple[float, float]:
    """Turn an offset clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos * right - sin * down, sin * right + cos * down


def _distance(one: _Window, other: _Window) -> float:
    return math.hypot(one.x - other.x, one.y - other.y)
