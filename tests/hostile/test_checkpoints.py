"""Checkpoints from strangers, with right checksums: nothing in them runs, each is loaded whole or refused."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import time
import tracemalloc
import zipfile

from resrep_dist.checkpoints.files import CheckpointFolder, restore, snapshot
from resrep_dist.errors import CheckpointError
from resrep_dist.graph import trace
from resrep_dist.graph.kept_channels import KeptChannels
from tests.networks import small_network

import numpy as np
import pytest
import tensorflow as tf

HUGE = 1 << 40


class Payload:
    """Whoever unpickles it makes the folder."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


@pytest.fixture(scope="module")
def variables():
    random_numbers = np.random.default_rng(0)
    return {
        "conv/kernel": tf.Variable(random_numbers.normal(size=(3, 3, 3, 8)).astype(np.float32)),
        "conv/mask": tf.Variable(tf.ones([8])),
        "iterations": tf.Variable(7, dtype=tf.int64),
    }


@pytest.fixture
def checkpoint(tmp_path, variables):
    return CheckpointFolder(tmp_path).save(5, snapshot(variables), {"num_chosen": 3, "config": {"seed": 0}})


def sign(checkpoint):
    """Give the files the checksums that they should have."""
    files = [checkpoint / name for name in ("state.npz", "position.json")]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (checkpoint / "SHA256SUMS").write_text("".join(lines))


def members(checkpoint):
    with zipfile.ZipFile(checkpoint / "state.npz") as file:
        return [(name, file.read(name)) for name in file.namelist()]


def write_members(checkpoint, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(checkpoint / "state.npz", "w", compression) as file:
        for name, data in entries:
            file.writestr(zipfile.ZipInfo(name) if compression == zipfile.ZIP_STORED else name, data)


def array_bytes(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), version=(1, 0))
    return stream.getvalue()


def with_header(text, data=b"", version=b"\x01\x00"):
    header = text.encode() + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


def replace_array(checkpoint, data, name="conv/kernel.npy"):
    write_members(checkpoint, [(n, data if n == name else d) for n, d in members(checkpoint)])


def replace_position(checkpoint, **changes):
    path = checkpoint / "position.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(checkpoint):
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    replace_array(checkpoint, with_header(header, pickle.dumps(Payload(checkpoint.parent / "ran"))))


def all_pickle(checkpoint):
    (checkpoint / "state.npz").write_bytes(pickle.dumps(Payload(checkpoint.parent / "ran")))


def huge_array(checkpoint):
    replace_array(checkpoint, with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({HUGE},), }}"))


def too_short(checkpoint):
    replace_array(checkpoint, with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3, 3, 8), }", b"1234"))


def zip_bomb(checkpoint):
    bomb = array_bytes(np.zeros(1 << 25, np.float32))
    entries = [(name, bomb if name == "conv/kernel.npy" else data) for name, data in members(checkpoint)]
    write_members(checkpoint, entries, zipfile.ZIP_DEFLATED)


def lying_directory(checkpoint):
    data = bytearray((checkpoint / "state.npz").read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = b"\xf0\xff\xff\xff" * 2
    (checkpoint / "state.npz").write_bytes(data)


def encrypted(checkpoint):
    data = bytearray((checkpoint / "state.npz").read_bytes())
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.index(signature) + offset] |= 1
    (checkpoint / "state.npz").write_bytes(data)


def names_that_lead_out(checkpoint):
    outside = [("../../../ran.npy", array_bytes([1.0])), ("/tmp/ran.npy", array_bytes([1.0]))]
    write_members(checkpoint, [*members(checkpoint), *outside])


def many_members(checkpoint):
    write_members(checkpoint, [(f"{number}.npy", b"") for number in range(5000)])


def code_in_header(checkpoint):
    replace_array(checkpoint, with_header("{'descr': __import__('os').mkdir('ran'), 'fortran_order': 0, 'shape': ()}"))


def deep_header(checkpoint):
    replace_array(checkpoint, with_header("(" * 9000))


def open_string_in_header(checkpoint):
    replace_array(checkpoint, with_header("{'descr': '''"))


def later_version(checkpoint):
    replace_array(checkpoint, with_header("{}", version=b"\x03\x00"))


def replace_file(name, make):
    def change(checkpoint):
        (checkpoint / name).unlink()
        make(checkpoint / name)

    change.__name__ = f"{make.__name__}_as_{name}"
    return change


