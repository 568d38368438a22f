"""Real images for evaluation: chosen from a dataset, written to a folder, read back.

The folder holds numbered images and `real_images.json`, which records how they were made. Folders
that the published script wrote (numbered jpg files and nothing else) are read too.

Legend: N images, H = W = image_size.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import DatasetOptions
from image_io import decoding
from image_io.decoding import Framing, Pixels, decode_all, decode_picture, read_picture
from image_io.files import (
    Listing,
    Skipped,
    describe_skipped,
    find_pictures,
    opened,
    printable,
)
from scenes.toy_car_images import toy_car_images
from system.errors import UsageError
from system.files import write_file
from system.outputs import OUTPUTS_FILE, list_outputs
from system.screen import progress_bar

Protocol = Literal["clean", "published"]
PROTOCOLS: tuple[Protocol, ...] = ("clean", "published")
JPEG_QUALITY = 75  # Pillow's default, with which the published script writes
FILE_FORMATS: dict[Protocol, str] = {"clean": "PNG", "published": f"JPEG quality {JPEG_QUALITY}"}
MANIFEST = "real_images.json"
CHOICE_SEED = 0  # of the choice of images and of the published protocol's mirror images
CHUNK = 64  # pictures between two updates of a progress bar


def suffix(protocol: Protocol) -> str:
    """Return the file name extension under a protocol."""
    return ".jpg" if protocol == "published" else ".png"


def encoded(pixels: Pixels, protocol: Protocol) -> bytes:
    """Encode an image (3, H, W) uint8 as a file: PNG, or JPEG as published."""
    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if protocol == "published":
        image.save(stream, format="JPEG", quality=JPEG_QUALITY)
    else:
        image.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def decoded(content: bytes) -> Tensor:
    """Decode the bytes of an image file to (3, H, W) uint8."""
    return torch.from_numpy(decode_picture(io.BytesIO(content)).copy())


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Choice of real images: at most count of a dataset, at one size, mirrored at random or not."""

    options: DatasetOptions
    image_size: int
    count: int
    is_flipped: bool = False

    def indices(self, available: int) -> list[int]:
        """Return the numbers of the chosen images among those available, always the same."""
        order = np.random.default_rng([CHOICE_SEED, available]).permutation(available)
        return [int(index) for index in order[: self.count]]


def chosen_images(
    choice: Choice, listing: Listing, *, skip: int = 0
) -> Iterator[list[Pixels | Skipped]]:
    """Yield the chosen images (3, H, W) uint8 in order, a few at a time, from number skip on."""
    options = choice.options
    # The published code shrinks CelebA's images after mirroring them, which takes other pixels.
    taken = decoding.rows_taken(choice.image_size)
    size = decoding.CELEBA_CROP if options.is_shrunk_last else choice.image_size
    wanted = choice.indices(listing.count)[skip:]
    coins = np.random.default_rng([CHOICE_SEED, listing.count, 1]).random(skip + len(wanted))
    number = skip
    for block in _unflipped(options, listing, wanted, size):
        turned: list[Pixels | Skipped] = []
        for item in block:
            is_mirrored = choice.is_flipped and options.flip and coins[number] < 0.5
            number += 1
            if is_mirrored and not isinstance(item, Skipped):
                item = np.ascontiguousarray(item[:, :, ::-1])
            if options.is_shrunk_last and not isinstance(item, Skipped):
                item = item[:, taken[:, None], taken]
            turned.append(item)
        yield turned


def _unflipped(
    options: DatasetOptions, listing: Listing, wanted: Sequence[int], size: int
) -> Iterator[list[Pixels | Skipped]]:
    if options.kind == "ToyCars":
        for start in range(0, len(wanted), CHUNK):
            part = wanted[start : start + CHUNK]
            yield list(toy_car_images(part, size, seed=options.seed).images.numpy())
        return
    framing = Framing(image_size=size, crop=options.crop, resize=options.resize)
    with opened(listing) as open_file:
        yield from decode_all(open_file, [listing.names[index] for index in wanted], framing)


def manifest(choice: Choice, listing: Listing, protocol: Protocol) -> dict[str, Any]:
    """Return the settings of the written images."""
    names = hashlib.sha256(json.dumps([listing.names, listing.stamps]).encode()).hexdigest()
    return {
        "protocol": protocol,
        "image_size": choice.image_size,
        "count": len(choice.indices(listing.count)),
        "of": listing.count,
        "dataset": {**asdict(choice.options), "listing": names},
        "is_flipped": choice.is_flipped and choice.options.flip,
        "file_format": FILE_FORMATS[protocol],
    }


