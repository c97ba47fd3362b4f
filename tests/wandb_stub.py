"""A stand-in for the W&B server on the loopback: it takes a run as the real one would, or fails as one asks it to.

    with Stub() as stub:                  # or Stub("errors"), Stub("hang"), Stub(then="hang"): once a run has begun
        ... WANDB_BASE_URL=stub.url, WANDB_API_KEY=KEY, WANDB_MODE=online ...
    stub.runs["<run id>"]                 # what came in: config, group, history, summary, exit code, files

It answers what wandb 0.31 asks for a run (Viewer, UpsertBucket, RunResumeStatus, CreateRunFiles, artifacts, file_stream, uploads,
UpsertView2 for workspaces), kept to what the tests look at. `refused()` gives the address of a server that is not there.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4  # any 40 characters


@dataclass
class Run:
    """What the server came to know of one run."""

    attributes: dict[str, Any] = field(default_factory=dict)  # of UpsertBucket: displayName, groupName, jobType, tags, config
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)  # of the history, by their place
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [self.lines[place] for place in sorted(self.lines)]


class Stub:
    """The server: a thread that answers until the `with` block ends.

    Args:
        mode: `healthy`; `errors`: status 500 to everything; `hang`: no answer at all.
        then: The mode from the moment on when a first run has begun.
    """

    def __init__(self, mode: str = "healthy", then: str | None = None) -> None:
        self.mode, self.then = mode, then
        self.runs: dict[str, Run] = {}
        self.asked: Counter[str] = Counter()  # operation or path → how often
        self.unknown: list[str] = []  # what was asked and not understood
        self.views: list[dict[str, Any]] = []
        self.artifacts: list[str] = []
        self.closing = threading.Event()
        stub = self

        class Handler(_Handler):
            server_stub = stub

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Stub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def run(self, name: str) -> Run:
        return self.runs.setdefault(name, Run())


def refused() -> str:
    """Give an address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away, as those that are made to wait do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_stub: Stub

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        stub = self.server_stub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if stub.mode == "hang":
            stub.asked["hang"] += 1
            stub.closing.wait(600)
            self.close_connection = True
            return
        if stub.mode == "errors":
            stub.asked["errors"] += 1
            self._answer({"error": "the server has a bad day"}, 500)
            return
        path = self.path.partition("?")[0]
        if path == "/graphql":
            asked = json.loads(body)
            self._answer(self._graphql(asked))
            if stub.then and stub.asked["UpsertBucket"]:
                stub.mode = stub.then
        elif found := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
            self._stream(stub.run(found[3]), json.loads(body))
            self._answer({"limits": {}, "exitcode": None})
        elif found := re.fullmatch(r"/upload/([^/]+)/(.+)", path):
            stub.run(found[1]).files[found[2]] = body
            stub.asked["upload"] += 1
            self._answer({})
        else:
            stub.asked[path] += 1
            self._answer({})

    def _answer(self, value: Any, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _stream(self, run: Run, told: dict[str, Any]) -> None:
        self.server_stub.asked["file_stream"] += 1
        for name, part in (told.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"] if name.startswith("wandb-")]
            if name == "wandb-history.jsonl":
                run.lines |= dict(enumerate(lines, part["offset"]))
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if told.get("complete"):
            run.exit_code = told.get("exitcode")

    def _graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
        stub, query, given = self.server_stub, asked["query"], asked.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = asked.get("operationName") or (found[1] if found else "?")
        stub.asked[name] += 1
        answer = getattr(self, f"_{name}", None)
        if answer is None:
            stub.unknown.append(query)
            return {"data": {}}
        return {"data": answer(given)}

    def _ServerFeaturesQuery(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        team = {"edges": [{"node": {"name": "lab"}}]}
        return {
            "viewer": {"id": "1", "entity": "lab", "username": "lab", "email": "lab@example.org", "flags": "{}", "teams": team}
        }

    def _GetDefaultEntity(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"entity": "lab", "id": "1"}}

    def _OrganizationCoreWeaveOrganizationID(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def _XXHashDigestsEnabled(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        entity = {"id": "1", "name": "lab"}
        known = self.server_stub.runs.get(given["name"])
        bucket = None
        if known is not None:
            tail = json.dumps([json.dumps(row) for row in known.history[-1:]])
            bucket = {
                "id": given["name"],
                "name": given["name"],
                "summaryMetrics": json.dumps(known.summary),
                "displayName": known.attributes.get("displayName"),
                "logLineCount": 0,
                "historyLineCount": len(known.history),
                "eventsLineCount": 0,
                "historyTail": tail,
                "eventsTail": "[]",
                "config": known.attributes.get("config") or "{}",
                "tags": known.attributes.get("tags") or [],
                "notes": None,
                "wandbConfig": json.dumps({"t": {}}),
            }
        return {"model": {"id": "p", "name": given["project"], "entity": entity, "bucket": bucket}}

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.server_stub.run(given["name"])
        inserted = not run.attributes
        run.attributes |= {name: value for name, value in given.items() if value is not None}
        project = {"id": "p", "name": given.get("project") or "p", "entity": {"id": "1", "name": "lab"}}
        bucket = {
            "id": given["name"],
            "name": given["name"],
            "displayName": given.get("displayName") or given["name"],
            "description": None,
            "config": run.attributes.get("config") or "{}",
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        stub, run = self.server_stub, given["run"]
        files = [{"name": name, "uploadUrl": f"{stub.url}/upload/{run}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["input"]["artifactCollectionName"]
        self.server_stub.artifacts.append(name)
        sequence = {"latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": {"artifactManifest": self._manifest(given["artifactID"])}}

    def _UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(given["artifactManifestID"])}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        url = f"{self.server_stub.url}/upload/artifacts/{artifact}/wandb_manifest.json"
        return {"id": artifact, "file": {"id": artifact, "uploadUrl": url, "uploadHeaders": []}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for one in given["input"]["artifactFiles"]:
            url = f"{self.server_stub.url}/upload/artifacts/{one['artifactID']}/{one['name']}"
            node = {"storagePath": one["name"], "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": {**node, "artifact": {"id": one["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "0"}}}

    def _UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        self.server_stub.views.append(given)
        return {
            "upsertView": {"view": {"id": "Vmlldzox", "type": given.get("type"), "name": given.get("name")}, "inserted": True}
        }
