"""Fit each of many photos: a folder per photo, one table, one sheet.

A photo's fit.json is written last. It says what the fit depends on, and has digests of the files.
Where all that is the same again the photo is not fitted again, so that a stopped batch goes on.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from image_io import files, png
from image_io.decoding import over_white, read_picture
from image_io.files import Listing, printable
from system.errors import UsageError
from system.files import json_bytes, write_file

RECORD, TABLE, SHEET = "fit.json", "fits.csv", "fits.png"
COLUMNS = ("photo", "folder", "psnr", "pitch", "yaw", "fov", "poor", "seconds")
SHEET_ROWS, SHEET_SIDE = 60, 128  # photos on the sheet; pixels per side of its pictures
LONGEST_NAME = 100  # letters of a folder's name

Row = dict[str, Any]  # of the table, by column
Work = Callable[[IO[bytes], str, Path], Mapping[str, Any]]


def list_photos(words: Sequence[str]) -> Listing:
    """List the photos of one folder, glob or .zip, or several files; UsageError if none is there.

    words are those of the command line; a shell turns photos/*.jpg into several.
    """
    is_plain = len(words) > 1 or (os.path.isfile(words[0]) and not words[0].endswith(".zip"))
    if not is_plain:
        return files.find_pictures(words[0], flag="")
    for word in words:
        if not os.path.isfile(word):
            raise UsageError(f"{word}: is no file; give pictures, or one {files.HOW_TO_GIVE}")
    stats = [os.stat(word) for word in words]
    stamps = tuple((info.st_size, info.st_mtime_ns) for info in stats)
    return Listing(source=os.curdir, names=tuple(words), stamps=stamps)


def folder_names(photos: Sequence[str]) -> Iterator[str]:
    """Yield a name of a folder for each photo, all different and made of safe characters."""
    taken = set()
    for photo in photos:
        stem = re.sub(r"[^\w-]+", "_", os.path.splitext(photo)[0]).strip("_") or "photo"
        name, count = stem[-LONGEST_NAME:], 1
        while name.casefold() in taken:  # some file systems ignore case
            count += 1
            name = f"{stem[-LONGEST_NAME:]}_{count}"
        taken.add(name.casefold())
        yield name


def fit_each(
    listing: Listing, folder: Path, depends_on: Mapping[str, Any], work: Work
) -> Iterator[Row]:
    """Fit the photos that are not fitted yet; yield a row for each and write the table after it.

    Args:
        listing: the photos.
        folder: takes a folder for each photo, and the table.
        depends_on: all that a fit depends on apart from the photo, for json.
        work: takes a photo's bytes, its name and its folder; writes all files but fit.json, and
            returns its content, with their names as "files". A UsageError says why the photo cannot
            be fitted.
    """
    rows: list[Row] = []
    for skipped in listing.skipped:
        rows.append({"photo": skipped.name, "poor": f"unreadable: {skipped.reason}"})
        yield rows[-1]
    names = folder_names(listing.names)
    with files.opened(listing) as open_file:
        for photo, stamp, name in zip(listing.names, listing.stamps, names, strict=True):
            of = {"photo": photo, "stamp": stamp, **depends_on}
            row: Row = {"photo": printable(photo)}
            try:
                row |= {"folder": name, **_record(folder / name, of, open_file, work)}
            except UsageError as error:
                row["poor"] = printable(str(error))
            rows.append(row)
            _write_table(folder / TABLE, rows)
            yield row


def _record(
    folder: Path, of: Mapping[str, Any], open_file: Callable[[str], IO[bytes]], work: Work
) -> Row:
    """Return the columns of a photo's fit, which is made unless it was made before."""
    content, key = _earlier(folder), json.loads(json_bytes(of))
    if content.get("of") != key:
        began = monotonic()
        content = {**work(_bytes(open_file, of["photo"]), of["photo"], folder), "of": key}
        content["seconds"] = round(monotonic() - began, 1)
        content["files"] = {name: _digest(folder / name) for name in content["files"]}
        write_file(folder / RECORD, json_bytes(content, indent=1))
    (first, *_) = content["photos"]
    columns = {name: round(first[name], 4) for name in ("psnr", "pitch", "yaw", "fov")}
    return {**columns, "poor": "; ".join(content["poor"]), "seconds": content["seconds"]}


def _earlier(folder: Path) -> Row:
    """Return the content of an earlier fit.json if the files of that fit are still there."""
    try:
        content = json.loads((folder / RECORD).read_bytes())
        digests = {name: _digest(folder / name) for name in content["files"]}
    except (OSError, ValueError, TypeError, KeyError):  # none, or of another program
        return {}
    return content if digests == content["files"] else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _bytes(open_file: Callable[[str], IO[bytes]], name: str) -> IO[bytes]:
    try:
        with open_file(name) as stream:
            return io.BytesIO(stream.read())
    except Exception as error:  # damaged members of a .zip fail in many ways
        raise UsageError(f"unreadable: {error}") from error


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def write_sheet(folder: Path, rows: Sequence[Row]) -> None:
    """Write a sheet with the photo, the fit and a turned view of the first SHEET_ROWS fits."""
    done = [row for row in rows if "folder" in row][:SHEET_ROWS]
    pictures = [picture for row in done for picture in _pictures(folder / row["folder"])]
    labels = [f"{row['folder']} {row['psnr']:.1f} dB" for row in done]
    sheet = png.contact_sheet(torch.stack(pictures), labels, ("photo", "fit", "turned"))
    png.save_png(folder / SHEET, sheet)


def _pictures(folder: Path) -> Iterator[torch.Tensor]:
    """Yield three uint8 pictures (3, SHEET_SIDE, SHEET_SIDE) of a photo's fit."""
    compared = over_white(read_picture(folder / "fit.png"))
    views = over_white(read_picture(folder / "views.png"))
    height, width = compared.height, views.width // 5
    last = compared.width - 3 * height  # before the difference and the other side: tuned or not
    boxes = [(compared, (0, 0, height, height)), (compared, (last, 0, last + height, height)),
             (views, (0, 0, width, width))]  # fmt: skip
    for image, box in boxes:
        small = image.crop(box).resize((SHEET_SIDE, SHEET_SIDE), Image.Resampling.BICUBIC)
        yield torch.from_numpy(np.array(small)).permute(2, 0, 1)
