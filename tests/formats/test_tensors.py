"""Copies of checkpoints: other tensors at their own places, and nothing but regular files."""

import json
import os
import struct

import pytest
import torch

from stepmend import InputError
from stepmend.formats.tensors import Tensors, copy


def write(file, tensors: dict[str, bytes], order: list[str]) -> None:
    """A safetensors file as another library may write it: in any order, with metadata, and blanks behind the header."""
    header, at = {"__metadata__": {"z": "1", "a": "2"}}, 0
    for name in order:
        header[name] = {"dtype": "F16", "shape": [len(tensors[name]) // 2, 1], "data_offsets": [at, at + len(tensors[name])]}
        at += len(tensors[name])
    text = json.dumps(header, indent=1).encode() + b"   "
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors[name] for name in order))


def test_a_changed_tensor_lies_where_the_old_one_lay_and_all_else_is_the_same(tmp_path):
    (tmp_path / "low").mkdir()
    write(tmp_path / "low" / "one.safetensors", {"b": b"\1\2\3\4", "a": b"\5\6"}, ["b", "a"])
    write(tmp_path / "low" / "two.safetensors", {"c": b"\7\7\7\7"}, ["c"])
    (tmp_path / "low" / "odd.bin").write_bytes(b"as it is")
    Tensors(tmp_path / "low").write(tmp_path / "out", {"a": torch.tensor([[1.5]])})
    before, after = ((tmp_path / place / "one.safetensors").read_bytes() for place in ("low", "out"))
    assert after == before[:-2] + torch.tensor(1.5, dtype=torch.float16).numpy().tobytes()
    for name in ("two.safetensors", "odd.bin"):
        assert (tmp_path / "low" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_what_is_copied_are_regular_files_and_nothing_hidden(tmp_path):
    low = tmp_path / "low"
    (low / "adapter").mkdir(parents=True)
    (low / ".git").mkdir()
    for name in ("config.json", "adapter/adapter_config.json", ".git/packed"):
        (low / name).write_text("x")
    os.mkfifo(low / "pipe.json")
    (low / "round").symlink_to(low)
    (low / "linked.json").symlink_to(low / "config.json")
    (tmp_path / "out").mkdir()
    copy(low, tmp_path / "out")
    found = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert found == ["adapter/adapter_config.json", "config.json", "linked.json"]
    assert not (tmp_path / "out" / "linked.json").is_symlink()


def test_a_copy_of_what_may_only_be_read_can_be_written(tmp_path):
    low = tmp_path / "low"
    (low / "adapter").mkdir(parents=True)
    write(low / "one.safetensors", {"a": b"\5\6"}, ["a"])
    (low / "adapter" / "adapter_config.json").write_text("{}")
    for path in (*low.rglob("*"), low):
        path.chmod(0o555 if path.is_dir() else 0o444)
    Tensors(low).write(tmp_path / "out", {"a": torch.tensor([[1.5]])})
    (tmp_path / "copy").mkdir()
    copy(low, tmp_path / "copy")
    for path in (*(tmp_path / "out").rglob("*"), *(tmp_path / "copy").rglob("*"), tmp_path / "copy"):
        assert path.stat().st_mode & 0o200, path


@pytest.mark.parametrize(
    "of",
    [
        {"dtype": "F16", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [-1, -2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [2], "data_offsets": [-4, 0]},
        {"dtype": "F16", "shape": [2], "data_offsets": [4, 8]},
        {"dtype": "F16", "shape": [10**30], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": 2, "data_offsets": [0, 4]},
        {"dtype": "F16", "data_offsets": [0, 4]},
        {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [2.7], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": "2", "data_offsets": [0, 4]},
        [],
    ],
)
def test_a_header_that_its_file_does_not_bear_out_is_one_line(tmp_path, of):
    text = json.dumps({"a": of}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    with pytest.raises(InputError, match="is truncated or damaged"):
        Tensors(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}, "b": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}},
        {"a": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}},
        {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}, "__metadata__": ["x"]},
        {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}, "__metadata__": {"x": 1}},
    ],
    ids=["tensors that overlap", "a hole", "metadata that is a list", "metadata that holds a number"],
)
def test_what_the_library_itself_refuses_is_one_line(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    with pytest.raises(InputError, match="is truncated or damaged"):
        Tensors(tmp_path)
