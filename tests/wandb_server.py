"""A stand-in for the W&B server: the few requests that wandb 0.31 makes for a run, on a free loopback port.

Those of wandb-workspaces 0.4.13 for a workspace and a report, too.

with wandb_server() as server:
    ...                             # in a process with WANDB_BASE_URL=server.url and WANDB_API_KEY=server.key
server.runs["4ucm7xkp"].history     # what a person would see in the browser
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ENTITY = "me"


@dataclass
class RemoteRun:
    """One run as the server knows it; `files` are the paths uploaded into the run's own folder."""

    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    commit: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    exit_code: int | None = None


@dataclass
class View:
    """A saved workspace or report; `where` is entity/project."""

    title: str
    where: str
    spec: dict[str, Any]


@dataclass
class StandIn:
    """What arrived: runs by id, artifacts by name (path -> bytes), and every request ("POST /graphql").

    `made` and `used` are the edges of the lineage: names of artifacts by the id of the run that logged or used them.
    `views` are by type: "project-view" is a workspace, "runs" a report. While it `hangs` it takes requests and never
    answers them.
    """

    url: str = ""
    key: str = "0123456789abcdef" * 2 + "01234567"
    runs: dict[str, RemoteRun] = field(default_factory=dict)
    artifacts: dict[str, dict[str, bytes]] = field(default_factory=dict)
    made: dict[str, set[str]] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=dict)
    aliases: dict[str, set[str]] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    gone: bool = False
    hangs: bool = False

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def only_run(self) -> RemoteRun:
        (run,) = self.runs.values()
        return run

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of one GraphQL reply; operations that are not known get an empty one."""
        method = getattr(self, "_on_" + re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower(), None)
        return method(variables) if method else {}

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """One file_stream request: new history lines, the whole summary, or the end of the run."""
        run = self.runs.setdefault(run_id, RemoteRun())
        files = body.get("files") or {}
        run.history += [json.loads(line) for line in files.get("wandb-history.jsonl", {}).get("content", [])]
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary = json.loads(line)
        if body.get("complete"):
            run.exit_code = body.get("exitcode")

    def store(self, path: str, content: bytes) -> None:
        """An uploaded file: /up/run/<run>/<path>, or /up/artifact/<name>/<path>."""
        _, _, kind, owner, name = path.split("/", 4)
        if kind == "run":
            self.runs.setdefault(owner, RemoteRun()).files.append(name)
        else:
            self.artifacts.setdefault(owner, {})[name] = content

    def _on_viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def _on_get_default_entity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": ENTITY}}

    def _on_get_projects(self, v: dict[str, Any]) -> dict[str, Any]:
        about = {"id": "P", "entityName": v["entity"], "createdAt": "2026-01-01T00:00:00Z"}
        about |= {"isBenchmark": False, "user": None}
        edges = [{"node": {"name": name, **about}} for name in {run.project for run in self.runs.values()}]
        return {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}}

    def _on_project_internal_id(self, v: dict[str, Any]) -> dict[str, Any]:
        known = any(run.project == v["projectName"] for run in self.runs.values())
        return {"project": {"id": "P", "internalId": "I"} if known else None}

    def _on_upsert_view(self, v: dict[str, Any]) -> dict[str, Any]:
        where = f"{v['entityName']}/{v['projectName']}"
        self.views[v["type"]] = View(v["displayName"], where, json.loads(v["spec"]))
        project = {"id": "P", "name": v["projectName"], "entityName": v["entityName"]}
        view = {"id": "V" + v["type"], "project": project, "updatedAt": "2026-01-01T00:00:00Z"}
        view |= {key: v[key] for key in ("type", "name", "displayName", "description", "spec")}
        return {"upsertView": {"view": view, "inserted": True}}

    _on_upsert_view2 = _on_upsert_view

    def _on_server_features_query(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_upsert_bucket(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(v["name"], RemoteRun())
        if v.get("config"):
            run.config = {key: cell["value"] for key, cell in json.loads(v["config"]).items()}
        known_as = {"name": "displayName", "group": "groupName", "project": "project", "tags": "tags"}
        known_as |= {"job_type": "jobType", "notes": "notes", "commit": "commit"}
        for ours, theirs in known_as.items():
            if v.get(theirs):
                setattr(run, ours, v[theirs])
        project = {"id": "P", "name": run.project, "entity": {"id": "E", "name": ENTITY}}
        bucket = {
            "id": "B" + v["name"],
            "name": v["name"],
            "displayName": run.name,
            "config": v.get("config"),
        }
        return {"upsertBucket": {"bucket": bucket | {"project": project, "historyLineCount": 0}, "inserted": True}}

    def _on_run_resume_status(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(v["name"])
        if run is None:
            return {"model": None}
        bucket = {"name": v["name"], "id": "B" + v["name"], "summaryMetrics": json.dumps(run.summary)}
        bucket |= {"displayName": run.name, "config": "{}", "tags": run.tags, "wandbConfig": '{"t": 1}'}
        bucket |= {"historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0}
        bucket |= {"historyTail": "[]", "eventsTail": "[]"}
        return {"model": {"id": "P", "name": run.project, "entity": {"id": "E", "name": ENTITY}, "bucket": bucket}}

    def _on_use_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        self.used.setdefault(v["input"]["runName"], set()).add(v["input"]["artifactID"])
        return {"useArtifact": {"artifact": {"id": v["input"]["artifactID"]}}}

    def _on_create_run_files(self, v: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/up/run/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": "B" + v["run"], "uploadHeaders": [], "files": files}}

    def _on_artifact_type(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def _on_create_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        name = v["input"]["artifactCollectionName"]
        self.artifacts[name] = {}
        self.aliases[name] = {alias["alias"] for alias in v["input"]["aliases"]}
        if run := v["input"].get("runName"):
            self.made.setdefault(run, set()).add(name)
        latest = {"id": "S" + name, "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": latest}}}

    def _on_create_artifact_files(self, v: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for spec in v["input"]["artifactFiles"]:
            url = f"{self.url}/up/artifact/{spec['artifactID']}/{spec['name']}"
            node = {"storagePath": "s/" + spec["name"], "uploadUrl": url, "uploadHeaders": []}
            nodes.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _manifest(self, identifier: str) -> dict[str, Any]:
        url = f"{self.url}/up/artifact/{identifier}/.manifest"
        return {"artifactManifest": {"id": identifier, "file": {"id": "F", "uploadUrl": url, "uploadHeaders": []}}}

    def _on_create_artifact_manifest(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": self._manifest(v["artifactID"])}

    def _on_update_artifact_manifest(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": self._manifest(v["artifactManifestID"])}

    def _on_commit_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": "D"}}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are gone are not news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    memory: StandIn

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        self.memory.requests.append(f"{self.command} {self.path}")

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _body(self) -> bytes:
        while self.memory.hangs and not self.memory.gone:
            time.sleep(0.05)
        if self.memory.gone:  # a connection from before
            raise ConnectionAbortedError
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def _reply(self, content: dict[str, Any]) -> None:
        raw = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        content = self._body()
        with self.memory.lock:
            self.memory.store(self.path, content)
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        with self.memory.lock:
            self._reply(self._answer(body))

    def _answer(self, body: bytes) -> dict[str, Any]:
        if self.path.endswith("/graphql"):
            request = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            assert operation is not None, request
            return {"data": self.memory.answer(operation[1], request.get("variables") or {})}
        if run := re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.memory.stream(run[1], json.loads(body))
        return {}


@contextmanager
def wandb_server() -> Iterator[StandIn]:
    """Serve until the block ends; leaving it is how a test takes the network away."""
    memory = StandIn()
    handler = type("Handler", (_Handler,), {"memory": memory})
    server = _Server(("127.0.0.1", 0), handler)
    memory.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        memory.gone = True
        server.shutdown()
        server.server_close()
        thread.join()


def online(server: StandIn) -> dict[str, str]:
    """The environment of a process that has an account there."""
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}


def sync(command: str, folder: Path, server: StandIn) -> str:
    """Run a `wandb sync` command in `folder` as a user with an account there; what it says."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(folder), "WANDB_ERROR_REPORTING": "false", **online(server)}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
