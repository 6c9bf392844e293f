"""examples/features_at_scale.py: what it reads, that nothing is lost or there twice, and a worker that is killed."""

import _socket
import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import scemae
from scemae.output import find_leftovers

SCRIPT = Path(__file__).parent.parent / "examples" / "features_at_scale.py"
BOX, OTHER = [20.0, 20.0, 100.0, 100.0], [30.0, 10.0, 90.0, 70.0]


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def one_thread():
    """The script sets the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def face_bytes(sample, degrees=0):
    """A sample face, turned, on 120 px, in `BOX`."""
    x0, y0, x1, y1 = sample.box
    margin = (x1 - x0) / 4
    image = Image.open(sample.path).convert("RGB").crop((x0 - margin, y0 - margin, x1 + margin, y1 + margin))
    file = io.BytesIO()
    image.rotate(degrees).resize((120, 120)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def read_table(out):
    """The rows of the shards, in their order."""
    return pa.concat_tables([parquet.read_table(path) for path in sorted(out.glob("[!.]*.parquet"))])


def read_maps(table):
    """(n, D, h, w), of the rows without an error."""
    shape = json.loads(table.schema.metadata[b"scemae"])["shape"]
    return np.stack([np.frombuffer(cell, np.float16).reshape(shape) for cell in table["features"].to_pylist() if cell])


def test_pictures_of_a_folder_go_with_the_boxes_of_their_table(tmp_path, example):
    photos = tmp_path / "photos"
    for name in ("b.png", "sub/a.jpg", "c.jpg", ".hidden.jpg", "notes.txt"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"")
    table = tmp_path / "boxes.csv"
    rows = ["path,face,x0,y0,x1,y1", "photos/b.png,1,1,2,30,40", "photos/b.png,0,5,6,70,80", "photos/c.jpg,0,1,1,9,9"]
    table.write_text("\n".join(rows) + "\n")
    first, second = example["list_units"](photos, table, 2)
    assert first == (
        str(photos),
        [("b.png", [(1, (1, 2, 30, 40)), (0, (5, 6, 70, 80))]), ("c.jpg", [(0, (1, 1, 9, 9))])],
    )
    assert second == (str(photos), [("sub/a.jpg", [])])
    assert [*example["read_pictures"](second)] == [("sub/a.jpg", photos / "sub/a.jpg", [])]
    [unit] = example["list_units"](photos, None, 3)
    assert unit.part == [("b.png", None), ("c.jpg", None), ("sub/a.jpg", None)]


def test_samples_of_a_webdataset_have_the_boxes_of_their_json(tmp_path, example):
    write_tar(
        tmp_path / "0.tar",
        {
            "a.jpg": b"A",
            "a.json": json.dumps({"box": BOX}).encode(),
            "b.json": json.dumps({"boxes": [BOX, OTHER], "box": None}).encode(),
            "b.txt": b"a caption",
            "b.side.png": b"B",
            "c.png": b"C",
            "d.json": b"{cut",
            "d.png": b"D",
            "sub/d.png": b"E",
            "sub/e.json": b"[1, 2]",
            "sub/e.png": b"F",
        },
    )
    [unit] = example["list_units"](tmp_path, None, 1)
    assert unit == (str(tmp_path / "0.tar"), None)
    assert [*example["read_pictures"](unit)] == [
        ("0.tar/a.jpg", b"A", [(0, BOX)]),
        ("0.tar/b.side.png", b"B", [(0, BOX), (1, OTHER)]),
        ("0.tar/c.png", b"C", None),
        ("0.tar/d.png", b"D", [(0, "{cut")]),
        ("0.tar/sub/d.png", b"E", None),
        ("0.tar/sub/e.png", b"F", [(0, "[1, 2]")]),
    ]


def test_a_tar_that_ends_too_soon_says_so_in_a_row(tmp_path, example):
    whole, cut = tmp_path / "whole.tar", tmp_path / "cut.tar"
    write_tar(whole, {"a.png": bytes(600), "b.png": bytes(5000)})
    cut.write_bytes(whole.read_bytes()[:3000])
    first, last = example["read_pictures"](example["Unit"](str(cut), None))
    assert first == ("cut.tar/a.png", bytes(600), None)
    assert last.name == "cut.tar"
    assert "not to its end: unexpected end of data" in str(last.content)


def test_rows_of_parquet_have_their_boxes(tmp_path, example):
    files = [
        {"image": [b"A", b"B", None], "box": [BOX, None, OTHER], "more": [1, 2, 3]},
        {
            "image": [{"bytes": b"C", "path": "c.jpg"}, {"bytes": None, "path": "/etc/d.jpg"}],
            "boxes": [[BOX, OTHER], []],
        },
    ]
    files[1]["path"] = ["x/c.jpg", None]
    for i, columns in enumerate(files):
        parquet.write_table(pa.table(columns), tmp_path / f"{i}.parquet", row_group_size=2)
    units = example["list_units"](tmp_path, None, 1)
    assert units == [
        (str(tmp_path / name), row) for name, row in (("0.parquet", 0), ("0.parquet", 1), ("1.parquet", 0))
    ]
    *bytes_of, odd, other, none = (picture for unit in units for picture in example["read_pictures"](unit))
    assert bytes_of == [("0.parquet:0", b"A", [(0, BOX)]), ("0.parquet:1", b"B", None)]
    assert (odd.name, odd.faces) == ("0.parquet:2", [(0, OTHER)])
    assert other == ("x/c.jpg", b"C", [(0, BOX), (1, OTHER)])
    assert (none.name, none.faces) == ("1.parquet:1", [])
    assert isinstance(odd.content, scemae.errors.DataError)
    assert isinstance(none.content, scemae.errors.DataError)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], [], "has 0 pictures, 0 tars and 0 Parquet files; wanted"),
        (["a.jpg", "b.jpg", "c.tar"], [], "has 2 pictures, 1 tars and 0 Parquet files; wanted"),
        (["a.tar"], ["--boxes", "boxes.csv"], "--boxes is boxes.csv; tars and Parquet files have boxes of their own"),
        (["a.parquet"], [], "A Parquet file of .* cannot be read: "),
        (["a.jpg"], ["--shard", "0"], "--shard and --batch-size must be at least 1"),
        (["a.jpg"], ["--model", "scemae-tny"], "Did you mean 'scemae-tiny'"),
    ],
)
def test_what_cannot_be_read_is_refused(files, options, message, tmp_path, example, capsys):
    source = tmp_path / "in"
    source.mkdir()
    for name in files:
        (source / name).write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        example["main"]([str(source), str(tmp_path / "out"), *options])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


@pytest.mark.slow
def test_each_face_is_a_row_and_each_error_too(tmp_path, example, samples, two_block_folder, one_thread, capsys):
    """Two faces of a picture, one of them with a bad box; a picture without a box; one that is none; then again."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name, sample in {"a.png": samples[0], "b.png": samples[1], "d.png": samples[0]}.items():
        (photos / name).write_bytes(face_bytes(sample))
    (photos / "c.png").write_bytes(b"no picture")
    table = tmp_path / "boxes.csv"
    rows = [
        "path,face,x0,y0,x1,y1",
        "photos/a.png,0,20,20,100,100",
        "photos/a.png,1,9,9,5,5",
        "photos/b.png,0,30,10,90,70",
    ]
    table.write_text("\n".join([*rows, "photos/c.png,0,20,20,100,100"]) + "\n")
    model = scemae.load_model(two_block_folder)

    words = [str(photos), str(out), "--model", f"local-dir:{two_block_folder}", "--workers", "0", "--shard", "2"]
    example["main"]([*words, "--boxes", str(table)])
    assert capsys.readouterr().out.splitlines()[1].startswith("5 rows: 2 faces, ")
    shards = sorted(out.iterdir())
    assert [parquet.read_metadata(path).num_rows for path in shards] == [3, 2]
    found = read_table(out)
    assert list(zip(found["path"].to_pylist(), found["face"].to_pylist(), strict=True)) == [
        ("a.png", 0),
        ("a.png", 1),
        ("b.png", 0),
        ("c.png", None),
        ("d.png", None),
    ]
    assert found["box"].to_pylist() == [BOX, None, OTHER, None, None]
    assert set(found["model_sha256"].to_pylist()) == {model.id.sha256}
    errors = found["error"].to_pylist()
    assert [error is None for error in errors] == [True, False, True, False, False]
    for error, text in zip(
        filter(None, errors), ("inverted", "is not an image", "has no box in the table"), strict=True
    ):
        assert text in error

    wanted = scemae.extract_features(model, [photos / "a.png", photos / "b.png"], boxes=[BOX, OTHER])
    maps = wanted.backbone_map.numpy()
    assert np.allclose(read_maps(found), maps, rtol=2e-3, atol=2e-3)
    seen = found.filter(found["error"].is_null())
    assert seen["found"].to_pylist() == wanted.found.tolist()
    assert np.allclose(seen["score"].to_numpy(), wanted.scores)
    assert np.allclose(seen["crop"].to_pylist(), [face.crop.to_image_affine.ravel() for face in wanted.faces])

    before = [path.stat().st_mtime_ns for path in shards]
    shards[1].unlink()
    (out / ".dead.0123456789abcdef.parquet").write_bytes(b"of a worker that died")
    example["main"]([*words, "--boxes", str(table)])
    assert sorted(out.iterdir()) == shards
    after = [path.stat().st_mtime_ns for path in shards]
    assert after[0] == before[0]
    assert after[1] > before[1]
    assert read_table(out) == found
    with pytest.raises(SystemExit):
        example["main"]([*words, "--boxes", "auto"])
    assert "of other pictures or settings; choose another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_landmarks_of_faces_that_are_found(tmp_path, example, samples, two_block_folder, one_thread):
    model, sample = scemae.load_model(two_block_folder), samples[0]
    detector = scemae.fit_regressor(model, sample.path, sample.landmarks, boxes=[sample.box])
    detector.save(tmp_path / "detector.safetensors")
    write_tar(tmp_path / "0.tar", {"face.jpg": sample.path.read_bytes(), "none.png": face_bytes(sample)[:-200]})
    words = ["--model", f"local-dir:{two_block_folder}", "--detector", str(tmp_path / "detector.safetensors")]
    example["main"]([str(tmp_path / "0.tar"), str(tmp_path / "out"), *words, "--boxes", "auto", "--workers", "0"])
    table = read_table(tmp_path / "out")
    settings = json.loads(table.schema.metadata[b"scemae"])
    assert settings["names"] == list(sample.landmarks)
    assert settings["shape"] == [8, 2]
    boxes = scemae.find_faces(sample.path, model=model).xyxy
    wanted = detector.predict([sample.path] * len(boxes), boxes=boxes)
    *rows, last = table.to_pylist()
    assert len(rows) == len(boxes) > 0
    assert np.allclose([row["landmarks"] for row in rows], wanted.xy.reshape(len(rows), -1), atol=1e-2)
    assert np.allclose([row["confidences"] for row in rows], wanted.scores, atol=1e-4)
    assert np.allclose([row["box"] for row in rows], boxes)
    assert [row["face"] for row in rows] == [*range(len(rows))]
    assert last["path"] == "0.tar/none.png"
    assert "may be truncated" in last["error"]


