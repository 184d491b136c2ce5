"""What people name as a file: other things than files, packed files without end, and what is said of them."""

import gzip
import io
import json
import os
import resource
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from stepmend import InputError, Recipe, inputs, tables
from stepmend.locate import bench, reliability
from stepmend.logs import read as read_log
from stepmend.models import load
from stepmend.records import LINE
from stepmend.report import audit, summary
from stepmend.rundir import RunDir

READERS = {
    "a.jsonl": tables.read,
    "a.csv": tables.read,
    "a.parquet": tables.read,
    "a.json.gz": tables.read,
    "a.json": read_log,
    "a.eval": read_log,
    "labels.jsonl": bench.read,
    "audit.json": audit._read,
    "rates.json": reliability.read,
    "recipe.yaml": Recipe.from_yaml,
    "recipe.json": Recipe.from_json,
}
"""By the name of a file: what reads it."""
MEGABYTE = 1 << 20


def fifo(file: Path) -> None:
    os.mkfifo(file)


def zero(file: Path) -> None:
    file.symlink_to("/dev/zero")


def listening(file: Path) -> None:
    before = Path.cwd()
    os.chdir(file.parent)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(file.name)
    os.chdir(before)


def folder(file: Path) -> None:
    file.mkdir()


NO_FILES = [fifo, zero, listening, folder]


def said(read, file) -> str:
    """The one line with which a reader refuses."""
    with pytest.raises(InputError) as caught:
        read(file)
    line = str(caught.value)
    assert "\n" not in line and len(line) <= LINE
    assert file.name in line
    return line


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("name", READERS)
def test_only_regular_files_are_read(tmp_path, name, make):
    make(tmp_path / name)
    if (make, READERS[name]) in ((folder, read_log), (folder, bench.read)):
        assert "holds no" in said(READERS[name], tmp_path / name)  # these take folders
    else:
        assert "not a regular file" in said(READERS[name], tmp_path / name)


@pytest.mark.parametrize("make", [fifo, zero, listening])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "spare.safetensors"])
def test_a_checkpoint_holds_regular_files(tmp_path, name, make):
    for file in load_files():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)  # as the hub's cache links its files
    load.check(tmp_path) if name == "spare.safetensors" else None
    make(tmp_path / name)
    for read in (load.check, load.checkpoint_digest):
        with pytest.raises(InputError, match=rf"model: .*{name}: not a regular file"):
            read(tmp_path)


def load_files():
    from stepmend.models.reasoner import CHECKPOINTS

    return [file for file in (CHECKPOINTS / "qwen2").iterdir() if file.is_file()]


@pytest.mark.parametrize("make", [fifo, listening])
@pytest.mark.parametrize("name", ["traces.jsonl", "recipe.json", "notes/card.json"])
def test_a_run_holds_regular_files(tmp_path, name, make):
    RunDir(tmp_path, Recipe.make({})).close()
    (tmp_path / "notes").mkdir()
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(InputError, match="not a regular file"):
        RunDir(tmp_path, Recipe.make({}))
    with pytest.raises(InputError, match="not a regular file"):
        summary.read(tmp_path)


def zeros(stream, size: int) -> None:
    for _ in range(size // MEGABYTE):
        stream.write(b"0" * MEGABYTE)


def bomb_eval(file: Path, size: int) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"eval": {"task": "t"}}))
        with archive.open("samples/1.json", "w", force_zip64=True) as stream:
            zeros(stream, size)


def bomb_zstd(file: Path, size: int) -> None:
    import zipfile_zstd  # noqa: F401

    with zipfile.ZipFile(file, "w", zipfile.ZIP_ZSTANDARD) as archive:  # pyright: ignore
        archive.writestr("header.json", json.dumps({"eval": {"task": "t"}}))
        archive.writestr("samples/1.json", b"0" * size)


def bomb_gz(file: Path, size: int) -> None:
    with gzip.open(file, "wb", 1) as stream:
        zeros(stream, size)