def file_path(folder: Path, number: int, protocol: Protocol) -> Path:
    """Return the path of image number, named as by the published script."""
    return folder / f"{number:05d}{suffix(protocol)}"


def require_same(folder: Path, content: dict[str, Any]) -> None:
    """Check that images which folder holds already are made in the same way.

    Raises:
        UsageError: they are not, or the folder holds other files.
    """
    path = folder / MANIFEST
    if all(file.name in (MANIFEST, OUTPUTS_FILE) for file in folder.glob("*.*")):
        return  # an earlier try wrote no image
    if not path.is_file():
        raise UsageError(f"{folder} holds files that are not ours; give another --output_dir")
    if read_json(path) != json.loads(json.dumps(content)):
        raise UsageError(
            f"{folder} holds real images that were made in another way (see {MANIFEST}); "
            "give another --output_dir"
        )


def begin(folder: Path, content: dict[str, Any], paths: Sequence[Path]) -> None:
    """Record in folder how its images at paths are made, and that they are no photos."""
    write_file(folder / MANIFEST, json.dumps(content, indent=1).encode())
    list_outputs(folder, [path.name for path in paths])


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a dictionary; None if there is none that can be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RealSet:
    """A folder of real images, all of one square size.

    made: the settings of fid_evaluation.py; None if it did not write them.
    fingerprint: hash of the contents of the files and the decoder's version, not of their names.
    skipped: files of the folder that cannot be read; names has the others.
    left_out: one line about files of other kinds; empty if there are none, or if made is not None.
    """

    folder: Path
    names: tuple[str, ...]
    image_size: int
    made: dict[str, Any] | None
    fingerprint: str
    skipped: tuple[Skipped, ...]
    left_out: str

    def __len__(self) -> int:
        return len(self.names)

    def image(self, number: int) -> Tensor:
        """Read one image (3, H, W) uint8.

        Raises:
            UsageError: it is not a square of the size of the first.
        """
        path = self.folder / self.names[number]
        image = decoded(path.read_bytes())
        if tuple(image.shape[1:]) != (self.image_size,) * 2:
            raise UsageError(
                f"{path}: is {image.shape[2]} x {image.shape[1]} pixels, and all real images must "
                "be squares of one size; fid_evaluation.py writes them from a data set"
            )
        return image


def list_real_images(folder: Path) -> Listing:
    """List the images of a folder, whoever wrote them.

    Raises:
        UsageError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        hint = "; fid_evaluation.py writes real images from a data set"
        raise UsageError(f"--real_image_dir {folder}: is no folder{hint}")
    return find_pictures(str(folder), takes_outputs=True, flag="--real_image_dir ")


def open_real_set(folder: Path, cache_dir: Path) -> RealSet:
    """Open a folder of real images; files that cannot be read are left out.

    All are read the first time. cache_dir then keeps what was found under a hash of their names,
    sizes and times.

    Raises:
        UsageError: there is no such folder, or no image in it that can be read.
    """
    listing = list_real_images(folder)
    key = json.dumps([decoding.VERSION, str(folder.resolve()), listing.names, listing.stamps])
    path = cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    known = read_json(path)
    if known is None or "unreadable" not in known:
        known = _checked(listing)
        write_file(path, json.dumps(known).encode())
    unreadable = {name: Skipped(printable(name), reason) for name, reason in known["unreadable"]}
    skipped = (*listing.skipped, *unreadable.values())
    names = tuple(name for name in listing.names if name not in unreadable)
    if not names:
        total = listing.count + len(listing.skipped)
        raise UsageError(f"--real_image_dir: {describe_skipped(skipped, total, str(folder))}")
    made = read_json(folder / MANIFEST)
    return RealSet(
        folder=folder,
        names=names,
        image_size=read_picture(folder / names[0]).width,
        made=made,
        fingerprint=known["content"],
        skipped=skipped,
        left_out=listing.left_out if made is None else "",
    )


def _checked(listing: Listing) -> dict[str, Any]:
    """Read all pictures; return their fingerprint, and names and reasons of unreadable ones."""
    digest = hashlib.sha256(str(decoding.VERSION).encode())
    unreadable = []
    smallest = Framing(image_size=1, crop="none", resize="nearest")
    bar = progress_bar(listing.count, "image", "reading real images", is_left=False)
    with opened(listing) as open_file, bar:
        items = itertools.chain.from_iterable(decode_all(open_file, listing.names, smallest))
        for name, item in zip(listing.names, items, strict=True):
            bar.update()
            if isinstance(item, Skipped):
                unreadable.append((name, item.reason))
                continue
            with open_file(name) as file:
                digest.update(hashlib.sha256(file.read()).digest())
    return {"content": digest.hexdigest(), "unreadable": unreadable}
