"""Write pickles and .pth files instruction by instruction."""

import io
import struct
import zipfile


def program(*parts):
    """Return a pickle of protocol 2."""
    return b"\x80\x02" + b"".join(parts) + b"."


def name(full):
    module, _, last = full.rpartition(".")
    return b"c" + f"{module}\n{last}\n".encode()


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def archive(data, kind=zipfile.ZIP_STORED, **members):
    """Return a .pth file with data as its pickle and members as its storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as made:
        made.writestr("archive/data.pkl", data)
        made.writestr("archive/version", "3\n")
        for key, content in members.items():
            made.writestr(f"archive/data/{key}", content)
    return file.getvalue()


def storage(key="0", count=4, kind="torch.FloatStorage"):
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + number(count) + b"tQ"


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape, strides, offset=0, stored=None):
    hooks = name("collections.OrderedDict") + b")R"
    rebuild = name("torch._utils._rebuild_tensor_v2")
    stored = storage() if stored is None else stored
    return (
        rebuild + b"(" + stored + number(offset) + numbers(*shape) + numbers(*strides)
        + b"\x89" + hooks + b"tR"
    )  # fmt: skip
