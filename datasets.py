"""Load pictures or built-in toy cars as training images (B, 3, H, W) in [-1, 1], cached as uint8.

    options = dataset_options("CelebA", "img_align_celeba")
    images = open_images(options, 64, cache_dir=..., skipped_file=..., show_progress=True)
    indices = batch_indices(len(images), seed=0, images_seen=0, batch_size=56, rank=0, world_size=1)
    real = training_images(images.batch(indices, rng=rng).to(device))

Legend: B images of a batch, N of the dataset, H = W = image_size.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import generators.cameras
import scenes
from config.schema import DatasetKind
from image_io import cache, decoding
from image_io.cache import Block, CacheEntry, cached
from image_io.decoding import Crop, Framing, Pixels, Resize, decode_all
from image_io.files import (
    HOW_TO_GIVE,
    Listing,
    Skipped,
    describe_skipped,
    find_pictures,
    opened,
    printable,
)
from image_io.fingerprint import fingerprint
from scenes.toy_car_images import toy_car_images
from system.errors import UsageError, choose
from system.files import write_file

KINDS: tuple[DatasetKind, ...] = get_args(DatasetKind)

# A run starts with so many unreadable files, whichever is more; but half of a set must be readable.
MAX_SKIPPED_PERCENT, MAX_SKIPPED_FILES = 1, 10
NUM_TOY_CARS = 4000
RENDERED_AT_ONCE = 64  # toy cars per step of the progress bar

_DEFAULTS: dict[str, tuple[Crop, bool]] = {  # crop, flip
    "CelebA": ("celeba", True),
    "Cats": ("none", True),
    "Carla": ("none", False),
    "Images": ("center", False),
    "ToyCars": ("none", False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """Options of a training set; dataset_options fills in the defaults of its kind.

    Attributes:
        kind: "ToyCars" is the built-in set, all others are pictures at path.
        path: folder, glob or .zip; None for "ToyCars".
        crop: "none", "center", "celeba" or source pixels, as in Framing.
        flip: mirror every other image at random while training.
        resize: "antialias"; "points" for images that are as jagged as renders; "nearest" for the
            published protocol.
        num_images: of "ToyCars".
        seed: of "ToyCars".

    Raises:
        UsageError: a value is not allowed.
    """

    kind: DatasetKind
    path: str | None
    crop: Crop = "none"
    flip: bool = False
    resize: Resize = "antialias"
    num_images: int = NUM_TOY_CARS
    seed: int = 0

    def __post_init__(self) -> None:
        is_number = isinstance(self.crop, int) and self.crop is not True and self.crop > 0
        if not is_number and self.crop not in ("none", "center", "celeba"):
            raise UsageError(
                f"crop {self.crop!r} is none of 'none', 'center', 'celeba' or a number of pixels"
            )
        if self.resize not in get_args(Resize):
            choices = "'antialias', 'points' and 'nearest'"
            raise UsageError(f"resize {self.resize!r} is none of {choices}")
        if self.num_images < 1:
            raise UsageError(f"num_images {self.num_images} is not 1 or more")

    @property
    def is_shrunk_last(self) -> bool:
        """Return whether mirrored images consist of other pixels, as in the published CelebA."""
        return self.crop == "celeba" and self.resize == "nearest"


def dataset_options(
    kind: str,
    path: str | None,
    *,
    crop: Crop | None = None,
    flip: bool | None = None,
    resize: Resize = "antialias",
    num_images: int = NUM_TOY_CARS,
    seed: int = 0,
) -> DatasetOptions:
    """Return the options of a dataset; None takes the default of its kind.

    CelebA crops a centred square of 0.8 of the shorter side and flips; Cats flips; Cats and Carla
    resize the whole picture to a square (as published; theirs are square); Images crops the
    largest centred square. "ToyCars" with a path reads the pictures there, like "Images".

    Raises:
        UsageError: kind is unknown or a value is not allowed.
    """
    if kind == "ToyCars" and path is not None:
        kind = "Images"
    default_crop, default_flip = choose("dataset", kind, _DEFAULTS)
    return DatasetOptions(
        kind=cast(DatasetKind, kind),  # choose has checked it
        path=path,
        crop=default_crop if crop is None else crop,
        flip=default_flip if flip is None else flip,
        resize=resize,
        num_images=num_images,
        seed=seed,
    )


def find_images(options: DatasetOptions) -> Listing:
    """List the images of the dataset, without decoding or rendering any.

    Raises:
        UsageError: no path is given, or it holds no pictures.
    """
    if options.kind == "ToyCars":
        names = tuple(f"toy car {index}" for index in range(options.num_images))
        return Listing(source="built-in toy cars", names=names, stamps=())
    if options.path is None:
        raise UsageError(
            f"dataset {options.kind} needs pictures; give --dataset_path {HOW_TO_GIVE}"
        )
    return find_pictures(options.path)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """A memory-mapped set of images for training.

    Attributes:
        pixels: (N, 3, H, W) uint8, read-only.
        options: the options that they were made with.
        skipped: files left out because they could not be read.
        fingerprint: changes with the files, the framing and the size.
        checksum: of all pixels; does not depend on the folder of the pictures.
        num_small: pictures with fewer pixels than the size or the crop needs.
        to_mirror: other pixels (N, 3, H, W) of the images, taken when they are mirrored. None where
            these are the same.
    """

    pixels: Pixels
    options: DatasetOptions
    skipped: tuple[Skipped, ...]
    fingerprint: str
    checksum: int
    num_small: int = 0
    to_mirror: Pixels | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_size(self) -> int:
        """Return the pixels per side."""
        return int(self.pixels.shape[-1])

    def batch(
        self, indices: NDArray[np.int64] | Tensor, *, rng: torch.Generator | None = None
    ) -> Tensor:
        """Return a fresh (B, 3, H, W) uint8 tensor on the CPU.

        Args:
            indices: (B,), in 0..N-1.
            rng: CPU stream that mirrors each image with probability 1/2 if the options say flip;
                None mirrors none.
        """
        chosen = np.asarray(indices)
        pixels = self.pixels[chosen]
        if rng is not None and self.options.flip:
            is_mirrored = (torch.rand(len(chosen), generator=rng) < 0.5).numpy()
            source = self.pixels if self.to_mirror is None else self.to_mirror
            pixels[is_mirrored] = source[chosen[is_mirrored], :, :, ::-1]
        return torch.from_numpy(pixels)

    def spread(self, most: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Return a batch of at most so many images, spread evenly over the set; rng as in batch."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), most)).astype(np.int64)
        return self.batch(chosen, rng=rng)


def open_images(
    options: DatasetOptions,
    image_size: int,
    *,
    cache_dir: Path,
    listing: Listing | None = None,
    skipped_file: Path | None = None,
    show_progress: bool = True,
    names_skipped: bool = True,
) -> ImageSet:
    """Return the dataset at one size; decode or render it if cache_dir does not hold it yet.

    Several processes may call at once: one decodes or renders, the others wait.

    Args:
        options: of the dataset.
        image_size: H = W.
        cache_dir: holds N * 3 * H * W bytes per size; runs and users may share it.
        listing: the result of find_images; None calls it.
        skipped_file: written with all unreadable files, if any, one per line with the reason. Give
            it to one process only.
        show_progress: show a bar on stderr.
        names_skipped: print there how many files were skipped, too, if show_progress.

    Raises:
        UsageError: no pictures, too many unreadable, or cache_dir cannot be written.
    """
    listing = listing or find_images(options)
    framings = _framings(options, image_size)
    entries = [
        _entry(options, listing, framing, cache_dir, skipped_file, show_progress)
        for framing in framings
    ]
    entry, to_mirror = entries[0], None
    if len(entries) == 2:
        if entries[1].skipped != entry.skipped:  # the disk failed in between
            raise UsageError(f"two readings of the pictures differ; delete '{cache_dir}'")
        to_mirror = entries[1].pixels
    skipped = listing.skipped + entry.skipped
    _report(skipped, listing, skipped_file, show_progress and names_skipped)
    return ImageSet(
        pixels=entry.pixels,
        options=options,
        skipped=skipped,
        fingerprint=_key(options, listing, framings[0], cache_dir),
        checksum=entry.checksum,
        num_small=entry.num_small,
        to_mirror=to_mirror,
    )


def _entry(
    options: DatasetOptions,
    listing: Listing,
    framing: Framing,
    cache_dir: Path,
    skipped_file: Path | None,
    show_progress: bool,
) -> CacheEntry:
    """Return the images in one framing from the cache; make them if it does not hold them."""
    small: list[str] = []
    return cached(
        cache_dir,
        _key(options, listing, framing, cache_dir),
        lambda: (
            _rendered(options, framing.image_size)
            if options.kind == "ToyCars"
            else _decoded(listing, framing, skipped_file, small)
        ),
        num_images=listing.count,
        image_size=framing.image_size,
        show_progress=show_progress,
        small=small,
        source=listing.source,
    )


def drop_unused_caches(
    options: DatasetOptions, image_sizes: Iterable[int], *, listing: Listing, cache_dir: Path
) -> str:
    """Remove what cache_dir holds of the dataset, except what a process or these sizes use.

    Returns one line that says what was removed.
    """
    keys = {
        _key(options, listing, framing, cache_dir)
        for size in image_sizes
        for framing in _framings(options, size)
    }
    return cache.drop_unused(cache_dir, listing.source, keys)


def _framings(options: DatasetOptions, image_size: int) -> list[Framing]:
    """Return the framing, and a second one where pictures are mirrored before they shrink."""
    framing = Framing(image_size=image_size, crop=options.crop, resize=options.resize)
    is_mirrored_first = options.flip and options.is_shrunk_last
    return [framing, replace(framing, from_right=True)] if is_mirrored_first else [framing]


def _key(options: DatasetOptions, listing: Listing, framing: Framing, cache_dir: Path) -> str:
    """Return a cache key of everything the pixels depend on, without the files' folder."""
    digest = hashlib.sha256(json.dumps([decoding.VERSION, asdict(framing)]).encode())
    if options.kind == "ToyCars":
        digest.update(json.dumps([options.kind, options.num_images, options.seed]).encode())
        cameras = Path(generators.cameras.__file__)
        for source in [cameras, *sorted(Path(scenes.__path__[0]).glob("*.py"))]:
            digest.update(source.read_bytes())
    else:
        digest.update(fingerprint(listing, cache_dir).encode())
    return digest.hexdigest()[:32]


