import gc
import io
import json
import shutil
import sys
import warnings

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from distdata import projects
from distdata.catalogs import effects, store
from distdata.catalogs.codec import decode_member
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.packing import compact_project
from distdata.catalogs.project import Project
from distdata.catalogs.shards import read_sample
from distdata.curate import export_parquet
from distdata.curate.export_hf import MARKER, export_hf
from distdata.cycle import purchases
from distdata.generate.run import generate

CONFIG = """
[project]
name = "tiny"
salt = "t"
[axes.light]
values = ["day", "night"]
fleet = [0.75, 0.25]
[scenarios.calm]
layer = "core"
fleet = 0.8
[scenarios.rush]
layer = "long_tail"
fleet = 0.2
[bands]
default = 0.1
[splits]
gate = 0.0
confirm = 0.0
[plan]
k = 3
[teacher]
kind = "python"
batch = 4
gpu_s_per_draw = 0.001
[generate]
unit_draws = 5
[teacher.options]
class = "tiny:Tiny"
kind = "{kind}"
"""

TEACHER = '''
import io
import numpy as np
from distdata.catalogs.protocol import Draw, Failure, TeacherInfo

class Tiny:
    """Every form of member there is, all a function of the request's own random seed."""
    def __init__(self, kind="rollout"):
        self.kind = kind
    def describe(self):
        digest = ("a" if self.kind == "rollout" else "b") * 16
        return TeacherInfo(id=f"tiny-{self.kind}", version="1", content_hash=digest, kind=self.kind, usd_per_gpuh=1.0,
                           joint_batches=False)
    def sample(self, requests):
        for r in requests:
            if r.params.get("broken"):
                yield Failure(seed_id=r.seed_id, k=r.k, kind="refused", reason="broken on purpose")
                continue
            rng = np.random.default_rng(r.rng_seed)
            n = int(rng.integers(3, 9))
            if self.kind == "text":
                said = [{"role": "user", "content": r.seed_id}, {"role": "assistant", "content": "é" * n}]
                members = {
                    "messages.json": said,
                    "lg_ids.npy": rng.integers(0, 2**32, n, dtype=np.uint32), "lg_cnt.npy": np.full(n, 255, np.uint8),
                }
            else:
                png = io.BytesIO()
                from PIL import Image
                Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(png, "PNG")
                members = {
                    "prompt.txt": f"a {r.axes['light']} scene",
                    "cam_front.npy": rng.integers(0, 256, (2, 12, 10, 3), dtype=np.uint8),
                    "pose.npy": rng.normal(size=(4, 7)).astype(np.float32),
                    "latent.npy": rng.normal(size=(2, 3, 4, 5)).astype(np.float16),
                    "steps.npy": rng.normal(size=(n, 3)),
                    "mask.npy": rng.random((n, n)) < 0.5,
                    "speed.npy": np.array(rng.random(), np.float32),
                    "ids.npy": rng.integers(-9, 9, n),
                    "lidar.npz": {"xyz": rng.normal(size=(n, 3)).astype(np.float32),
                                  "offsets": np.array([0, n], np.int32)},
                    "calib.json": {"fov_deg": 60, "mount": {"z_m": 1.5}, "names": ["a", "b"]},
                    "tools.json": {"n": n} if n % 2 else {"odd": None},
                    "thumb.png": png.getvalue(),
                    "blob.bin": rng.bytes(n),
                    "pose.txt": "the same stem as pose.npy",
                }
                if n % 2:
                    members["extra.npy"] = np.arange(3, dtype=np.int16)
            yield Draw(seed_id=r.seed_id, k=r.k, members=members, outcome="short" if n < 6 else "long")
'''


class Silent:
    def begin(self, **_): ...
    def advance(self, *_): ...
    def note(self, _): ...
    def end(self): ...


