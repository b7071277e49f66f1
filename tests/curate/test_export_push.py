import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.curate.export_hf import CARD, MARKER
from distdata.curate.push_hub import push_to_hub

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's own call of its HTTP library
REPO = "lab/corpus"
CARD_TEXT = """---
license: "other"
configs:
  - config_name: "text"
    default: true
    data_files:
      - split: "train"
        path: "data/text-train-?????-of-?????.parquet"
---
# corpus
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as an upload and a download of a dataset use, over dictionaries."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_): ...

    def reply(self, data, status=200, headers=()):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self):
        if self.server.full:
            self.body()
            return self.reply({"error": "Private storage limit reached"}, 403)
        self.server.blobs[self.path.rpartition("/")[2]] = self.body()
        return self.reply(b"")

    def do_POST(self):
        body, path = self.body(), self.path.partition("?")[0]
        if self.headers.get("Authorization") not in ("Bearer good", "Bearer readonly"):
            return self.reply({"error": "Invalid credentials"}, 401)
        if self.headers["Authorization"] == "Bearer readonly":
            return self.reply({"error": "You don't have the rights to create a dataset under lab"}, 403)
        answer = {
            "/api/repos/create": self.create,
            "/api/validate-yaml": lambda _: {},
            f"/api/datasets/{REPO}/preupload/main": self.preupload,
            f"/datasets/{REPO}.git/info/lfs/objects/batch": self.batch,
            f"/api/datasets/{REPO}/commit/main": self.commit,
        }[path](body)
        return self.reply(answer, 409 if "error" in answer else 200)

    def create(self, body):
        self.server.created.append(json.loads(body))
        url = {"url": f"{self.server.address}/datasets/{REPO}"}
        return url if len(self.server.created) == 1 else {**url, "error": "You already created this dataset repo"}

    def preupload(self, body):
        return {
            "files": [
                {
                    "path": f["path"],
                    "uploadMode": "regular" if f["path"].endswith(".md") else "lfs",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
        }

    def batch(self, body):
        href = f"{self.server.address}/lfs/"
        objects = json.loads(body)["objects"]
        return {
            "transfer": "basic",
            "objects": [{**o, "actions": {"upload": {"href": href + o["oid"]}}} for o in objects],
        }

    def commit(self, body):
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.server.files[value["path"]]
        return {"commitUrl": f"{self.server.address}/datasets/{REPO}/commit/{'0' * 40}", "commitOid": "0" * 40}

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        files = self.server.files
        entries = [
            {"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for p, b in files.items()
        ]
        if path.startswith(f"/api/datasets/{REPO}/tree/"):
            return self.reply(entries)
        if path.startswith(f"/api/datasets/{REPO}/revision/"):
            return self.reply({"id": REPO, "sha": "0" * 40, "siblings": [{"rfilename": p} for p in files]})
        _, _, name = path.partition("/resolve/" + "0" * 40 + "/")
        if name not in files:
            return self.reply({"error": "not found"}, 404)
        headers = [("ETag", f'"{hashlib.sha1(files[name]).hexdigest()}"'), ("X-Repo-Commit", "0" * 40)]
        return self.reply(files[name], headers=headers)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on the loopback interface."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # read once, when the library is imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.blobs, server.files, server.created, server.full = {}, {}, [], False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def export(folder, n_files):
    """Write what an export of `n_files` files looks like."""
    (folder / "data").mkdir(parents=True)
    (folder / CARD).write_text(CARD_TEXT)
    (folder / MARKER).write_text("{}")
    for i in range(n_files):
        table = pa.table({"text": [f"{n_files} files, file {i}"]})
        pq.write_table(table, folder / "data" / f"text-train-{i:05d}-of-{n_files:05d}.parquet")
    return folder


def bytes_of(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != MARKER
    }  # fmt: skip


def test_push_stores_every_file_and_it_loads_back(hub, tmp_path, monkeypatch):
    """What the hub holds after a push is the export, byte for byte, and what is downloaded from it loads."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from huggingface_hub import snapshot_download

    out = export(tmp_path / "out", 2)
    url = push_to_hub(out, REPO, endpoint=hub.address, token="good")
    assert url == f"{hub.address}/datasets/{REPO}"
    assert hub.files == bytes_of(out)
    assert hub.created == [{"name": "corpus", "organization": "lab", "visibility": "private", "type": "dataset"}]
    back = tmp_path / "back"
    snapshot_download(REPO, repo_type="dataset", endpoint=hub.address, token="good", local_dir=back)
    import datasets

    datasets.disable_progress_bars()
    data = datasets.load_dataset(str(back), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["text"] == ["2 files, file 0", "2 files, file 1"]


def test_a_second_push_leaves_nothing_of_the_first(hub, tmp_path):
    """Data files of an earlier push with another number of files are deleted; files of others stay."""
    push_to_hub(export(tmp_path / "a", 3), REPO, endpoint=hub.address, token="good")
    hub.files["LICENSE"] = b"added on the Hub"
    out = export(tmp_path / "b", 2)
    push_to_hub(out, REPO, endpoint=hub.address, token="good", private=False)
    assert hub.files == {**bytes_of(out), "LICENSE": b"added on the Hub"}
    assert [c["visibility"] for c in hub.created] == ["private", "public"]


@pytest.mark.parametrize(
    ("token", "advice"),
    [(None, "hf auth login"), ("wrong", "hf auth login"), ("readonly", "may not write there")],
)
def test_a_refusal_says_what_to_do(hub, tmp_path, token, advice):
    """No token, a wrong one and one without rights end in an error with the next step, and nothing is stored."""
    with pytest.raises(DistdataError, match=advice):
        push_to_hub(export(tmp_path / "out", 1), REPO, endpoint=hub.address, token=token)
    assert hub.files == {}


def test_a_file_that_the_hub_refuses_stops_the_push(hub, tmp_path):
    """When the upload of a file is refused, the error says so and no commit is made."""
    hub.full = True
    with pytest.raises(DistdataError, match=r"Private storage limit reached \(HTTP 403\)"):
        push_to_hub(export(tmp_path / "out", 1), REPO, endpoint=hub.address, token="good")
    assert hub.files == {}


def test_a_hub_that_does_not_answer_is_named(hub, tmp_path):
    """With nobody listening the error names the address and says that the export is safe."""
    hub.server_close()  # its port is free from here on
    with pytest.raises(DistdataError, match=rf"no answer from {hub.address}.*push again"):
        push_to_hub(export(tmp_path / "out", 1), REPO, endpoint=hub.address, token="good")


def test_only_exports_and_proper_names_are_pushed(hub, tmp_path):
    """A folder that no export wrote and a malformed name are refused before anything is sent."""
    (tmp_path / "other").mkdir()
    with pytest.raises(DistdataError, match="is no export"):
        push_to_hub(tmp_path / "other", REPO, endpoint=hub.address, token="good")
    with pytest.raises(DistdataError, match="ORG/NAME"):
        push_to_hub(export(tmp_path / "out", 1), "a/b/c", endpoint=hub.address, token="good")
    assert hub.created == []