def _rendered(options: DatasetOptions, image_size: int) -> Generator[Block, None, None]:
    """Render the built-in cars on all cores, a group of cars per thread.

    One car's arrays are too small for several threads. Images do not depend on the groups.
    """

    def render(start: int) -> Block:
        indices = range(start, min(start + RENDERED_AT_ONCE, options.num_images))
        rays = 1 if options.resize == "points" else 3
        batch = toy_car_images(indices, image_size, seed=options.seed, supersampling=rays)
        return list(batch.images.numpy())

    threads = torch.get_num_threads()
    starts = range(0, options.num_images, RENDERED_AT_ONCE)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(render, starts)
    finally:
        torch.set_num_threads(threads)  # some of its state is shared by all threads


def _decoded(
    listing: Listing, framing: Framing, skipped_file: Path | None, small: list[str]
) -> Generator[Block, None, None]:
    """Decode the pictures in order; raise at the end if too many of them could not be read."""
    skipped = list(listing.skipped)
    with opened(listing) as open_file:
        for block in decode_all(open_file, listing.names, framing, small=small):
            skipped += [item for item in block if isinstance(item, Skipped)]
            yield block
    _refuse_many(skipped, listing, skipped_file)


def _refuse_many(skipped: Sequence[Skipped], listing: Listing, skipped_file: Path | None) -> None:
    total = listing.count + len(listing.skipped)
    limit = max(MAX_SKIPPED_PERCENT * total // 100, min(MAX_SKIPPED_FILES, total // 2))
    if len(skipped) > limit:
        _write_skipped(skipped, skipped_file)
        text = _describe(skipped, listing, skipped_file)
        raise UsageError(f"{text}; a run starts with at most {limit} of {total}")


def _report(
    skipped: Sequence[Skipped], listing: Listing, skipped_file: Path | None, is_printed: bool
) -> None:
    """Report the skipped files, including those that a later read of the cache lists."""
    _refuse_many(skipped, listing, skipped_file)
    _write_skipped(skipped, skipped_file)
    if skipped and is_printed:
        print(f"left out: {_describe(skipped, listing, skipped_file)}", file=sys.stderr)


def _describe(skipped: Sequence[Skipped], listing: Listing, skipped_file: Path | None) -> str:
    """Describe the skipped files: their number, the first names, and the file that lists them."""
    total = listing.count + len(listing.skipped)
    where = f"; all are named in '{printable(str(skipped_file))}'" if skipped_file else ""
    return f"{describe_skipped(skipped, total, listing.source)}{where}"


def _write_skipped(skipped: Sequence[Skipped], path: Path | None) -> None:
    """Write the names of all skipped files; replace the list of an earlier start."""
    if path is None or not (skipped or path.exists()):
        return
    try:
        write_file(path, "".join(f"{name}\t{reason}\n" for name, reason in skipped).encode())
    except OSError as error:
        raise UsageError(f"cannot write '{printable(str(path))}': {error.strerror}") from error


@functools.lru_cache(maxsize=4)  # neighbouring epochs of a training and an evaluation set
def _epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def batch_indices(
    num_images: int,
    *,
    seed: int,
    images_seen: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> NDArray[np.int64]:
    """Return the indices (batch_size,) of the images that one process sees next.

    All epochs form one endless stream, each a permutation that depends on (seed, epoch) alone. The
    processes share stream[images_seen : images_seen + batch_size * world_size], rank by rank. So a
    batch may reach into the next epoch, a small dataset repeats within a batch, and a resumed run
    continues where the first one stopped.

    seed is that of the run, 0 or more; images_seen counts the real images that all processes
    together have seen so far; batch_size is that of one process.

    Raises:
        ValueError: a number is out of range.
    """
    if min(num_images, batch_size) < 1 or images_seen < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"cannot take {batch_size} of {num_images} images from {images_seen} on, as process "
            f"{rank} of {world_size}"
        )
    start = images_seen + rank * batch_size
    stop = start + batch_size
    parts = []
    for epoch in range(start // num_images, (stop - 1) // num_images + 1):
        begin = epoch * num_images
        order = _epoch_order(num_images, seed, epoch)
        parts.append(order[max(start - begin, 0) : stop - begin])
    return np.concatenate(parts)


def training_images(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W), of type uint8, as float32 in [-1, 1] on their device."""
    return images.to(torch.float32).div_(127.5).sub_(1)
