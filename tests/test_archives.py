"""A .pth file returns what torch.save wrote, and never allocates more than its true size."""

import struct
import zipfile

import pytest
import torch
from pickles import archive, program, storage, tensor, text

from checkpoint_io import safe_load
from system.errors import UsageError

HUGE = 2**34


def old_file(*pickles, head=safe_load.OLD_START):
    system = b"}" + text("little_endian") + b"\x88s"
    return head + b"".join(program(part) for part in (system, *pickles))


def old_storage(count):
    return storage(count=count)[:-2] + b"NtQ"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (old_file(old_storage(HUGE), b"]" + text("0") + b"a"), "has 1.. bytes and declares 687"),
        (old_file(tensor((HUGE,), (1,), stored=old_storage(4)), b"]" + text("0") + b"a"),
         "larger than its 4 numbers"),
        (old_file(old_storage(4), b"]" + text("1") + b"a") + bytes(24), "list of storages"),
        (old_file(old_storage(4), b"]" + text("0") + b"a") + bytes(24), "wrong byte size|cannot"),
        (old_file(old_storage(4)), "cannot be read"),
        (old_file(), "cannot be read"),
        (old_file(head=safe_load.OLD_START[:20]), "no checkpoint of PyTorch"),
        (safe_load.OLD_START, "cannot be read"),
        (old_file(b"cos\nsystem\n"), "asks for os.system"),
    ],
)  # fmt: skip
def test_a_file_from_before_pytorch_1_6_has_what_it_declares(tmp_path, data, complaint):
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(UsageError, match=complaint):
        safe_load.read(tmp_path / "x.pth")


def test_an_archive_holds_what_it_declares(tmp_path):
    path, body = tmp_path / "x.pth", program(tensor((4,), (1,)))
    for change, complaint in (
        ({"0": bytes(12)}, "storage 0 has 12 bytes, its tensors need 16"),
        ({"0": bytes(20)}, "storage 0 has 20 bytes, its tensors need 16"),
        ({"1": bytes(16)}, "storage 0 is missing"),
    ):
        path.write_bytes(archive(body, **change))
        with pytest.raises(UsageError, match=complaint):
            safe_load.read(path)
    path.write_bytes(archive(body, **{"0": bytes(16), "1": bytes(7)}))  # the other is not read
    assert torch.equal(safe_load.read(path), torch.zeros(4))
    path.write_bytes(archive(body, kind=zipfile.ZIP_DEFLATED, **{"0": bytes(16)}))
    with pytest.raises(UsageError, match="compressed data"):
        safe_load.read(path)


def test_members_that_overlap_are_not_read_again_and_again(tmp_path):
    path = tmp_path / "x.pth"
    keys = [str(key) for key in range(100)]
    body = b"](" + b"".join(storage(key, count=2500) for key in keys) + b"e"
    path.write_bytes(archive(program(body), **{key: bytes(10_000) for key in keys}))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as made:
        first, at = made.getinfo("archive/data/0"), made.start_dir
    for _ in range(made.infolist().index(first) + len(keys)):
        at = data.index(b"PK\x01\x02", at) + 4
        data[at + 38 : at + 42] = struct.pack("<I", first.header_offset)
    del data[first.header_offset + 10_100 : made.start_dir]
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is damaged: it has 22... bytes and declares 100"):
        safe_load.read(path)


def test_tensors_are_what_torch_wrote(tmp_path):
    base = torch.arange(24.0)
    wanted = {
        "plain": base.view(4, 6),
        "turned": base.view(4, 6).t(),
        "part": base[5:11:2],
        "half": base.half(),
        "double": base.double(),
        "long": torch.arange(5),
        "bfloat": base.bfloat16(),
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base),
    }
    for legacy in (False, True):
        torch.save(wanted, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        found = safe_load.read(tmp_path / "x.pth")
        for key, value in wanted.items():
            assert torch.equal(found[key], value), key
            assert found[key].dtype == value.dtype
            assert found[key].stride() == value.stride()
