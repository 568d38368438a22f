"""Ways to damage the bytes of a .pth file; each takes the bytes and a random.Random."""

import io
import pickle
import pickletools
import struct
import zipfile

import torch

SPECIAL = [b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"R", b".", b"(", b"b", b"\x81",
           b"cos\nsystem\n", b"c__builtin__\neval\n", b"Q", b"h\x00", b"\x8a\x00"]  # fmt: skip


def flip_bits(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 4, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncate(data, rng):
    return data[: rng.randrange(len(data))]


def splice(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + rng.choice(SPECIAL) + data[at + rng.choice([0, 0, 1, 8, 100]) :]


def end_of_zip(data, rng):
    """Damage the last bytes, which declare sizes and positions."""
    at = max(0, len(data) - rng.randrange(1, 300))
    return data[:at] + rng.choice(SPECIAL) + data[at + rng.choice([1, 4, 8]) :]


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(content, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


def pickle_of(content):
    return next(name for name in content if name.endswith("/data.pkl"))


def change_pickle(change):
    """Make a mutation of the pickle in the archive, with checksums that fit it."""

    def mutate(data, rng):
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return change(data, rng)
        content = members(data)
        name = pickle_of(content)
        return zipped({**content, name: change(content[name], rng)})

    return mutate


def swap_texts(data, rng):
    """Swap two names, numbers or classes of the same length within the program."""
    words = sorted(set(_words(data)))
    if not words:
        return splice(data, rng)
    one, other = rng.choice(words), rng.choice(words)
    if len(one) != len(other):
        other = (other * len(one))[: len(one)]
    return data.replace(one, b"\0" * len(one)).replace(other, one).replace(b"\0" * len(one), other)


def _words(data):
    for op, argument, _ in _genops(data):
        if op.name in ("BINUNICODE", "GLOBAL") and argument and argument.isascii():
            yield from (word.encode() for word in argument.split(" "))


def _genops(data):
    try:
        yield from pickletools.genops(io.BytesIO(data))
    except ValueError:
        return


def huge_numbers(data, rng):
    """Replace a small number by a huge one: sizes, strides, offsets, counts."""
    places = [place for op, _, place in _genops(data) if op.name == "BININT1"]
    if not places:
        return b""
    at = rng.choice(places)
    number = rng.choice([2**31 - 1, -1, 2**40, 2**62, 10**25])
    return data[:at] + pickle.dumps(number, 2)[2:-1] + data[at + 2 :]


def resize_storage(data, rng):
    content = members(data) if zipfile.is_zipfile(io.BytesIO(data)) else {}
    stored = [name for name in content if "/data/" in name]
    if not stored:
        return truncate(data, rng)
    name = rng.choice(stored)
    change = rng.choice(["drop", "shorter", "longer", "nan", "bomb"])
    if change == "drop":
        del content[name]
    elif change == "shorter":
        content[name] = content[name][: rng.randrange(len(content[name]) + 1)]
    elif change == "longer":
        content[name] += bytes(rng.randrange(1, 10**5))
    elif change == "nan":
        content[name] = struct.pack("<f", float("nan")) * (len(content[name]) // 4)
    else:
        content[name] = bytes(10**7)
        return zipped(content, zipfile.ZIP_DEFLATED)
    return zipped(content)


VALUES = [None, True, -1, 2**62, 3.5, float("nan"), "x" * 10**4, "os.system", [], {}, (1, 2),
          [[[[[]]]]], {"a": {1: 2}}, torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64),
          torch.full((4,), float("inf")), torch.zeros(1, dtype=torch.float64)]  # fmt: skip


def change_content(data, rng):
    """Load a plain file, change one thing somewhere in it, and write it again."""
    try:
        content = torch.load(io.BytesIO(data), weights_only=True)
    except pickle.UnpicklingError:  # a published object: only its bytes can be changed
        return huge_numbers(data, rng)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        inner = [key for key in keys if isinstance(place[key], (dict, list)) and place[key]]
        if not inner or rng.random() < 0.4:
            break
        place = place[rng.choice(inner)]
    key, kind = rng.choice(keys), rng.choice(["drop", "set", "set", "rename", "swap"])
    if kind == "drop" or (kind == "rename" and isinstance(place, list)):
        del place[key]
    elif kind == "rename":
        place[rng.choice(["x", 7, str(key) + "_"])] = place.pop(key)
    elif kind == "swap":
        other = rng.choice(keys)
        place[key], place[other] = place[other], place[key]
    else:
        place[key] = rng.choice(VALUES)
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def web_page(data, rng):
    return rng.choice([b"<!DOCTYPE html><html>", b"\n<HTML>", b"", b"\x89PNG\r\n", b"PK\x03\x04"])


OF_PICKLES = (flip_bits, splice, truncate, swap_texts, huge_numbers)
MUTATIONS = [flip_bits, truncate, splice, end_of_zip, resize_storage, change_content, web_page,
             *map(change_pickle, OF_PICKLES)]  # fmt: skip