def bomb_dictionary(file: Path, size: int) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * (size // MEGABYTE), pa.int32()), ["0" * MEGABYTE])
    parquet.write_table(pa.table({"id": texts}), file, compression="zstd", store_schema=False)


def bomb_rows(file: Path, size: int) -> None:
    parquet.write_table(pa.table({"id": pa.nulls(size // 64, pa.int8())}), file)


BOMBS = {
    "a.eval": bomb_eval,
    "b.eval": bomb_zstd,
    "a.jsonl.gz": bomb_gz,
    "a.csv.gz": bomb_gz,
    "a.parquet": bomb_dictionary,
    "b.parquet": bomb_rows,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_packed_file_that_unpacks_without_end_is_one_line_and_takes_little_memory(tmp_path, name):
    BOMBS[name](tmp_path / name, 256 * MEGABYTE)
    code = (
        f"import resource, sys; from pathlib import Path; from stepmend.logs import read; from stepmend import InputError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try: read(Path({str(tmp_path / name)!r}))\n"
        "except InputError as error: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    grown, line = done.stdout.split(" ", 1)
    assert f"{name}: unpacks to more than" in line
    assert int(grown) < 200_000, "kilobytes"


def test_a_member_that_declares_less_than_it_unpacks_to_is_refused(tmp_path):
    file = tmp_path / "a.eval"
    bomb_eval(file, 128 * MEGABYTE)
    size = (128 * MEGABYTE).to_bytes(8, "little")
    data = file.read_bytes()
    file.write_bytes(data.replace(size[:4], (1000).to_bytes(4, "little")))
    assert said(read_log, file)


def test_what_is_packed_well_is_read(tmp_path):
    rows = [{"id": i, "correct": True, "text": "the same words again and again " * 200} for i in range(3000)]  # 18 MB in 60 kB
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert len(tables.read(tmp_path / "a.jsonl.gz")) == 3000
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert tables.read(tmp_path / "a.parquet") == rows


def test_a_safetensors_header_is_bounded(tmp_path):
    for file in load_files():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write((6 << 30).to_bytes(8, "little"))
        stream.truncate(7 << 30)  # sparse: takes no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="truncated or damaged"):
        load.check(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("content", [LAUGHS, "schemes: &a [*a]\n", "model: &a x\ndata: *a\n"])
def test_a_recipe_has_no_aliases(tmp_path, content):
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    assert "aliases (*name) are not read" in said(Recipe.from_yaml, file)


@pytest.mark.parametrize("value", ["'" + "x" * 100_000 + "'", "0x" + "f" * 9000, "[" * 90 + "]" * 90, '"\\0\\e[31m"'])
def test_what_is_said_repeats_little_of_what_was_given(value):
    from stepmend.recipe import override

    for key in ("benchmark", "seed", "restore.steps", "schemes", "nothing", "locate.judges"):
        with pytest.raises(InputError) as caught:
            Recipe.make(override({}, [f"{key}={value}"]))
        assert len(str(caught.value)) <= LINE


def test_a_long_line_keeps_its_beginning_and_its_end():
    line = str(InputError(f"file.csv, line 3: {'x' * 10**6}\n\nallowed: 1, 2"))
    assert len(line) <= LINE
    assert line.startswith("file.csv, line 3: xxx") and line.endswith("xxx allowed: 1, 2")


def test_a_text_larger_than_the_limit_is_not_read(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("seed: 0\n" + "#" * (1 << 20))
    assert "larger than 262,144 bytes" in said(Recipe.from_yaml, file)
    assert inputs.text(file).startswith("seed")


def test_lines_read_like_a_file(tmp_path):
    content = "\ufeffa,b\r\n1,ä\r\n"
    (tmp_path / "a.csv").write_text(content, encoding="utf-8", newline="")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content.encode()))
    for name in ("a.csv", "a.csv.gz"):
        with inputs.lines(tmp_path / name, "") as stream:
            assert isinstance(stream, io.TextIOBase)
            assert stream.read() == "a,b\r\n1,ä\r\n"
        assert tables.read(tmp_path / name) == [{"a": "1", "b": "ä"}]