def holder_of(folder, name):
    """The process that has this file open, or None."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == str(folder / name):
                return int(link.parts[2])
    return None


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker to kill in /proc")
def test_two_nodes_and_a_worker_that_is_killed(tmp_path, example, samples, one_thread, monkeypatch):
    pytest.importorskip("ray", reason='needs Ray: pip install ".[ray]"')
    from ray.cluster_utils import Cluster

    photos, out, alone = tmp_path / "photos", tmp_path / "out", tmp_path / "alone"
    photos.mkdir()
    for i in range(48):
        (photos / f"{i:02}.png").write_bytes(b"none" if i == 30 else face_bytes(samples[i % 2], 3 * i))
    words = ["--expansion", "1", "--shard", "12", "--boxes", str(tmp_path / "boxes.csv")]
    box = ",".join(map(str, BOX))
    rows = [f"photos/{i:02}.png,{box}" for i in range(48)]
    (tmp_path / "boxes.csv").write_text("\n".join(["path,x0,y0,x1,y1", *rows]) + "\n")
    example["main"]([str(photos), str(alone), *words, "--workers", "0"])

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray asks the system which address it would send from, here and in the script: nothing is sent.
    monkeypatch.setattr(socket.socket, "connect", _socket.socket.connect)
    node = {"num_cpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        command = [sys.executable, SCRIPT, photos, out, *words, "--workers", "2"]
        log = tmp_path / "log"
        with log.open("w") as file, subprocess.Popen([*map(str, command)], stdout=file, stderr=file) as run:
            killed = None
            while killed is None and run.poll() is None:
                time.sleep(0.01)
                for name in find_leftovers(out)[:1]:
                    if pid := holder_of(out, name):
                        os.kill(pid, signal.SIGKILL)
                        killed = name if name in find_leftovers(out) else None  # None: it was done before
            run.wait(timeout=100)
    finally:
        cluster.shutdown()
    said = log.read_text()
    assert run.returncode == 0, said
    assert killed, said
    assert "48 rows: 47 faces" in said
    assert find_leftovers(out) == []
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in alone.iterdir())

    found, wanted = read_table(out), read_table(alone)
    assert found["path"].to_pylist() == [f"{i:02}.png" for i in range(48)]
    assert found["error"].to_pylist() == wanted["error"].to_pylist()
    assert np.allclose(read_maps(found), read_maps(wanted), rtol=2e-3, atol=2e-3)