def make_project(root, kinds=("rollout", "text")):
    """Generate 12 seeds a kind, in every second one three draws, one draw of two failing."""
    root.mkdir()
    (root / "tiny.py").write_text(TEACHER)
    seeds = [
        {"seed_id": f"s{i:02d}", "light": ("day", "night")[i % 2], "scenario": ("calm", "rush")[i // 2 % 2],
         "decision_point": i % 2 == 0, "params": {"broken": i == 3}}
        for i in range(12)
    ]  # fmt: skip
    (root / "seeds.jsonl").write_text("".join(json.dumps(s) + "\n" for s in seeds))
    for kind in kinds:
        (root / "distdata.toml").write_text(CONFIG.format(kind=kind))
        project = Project.open(root)
        if kind == kinds[0]:
            projects.import_seed_file(project, root / "seeds.jsonl")
        purchases.save_purchase(project, purchases.plan_purchase(project, budget="24samples"))
        generate(project, Silent(), engine="inprocess")
    return project


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A generated project with two record kinds; tests that change it take a copy."""
    path, modules = list(sys.path), set(sys.modules)
    yield make_project(tmp_path_factory.mktemp("made") / "project")
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name == "tiny":
            del sys.modules[name]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`datasets.load_dataset` without network and with its cache in the test's own folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    datasets.disable_progress_bars()
    return lambda *a, **k: datasets.load_dataset(*a, cache_dir=str(tmp_path / "cache"), **k)


def stored(project, kind):
    """What the catalog holds, read without the exporter: sample id -> (row, decoded members)."""
    with store.read(project.catalog_path) as con:
        rows = con.sql("SELECT * FROM samples_wide WHERE kind = ? ORDER BY sample_id", params=[kind]).pl().to_dicts()
    found = {}
    for row in rows:
        with project.storage.open(row["shard"]) as f:
            members = read_sample(f, row["offset"], row["n_bytes"])
        found[row["sample_id"]] = (row, {n: decode_member(n, b) for n, b in members.items()})
    return found


def copy_of(project, root):
    shutil.copytree(project.root, root)
    return Project.open(root)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_parquet_loads_with_the_features_of_every_member(made, tmp_path, load):
    """`load_dataset(OUT, kind)` gives every member its dtype and shape, without a script and without hints."""
    import datasets
    from datasets import Array2D, Array4D, Image, List, Value

    export_hf(made, tmp_path / "out")
    features = load(str(tmp_path / "out"), "rollout", split="train").features
    assert {n: features[n] for n in features if n not in ("sample_id", "cell", "slice", "light", "seed_id")} == {
        "scenario": Value("string"), "layer": Value("string"), "outcome": Value("string"), "k": Value("int32"),
        "n_k": Value("int32"), "decision_point": Value("bool"), "weight": Value("float64"), "pi": Value("float64"),
        "source": Value("string"), "teacher": Value("string"), "teacher_version": Value("string"),
        "teacher_hash": Value("string"), "plan_id": Value("string"),
        "meta": Value("string"), "prompt": Value("string"), "blob": Value("binary"), "thumb": Image(),
        "pose_npy": Array2D((4, 7), "float32"), "pose_txt": Value("string"),
        "latent": Array4D((2, 3, 4, 5), "float16"), "steps": Array2D((None, 3), "float64"),
        "mask": List(List(Value("bool"))),
        "speed": Value("float32"), "ids": List(Value("int64")), "extra": List(Value("int16")),
        "cam_front": List(Image()), "tools": Value("string"),
        "calib": {"fov_deg": Value("int64"), "mount": {"z_m": Value("float64")}, "names": List(Value("string"))},
        "lidar": {"offsets": List(Value("int32")), "xyz": Array2D((None, 3), "float32")},
    }  # fmt: skip
    text = load(str(tmp_path / "out"), "text", split="train").features
    assert text["messages"] == List({"content": Value("string"), "role": Value("string")})
    assert text["lg_ids"] == List(Value("uint32"))
    assert text["lg_cnt"] == List(Value("uint8"))
    assert isinstance(text, datasets.Features)


def test_parquet_holds_every_sample_with_equal_values(made, tmp_path, load):
    """Every sample of the catalog is a row, and each of its members comes back equal to what is stored."""
    result = export_hf(made, tmp_path / "out")
    wanted = stored(made, "rollout")
    data = load(str(tmp_path / "out"), "rollout", split="train")
    assert result.kinds == {"rollout": len(wanted), "text": len(stored(made, "text"))}
    assert sorted(data["sample_id"]) == sorted(wanted)
    arrow = data.with_format("arrow")
    for i, row in enumerate(data):
        facts, members = wanted[row["sample_id"]]
        for name in ("cell", "slice", "light", "scenario", "layer", "outcome", "seed_id", "k", "n_k", "weight", "pi"):
            assert row[name] == facts[name], name
        assert json.loads(row["meta"]) == members["meta.json"]
        assert row["prompt"] == members["prompt.txt"]
        assert row["calib"] == members["calib.json"]
        assert json.loads(row["tools"]) == members["tools.json"]
        assert row["blob"] == members["blob.bin"]
        assert row["pose_txt"] == members["pose.txt"]
        assert row["speed"] == members["speed.npy"]
        assert row["ids"] == members["ids.npy"].tolist()
        assert row["extra"] == (members["extra.npy"].tolist() if "extra.npy" in members else None)
        assert np.array_equal(np.stack([np.asarray(f) for f in row["cam_front"]]), members["cam_front.npy"])
        assert arrow[i]["thumb"][0]["bytes"].as_py() == members["thumb.png"]
        for column, member in (("pose_npy", "pose.npy"), ("latent", "latent.npy"), ("steps", "steps.npy")):
            assert np.array_equal(np.asarray(row[column], members[member].dtype), members[member])
        assert row["mask"] == members["mask.npy"].tolist()
        assert np.array_equal(np.asarray(row["lidar"]["xyz"], np.float32), members["lidar.npz"]["xyz"])
        assert row["lidar"]["offsets"] == members["lidar.npz"]["offsets"].tolist()


def test_numpy_format_gives_arrays_of_the_stored_dtype(made, tmp_path, load):
    """With `with_format("numpy")` poses are float32 [4, 7] and the camera is uint8 [2, 12, 10, 3]."""
    export_hf(made, tmp_path / "out")
    row = load(str(tmp_path / "out"), "rollout", split="train").with_format("numpy")[0]
    members = stored(made, "rollout")[str(row["sample_id"])][1]
    for column, member in (("pose_npy", "pose.npy"), ("cam_front", "cam_front.npy")):
        assert row[column].dtype == members[member].dtype
        assert np.array_equal(row[column], members[member])


def test_parquet_streams_and_opens_without_datasets(made, tmp_path, load):
    """Streaming yields the same rows; polars and pyarrow read the files as plain nested lists."""
    export_hf(made, tmp_path / "out")
    files = sorted((tmp_path / "out" / "data").glob("rollout-*.parquet"))
    wanted = stored(made, "rollout")
    streamed = load(str(tmp_path / "out"), "rollout", split="train", streaming=True)
    assert sorted(r["sample_id"] for r in streamed) == sorted(wanted)
    table = pl.read_parquet(files, columns=["sample_id", "weight", "ids"])
    assert sorted(table["sample_id"]) == sorted(wanted)
    assert {k.decode() for k in pq.read_schema(files[0]).metadata} >= {"huggingface"}


def test_the_default_configuration_is_the_largest_kind(made, tmp_path, load):
    """`load_dataset(OUT)` alone works with two kinds in the folder, and takes the one with more samples."""
    result = export_hf(made, tmp_path / "out")
    largest = max(result.kinds, key=result.kinds.get)
    assert load(str(tmp_path / "out"))["train"].num_rows == result.kinds[largest]


def test_files_and_row_groups_keep_to_their_size(made, tmp_path, monkeypatch, load):
    """Small limits give several files and row groups; their names count them and nothing is lost between."""
    monkeypatch.setattr(export_parquet, "ROW_GROUP_ROWS", 4)
    monkeypatch.setattr(export_parquet, "FILE_BYTES", 1)
    n = export_hf(made, tmp_path / "out").kinds["rollout"]
    files = sorted(p.name for p in (tmp_path / "out" / "data").glob("rollout-*"))
    n_files = -(-n // 4)  # a file is closed after its first row group of 4
    assert files == [f"rollout-train-{i:05d}-of-{n_files:05d}.parquet" for i in range(n_files)]
    assert load(str(tmp_path / "out"), "rollout", split="train").num_rows == n


def test_webdataset_layout_loads_in_datasets(made, tmp_path, load):
    """`load_dataset(OUT, kind)` on the WebDataset layout gives typed members equal to the stored ones."""
    from datasets import Array2D, Array4D, Json, List, Value

    export_hf(made, tmp_path / "out", layout="webdataset")
    data = load(str(tmp_path / "out"), "text", split="train")
    wanted = stored(made, "text")
    assert data.features["messages.json"] == List({"content": Value("string"), "role": Value("string")})
    assert {r["__key__"]: r["messages.json"] for r in data} == {k: m["messages.json"] for k, (_, m) in wanted.items()}
    assert {r["__key__"]: r["lg_ids.npy"] for r in data} == {
        k: m["lg_ids.npy"].tolist() for k, (_, m) in wanted.items()
    }
    data = load(str(tmp_path / "out"), "rollout", split="train")
    wanted = stored(made, "rollout")
    assert data.num_rows == len(wanted)
    assert data.features["pose.npy"] == Array2D((4, 7), "float32")
    assert data.features["cam_front.npy"] == Array4D((2, 12, 10, 3), "uint8")
    assert data.features["tools.json"] == Json()
    for row in data:
        members = wanted[row["__key__"]][1]
        assert row["meta.json"] == members["meta.json"]
        assert row["tools.json"] == members["tools.json"]
        assert row["mask.npy"] == members["mask.npy"].tolist()
        assert row["speed.npy"] == members["speed.npy"]
        assert np.array_equal(np.asarray(row["pose.npy"], np.float32), members["pose.npy"])
        assert np.array_equal(np.asarray(row["cam_front.npy"]), members["cam_front.npy"])
        assert np.array_equal(np.asarray(row["lidar.npz"]["xyz"], np.float32), members["lidar.npz"]["xyz"])
        assert row["extra.npy"] == (members["extra.npy"].tolist() if "extra.npy" in members else None)


def test_webdataset_layout_reads_in_webdataset(made, tmp_path):
    """The `webdataset` library yields every sample once with the members' own bytes."""
    import webdataset

    export_hf(made, tmp_path / "out", layout="webdataset")
    shards = sorted(str(p) for p in (tmp_path / "out" / "data").glob("rollout-train-*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library leaves its files to the garbage collector
        seen = {s["__key__"]: s for s in webdataset.WebDataset(shards, shardshuffle=False)}
        gc.collect()
    wanted = stored(made, "rollout")
    assert set(seen) == set(wanted)
    for key, (_, members) in wanted.items():
        assert np.array_equal(np.load(io.BytesIO(seen[key]["pose.npy"])), members["pose.npy"])


def test_webdataset_metadata_names_each_samples_shard(made, tmp_path):
    """The Parquet file beside the shards has a row per sample with its weight, and says which shard it is in."""
    import tarfile

    export_hf(made, tmp_path / "out", layout="webdataset")
    facts = pl.read_parquet(tmp_path / "out" / "metadata" / "rollout-train.parquet")
    wanted = stored(made, "rollout")
    assert dict(facts.select("sample_id", "weight").iter_rows()) == {k: r["weight"] for k, (r, _) in wanted.items()}
    for (name,), rows in facts.group_by("file"):
        with tarfile.open(tmp_path / "out" / "data" / name) as tar:
            assert {n.partition(".")[0] for n in tar.getnames()} == set(rows["sample_id"])


def test_whole_shards_are_linked_not_copied(made, tmp_path):
    """A shard all of whose samples are exported costs no disk: it is the catalog's own file."""
    out = tmp_path / "out"
    if tmp_path.stat().st_dev != made.root.stat().st_dev:
        pytest.skip("two file systems")
    export_hf(made, out, layout="webdataset")
    own = {p.stat().st_ino for p in (made.root / "data").rglob("*.tar")}
    assert {p.stat().st_ino for p in (out / "data").iterdir()} <= own


def test_retried_and_repaired_units_export_once(made, tmp_path, load):
    """Retry shards are included, and of a repaired unit's old bytes nothing is, in both layouts."""
    project = copy_of(made, tmp_path / "p")
    teacher = (project.root / "tiny.py").read_text()
    (project.root / "tiny.py").write_text(teacher.replace('r.params.get("broken")', "False"))
    sys.modules.pop("tiny", None)
    compact_project(project)  # the damaged shard then also holds units that stay
    n_before = len(stored(project, "text"))
    generate(project, Silent(), engine="inprocess", mode="retry-failed")
    assert len(stored(project, "text")) > n_before
    with store.read(project.catalog_path) as con:
        shard, offset = con.execute(
            "SELECT shard, \"offset\" FROM samples_wide WHERE kind = 'text' ORDER BY sample_id LIMIT 1"
        ).fetchall()[0]
    path = project.storage.root / shard
    damaged = bytearray(path.read_bytes())
    damaged[offset + 600] ^= 1
    path.write_bytes(damaged)
    generate(project, Silent(), engine="inprocess", mode="repair")
    wanted = stored(project, "text")
    for layout, key in (("parquet", "sample_id"), ("webdataset", "__key__")):
        out = tmp_path / layout
        export_hf(project, out, layout=layout)
        data = load(str(out), "text", split="train")
        assert sorted(data[key]) == sorted(wanted)
        column = "messages" if layout == "parquet" else "messages.json"
        assert {r[key]: r[column] for r in data} == {k: m["messages.json"] for k, (_, m) in wanted.items()}


def test_a_damaged_sample_stops_the_export(made, tmp_path):
    """One altered bit anywhere in an exported sample is an error that names it; nothing appears at OUT."""
    project = copy_of(made, tmp_path / "p")
    with store.read(project.catalog_path) as con:
        sample, shard, offset, n_bytes = con.execute(
            'SELECT sample_id, shard, "offset", n_bytes FROM samples_wide ORDER BY sample_id DESC LIMIT 1'
        ).fetchall()[0]
    path = project.storage.root / shard
    data = bytearray(path.read_bytes())
    data[offset + n_bytes // 2] ^= 1
    path.write_bytes(data)
    for layout in ("parquet", "webdataset"):
        with pytest.raises(DistdataError, match=rf"sample {sample} is not what its manifest says.*--repair"):
            export_hf(project, tmp_path / "out", layout=layout)
        assert list(tmp_path.iterdir()) == [project.root]
    path.unlink()
    with pytest.raises(DistdataError, match="the shard is missing"):
        export_hf(project, tmp_path / "out")


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_the_same_catalog_gives_the_same_bytes(made, tmp_path, layout):
    """Two exports are equal byte for byte, the card included."""
    export_hf(made, tmp_path / "a", layout=layout)
    export_hf(made, tmp_path / "b", layout=layout)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_stopping_at_any_effect_leaves_no_half_dataset(made, tmp_path, layout, request):
    """Stopped at any kind of effect, OUT holds the earlier export or the new one, complete, and the next run works."""
    out = tmp_path / "out"
    export_hf(made, out, layout=layout)
    whole = files_of(out)
    seen = []
    request.addfinalizer(lambda: effects.observe(None))
    effects.observe(seen.append)
    export_hf(made, out, layout=layout, overwrite=True)
    effects.observe(None)
    assert {"export.file", "export.built", "export.aside", "export.rename"} <= set(seen)
    for stop_at in (seen.index(name) for name in dict.fromkeys(seen)):
        left = stop_at

        def stop(name):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt(name)
            left -= 1

        effects.observe(stop)
        with pytest.raises(KeyboardInterrupt):
            export_hf(made, out, layout=layout, overwrite=True)
        effects.observe(None)
        assert files_of(out) == whole
    export_hf(made, out, layout=layout, overwrite=True)
    assert files_of(out) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_only_an_unchanged_export_is_ever_replaced(made, tmp_path):
    """Foreign folders, files beside an export and an edited card are refused; without overwrite, exports too."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DistdataError, match=r"holds 1 file\(s\) that no export wrote"):
            export_hf(made, out, overwrite=overwrite)
    (out / "thesis.tex").unlink()
    export_hf(made, out)  # an empty folder is fine
    with pytest.raises(DistdataError, match="Add --overwrite"):
        export_hf(made, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DistdataError, match=r"would delete notes\.txt"):
        export_hf(made, out, overwrite=True)
    (out / "notes.txt").unlink()
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card.replace("license: ", "license: mit #"))
    with pytest.raises(DistdataError, match="was edited"):
        export_hf(made, out, overwrite=True)
    (out / "README.md").write_text(card)
    export_hf(made, out, layout="webdataset", overwrite=True)
    assert not list((out / "data").glob("*.parquet"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(DistdataError, match="is a file"):
        export_hf(made, tmp_path / "file")


def test_the_card_says_what_the_hub_and_a_person_need(made, tmp_path):
    """Its YAML parses to the configurations, and its coverage table counts what is exported, cell by cell."""
    import yaml

    result = export_hf(made, tmp_path / "out", license_id="cc-by-4.0")
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["license"] == "cc-by-4.0"
    assert data["size_categories"] == ["n<1K"]
    assert data["pretty_name"] == "tiny"
    assert {c["config_name"] for c in data["configs"]} == {"rollout", "text"}
    assert sum(c.get("default", False) for c in data["configs"]) == 1
    with store.read(made.catalog_path) as con:
        cells = dict(con.execute("SELECT cell, count(*) FROM samples_wide GROUP BY ALL").fetchall())
        targets = dict(con.execute("SELECT cell, target FROM coverage").fetchall())
        plans = con.execute("SELECT plan_id FROM plans").fetchall()
    wanted = [f"{cells.get(f'day/{s}', 0)} / {targets[f'day/{s}']}" for s in ("calm", "rush")]
    assert f"| day | {wanted[0]} | {wanted[1]} |" in body
    assert f"{result.n_samples} samples that the teacher tiny-rollout 1 and tiny-text 1 drew" in body
    assert all(f"| {plan} | tiny-" in body for (plan,) in plans)
    assert "| `cam_front` | `cam_front.npy` | uint8 [2, 12, 10, 3] as PNG pictures |" in body
    assert "| `messages` | `messages.json` | a list, each item an object of `content`, `role` |" in body


def test_more_than_sixty_slices_are_summed_by_axis_value(tmp_path):
    """With 64 slices the card's table has one row per axis value, and its counts are those of all its slices."""
    from distdata.curate.export_card import Provenance, _coverage
    from distdata.curate.export_read import Choice

    # 8 x 8 slices, one scenario; cell (i, j) wants 10 and has i: value a=i sums to 8 i of 80
    cells = [(f"{i},{j}", "calm", True, 10, i, str(i), str(j)) for i in range(8) for j in range(8)]
    facts = Provenance(
        cells=tuple(cells), plans=(), n_seeds=1, n_decision_points=0, k_range=(1, 1), n_failed=0, gpu_h=0.0,
        known_usd=0.0, in_doubt_usd=0.0,
    )  # fmt: skip
    text = _coverage(Choice(purpose="train", axes=("a", "b"), units=(), n_held_out=0), facts)
    assert "| a = 3 | 24 / 80 | 24 / 80 |" in text
    assert "| b = 3 | 28 / 80 | 28 / 80 |" in text  # 0 + 1 + ... + 7
    assert text.count("\n| ") == 8 + 8 + 2  # with the head and the sum


def test_held_out_seeds_stay_out_unless_asked_for(tmp_path):
    """A gate plan's samples are in no train export; the gate export holds exactly them, in a split of that name."""
    project = make_project(tmp_path / "p", kinds=("text",))
    with store.write(project.catalog_path) as con:  # as if six of the seeds had been held out and bought for gates
        con.execute("UPDATE samples SET split = 'gate' WHERE seed_id < 's06'")
    result = export_hf(project, tmp_path / "train")
    seeds = set(pl.read_parquet(tmp_path / "train" / "data" / "*.parquet", columns=["seed_id"])["seed_id"])
    assert seeds
    assert min(seeds) >= "s06"
    assert result.n_samples < len(stored(project, "text"))
    assert "samples of held-out seeds were left out" in (tmp_path / "train" / "README.md").read_text()
    with store.write(project.catalog_path) as con:
        con.execute("UPDATE plans SET purpose = 'gate'")
    with pytest.raises(DistdataError, match="no sample bought for train"):
        export_hf(project, tmp_path / "none")
    assert export_hf(project, tmp_path / "gate", purpose="gate").n_samples == len(stored(project, "text"))
    assert list((tmp_path / "gate" / "data").glob("text-gate-00000-of-00001.parquet"))
    assert "Do not train on them" in (tmp_path / "gate" / "README.md").read_text()


def test_wrong_words_name_the_right_ones(made, tmp_path):
    """An unknown layout or purpose is an error that suggests the nearest one."""
    with pytest.raises(DistdataError, match="Did you mean 'parquet'"):
        export_hf(made, tmp_path / "out", layout="parkett")
    with pytest.raises(DistdataError, match="Did you mean 'train'"):
        export_hf(made, tmp_path / "out", purpose="trian")


def test_progress_counts_every_sample_twice(made, tmp_path):
    """Progress ends at (2n, 2n) for n samples in both layouts, and never runs backwards."""
    for layout in ("parquet", "webdataset"):
        heard = []
        n = export_hf(made, tmp_path / layout, layout=layout, progress=lambda *p, h=heard: h.append(p)).n_samples
        assert heard == sorted(heard)
        assert heard[-1] == (2 * n, 2 * n)


def test_result_lists_the_files_it_wrote(made, tmp_path):
    """`files` and `n_bytes` are what is in the folder, but for the marker."""
    for layout in ("parquet", "webdataset"):
        result = export_hf(made, tmp_path / layout, layout=layout)
        there = files_of(tmp_path / layout)
        assert set(result.files) == set(there) - {MARKER}
        assert result.n_bytes == sum(len(there[name]) for name in result.files)


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_shards_on_a_filesystem_by_uri_export_the_same(made, tmp_path, layout):
    """Storage named by a URI, where nothing can be linked, gives the very bytes that a local folder gives."""
    project = copy_of(made, tmp_path / "p")
    config = project.root / "distdata.toml"
    config.write_text(config.read_text().replace('salt = "t"', f'salt = "t"\nstorage = "file://{project.root}/data"'))
    remote = Project.open(project.root)
    assert remote.storage.root is None
    export_hf(made, tmp_path / "local", layout=layout)
    export_hf(remote, tmp_path / "remote", layout=layout)
    assert files_of(tmp_path / "remote") == files_of(tmp_path / "local")
