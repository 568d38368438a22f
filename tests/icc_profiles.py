"""Make ICC profiles from the specification (ICC.1:2001-04) for tests of color."""

import struct

import numpy as np

# Columns are the primaries' XYZ under D50, as the profiles of these spaces hold them.
PRIMARIES = {
    "sRGB": [[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]],
    "Display P3": [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]],
    "Adobe RGB": [[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]],
}
D50 = (0.9642, 1.0, 0.8249)


def srgb_to_linear(values):
    """Undo the transfer curve of IEC 61966-2-1, which Display P3 shares; values in [0, 1]."""
    values = np.asarray(values, float)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values):
    values = np.clip(values, 0, 1)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def stored(color, space, encode=linear_to_srgb):
    """Convert an 8-bit sRGB color to the 8-bit values of another RGB space."""
    linear = np.array(PRIMARIES["sRGB"]) @ srgb_to_linear(np.array(color) / 255)
    own = np.linalg.solve(np.array(PRIMARIES[space]), linear)
    return tuple(int(v) for v in np.round(255 * encode(np.clip(own, 0, 1))))


def _fixed(*numbers):
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def _xyz(numbers):
    return b"XYZ \0\0\0\0" + _fixed(*numbers)


def _curve(to_linear):
    table = np.round(65535 * to_linear(np.linspace(0, 1, 1024))).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(table)) + table.tobytes()


def _profile(kind, space, pcs, tags):
    """Return a profile of class kind ("mntr" or "prtr") from tags with their content."""
    text = b"made by a test"
    tags = {
        "desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + bytes(79),
        "cprt": b"text\0\0\0\0" + text + b"\0",
        "wtpt": _xyz(D50),
        **tags,
    }
    offset, directory, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        directory += struct.pack(">4sII", name.encode(), offset + len(body), len(content))
        body += padded
    size = 128 + len(directory) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, kind, space, pcs)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(*D50)
    return header.ljust(128, b"\0") + directory + body


def rgb_profile(space, to_linear=srgb_to_linear):
    columns = np.array(PRIMARIES[space]).T
    tags = {f"{name}XYZ": _xyz(xyz) for name, xyz in zip("rgb", columns, strict=True)}
    tags |= {f"{name}TRC": _curve(to_linear) for name in "rgb"}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(to_linear):
    return _profile(b"mntr", b"GRAY", b"XYZ ", {"kTRC": _curve(to_linear)})


def cmyk_profile():
    """Return a CMYK profile: paper is white, each ink or mixture a grey of L* = 50."""
    grid = np.full((2, 2, 2, 2, 3), (128, 128, 128), np.uint8)  # L* of 100/255, a* and b* + 128
    grid[0, 0, 0, 0] = (255, 128, 128)
    identity = np.arange(256, dtype=np.uint8).tobytes()
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += identity * 4 + grid.tobytes() + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {"A2B0": table, "A2B1": table})