def pipe(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def device(path):
    path.symlink_to("/dev/zero")


def circle(path):
    path.symlink_to(path)


def passwords(path):
    path.symlink_to("/etc/passwd")


def position_text(text):
    def change(checkpoint):
        (checkpoint / "position.json").write_bytes(text)

    return change


HARMS = {
    "pickled": (pickled, "only pickle could load"),
    "all_pickle": (all_pickle, "it cannot be read"),
    "huge_array": (huge_array, r"`conv/kernel` is float32 \[1099511627776\] there"),
    "too_short": (too_short, "it cannot be read"),
    "zip_bomb": (zip_bomb, r"`conv/kernel` is float32 \[33554432\] there"),
    "encrypted": (encrypted, "it cannot be read"),
    "names_that_lead_out": (names_that_lead_out, r"`../../../ran` is float64 \[1\] there and absent here"),
    "many_members": (many_members, "cannot be read|belongs to another"),
    "code_in_header": (code_in_header, "it cannot be read"),
    "deep_header": (deep_header, "it cannot be read"),
    "open_string_in_header": (open_string_in_header, "it cannot be read"),
    "later_version": (later_version, "not an array as numpy.savez writes it"),
    "position_list": (position_text(b"[]"), "not a JSON object"),
    "position_empty": (position_text(b""), "it cannot be read"),
    "position_deep": (position_text(b"[" * 1_000_000), "it cannot be read"),
    "position_no_text": (position_text(b"\xff\xfe"), "it cannot be read"),
    "position_large": (position_text(b" " * (17 << 20)), "more than 16,777,216 bytes"),
    "position_digits": (position_text(b'{"format": 2, "step": ' + b"9" * 5000 + b"}"), "Exceeds the limit"),
    "step_text": (lambda c: replace_position(c, step="10"), "received step 10, expected a whole number"),
    "step_float": (lambda c: replace_position(c, step=1.5), "received step 1.5"),
    "step_bool": (lambda c: replace_position(c, step=True), "received step True"),
    "step_negative": (lambda c: replace_position(c, step=-1), "received step -1"),
    "step_infinite": (lambda c: replace_position(c, step=float("inf")), "received step inf"),
    "step_huge": (lambda c: replace_position(c, step=10**30), "received step 1000"),
    "num_chosen_list": (lambda c: replace_position(c, num_chosen=["\x1b[2J\n"] * 999), "received num_chosen"),
    "num_chosen_none": (lambda c: replace_position(c, num_chosen=None), "received num_chosen None"),
    "format_list": (lambda c: replace_position(c, format=["\x1b[2J\n"] * 999), "this version reads 2"),
} | {
    change.__name__: (replace_file(name, make), expected)
    for name in ("state.npz", "position.json", "SHA256SUMS")
    for make, expected in (
        (pipe, f"{name} is not a file"),
        (folder, f"{name} is not a file"),
        (device, f"{name} is not a file"),
        (circle, f"{name} cannot be read"),
        (passwords, "do not have the checksums"),
    )
    for change in [replace_file(name, make)]
}  # fmt: skip


def try_to_restore(checkpoint, variables):
    """True where it was loaded; otherwise one line was said and nothing was loaded."""
    before = {name: variable.numpy() for name, variable in variables.items()}
    try:
        position = restore(checkpoint, variables)
    except CheckpointError as error:
        text = str(error)
        assert text.isprintable() and len(text) < 1000, text
        for name, value in before.items():
            np.testing.assert_array_equal(variables[name].numpy(), value, err_msg=name)
        return text
    assert type(position["step"]) is int and type(position["num_chosen"]) is int
    return None


@pytest.mark.parametrize("harm", HARMS)
def test_a_malicious_checkpoint_is_refused_in_one_line_and_nothing_in_it_runs(checkpoint, variables, harm):
    change, expected = HARMS[harm]
    change(checkpoint)
    if "_as_" not in harm:
        sign(checkpoint)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(CheckpointError, match=expected):
        raise CheckpointError(try_to_restore(checkpoint, variables) or "it was loaded")
    assert time.process_time() - start < 10
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert not (checkpoint.parent / "ran").exists()


@pytest.mark.parametrize(
    "layout",
    [
        5, "kept", [], {}, {"kept": None, "is_merged": False}, {"kept": [[0]], "is_merged": False},
        {"kept": [[0], [0], [16]], "is_merged": False}, {"kept": [[0], [], [0]], "is_merged": False},
        {"kept": [[1, 0], [0], [0]], "is_merged": False}, {"kept": [[0, 0], [0], [0]], "is_merged": False},
        {"kept": [[-1], [0], [0]], "is_merged": False}, {"kept": [[[0]], [0], [0]], "is_merged": False},
        {"kept": ["0", [0], [0]], "is_merged": False}, {"kept": [[0], [0], [0]], "is_merged": "no"},
        {"kept": [[0], [0], [0]], "is_refolded": "no"},
        {"kept": [[0], [0], [0]]}, {"kept": [["\x1b[2J\n" * 999], [0], [0]], "is_merged": False},
    ],
    ids=lambda layout: repr(layout)[:40],
)  # fmt: skip
def test_a_layout_that_is_not_one_of_the_models_is_refused(layout):
    graph = trace(small_network())
    assert KeptChannels.from_json(graph, {"kept": [[0, 3], [1], [15]], "is_merged": True}).widths == [2, 1, 1]
    with pytest.raises(CheckpointError, match="is not one of this model's 3 groups") as error:
        KeptChannels.from_json(graph, layout)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_sizes_that_a_zips_directory_claims_are_not_believed(checkpoint, variables):
    lying_directory(checkpoint)
    sign(checkpoint)
    tracemalloc.start()
    refused = try_to_restore(checkpoint, variables)
    assert refused is None or "possible zip bomb" in refused, "as Python says from 3.11.8, 3.12.2 and 3.13 on"
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_what_a_link_points_to_is_not_deleted(tmp_path, variables):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    folder = CheckpointFolder(tmp_path / "run", num_kept=1)
    folder.save(5, snapshot(variables), {"num_chosen": 0})
    for name in ("step-00000001", "step-00000007.partial", "step-00000010.partial"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    folder.save(10, snapshot(variables), {"num_chosen": 0})
    folder.delete_partial()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-00000010"]
    assert (tmp_path / "precious" / "file").read_text() == "kept"


STRANGE = [None, True, -1, 0, 1, 2.0, 1e400, 10**40, "", "5", "\n\x1b[2J", [], [[]], {}, {"a": []}, float("nan")]
DTYPES = ["<f2", ">f4", "<f8", "<i8", "|b1", "<c8", "|S5", "<U3", "|O", "<M8[s]", "|V4"]


def mutate(checkpoint, choices):
    """One change of what is in the files; the checksums are made right afterwards."""
    kind = choices.choice(["position", "bytes", "array", "header", "members", "members"])
    if kind == "position":
        path = checkpoint / "position.json"
        position = json.loads(path.read_text())
        position[choices.choice([*position, "other"])] = choices.choice(STRANGE)
        path.write_text(json.dumps(choices.choice([position, position, position, [position]])))
    elif kind == "bytes":
        path = checkpoint / choices.choice(["state.npz", "state.npz", "position.json"])
        data = bytearray(path.read_bytes())
        # Behind the arrays is the directory; most of the structure is there and at the heads of members.
        place = choices.choice([choices.randrange(len(data)), len(data) - 1 - choices.randrange(min(300, len(data)))])
        data[place : place + choices.choice([0, 1, 4])] = choices.randbytes(choices.choice([0, 1, 4, 9]))
        path.write_bytes(data)
    elif kind == "array":
        shape = choices.choice([(), (0,), (8,), (3, 3, 3, 8), (8, 3, 3, 3)])
        array = np.zeros(shape, choices.choice(["f4", "f8", "i8", "S3", bool]))
        replace_array(checkpoint, array_bytes(array), choices.choice(members(checkpoint))[0])
    elif kind == "header":
        shape = choices.choice(
            [
                "(3, 3, 3, 8)",
                "(8,)",
                "()",
                "(-1,)",
                f"({HUGE}, {HUGE})",
                "8",
                "None",
                "(8.0,)",
                "((",
            ]
        )
        order = choices.choice([True, None])
        header = f"{{'descr': {choices.choice(DTYPES)!r}, 'fortran_order': {order}, 'shape': {shape}}}"
        data = with_header(
            header[: choices.choice([None, None, -1, 20])], choices.randbytes(choices.choice([0, 32, 864]))
        )
        replace_array(checkpoint, data, choices.choice(members(checkpoint))[0])
    else:
        entries = members(checkpoint)
        index = choices.randrange(len(entries))
        name, data = entries[index]
        entries[index : index + 1] = choices.choice(
            [[], [(name, data), (name, data)], [(name[:-4], data)], [(f"../{name}", data)], [("\x1b[2J\n.npy", data)],
             [(name, data[:-7])], [(name, data + b"more")], [(name, b"")], [(name, data), ("x", b"")]]
        )  # fmt: skip
        write_members(checkpoint, entries, choices.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_every_one_of_500_mutations_with_right_checksums_is_loaded_whole_or_refused(checkpoint, variables, tmp_path):
    expected = {name: variable.numpy() for name, variable in variables.items()}
    shutil.copytree(checkpoint, tmp_path / "good")
    num_loaded, messages = 0, set()
    for number in range(500):
        choices = random.Random(number)
        mutate(checkpoint, choices)
        sign(checkpoint)
        message = try_to_restore(checkpoint, variables)
        num_loaded += message is None
        messages.add(message)
        for name, value in expected.items():
            assert variables[name].shape == value.shape, number
            variables[name].assign(value)
        for file in (tmp_path / "good").iterdir():
            shutil.copy(file, checkpoint)
    # It would prove little if all were alike.
    assert 50 < num_loaded < 300 and len(messages) > 60, (num_loaded, len(messages))
