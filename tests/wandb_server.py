"""As much of Weights & Biases' server as one test needs: the exchange of wandb 0.31's client, on loopback."""

import base64
import gzip
import hashlib
import http.server
import json
import threading
from contextlib import contextmanager

PROJECT = {"id": "p", "internalId": "p", "name": "digits", "entity": {"name": "me"}}
COLLECTION = {"__typename": "ArtifactSequence", "name": "checkpoint-1", "project": PROJECT}
ALIASES = [{"__typename": "ArtifactAlias", "id": "a", "alias": "best", "artifactCollection": COLLECTION}]
WHEN = {"createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}
VIEWER = {"id": "x", "username": "me", "email": "me@here", "entity": "me", "teams": {"edges": []}, "flags": "{}"}
ABOUT = {"viewer": {"viewer": VIEWER}, "serverInfo": {"serverInfo": {"features": []}}}


class Failure(Exception):
    """The server cannot answer."""


@contextmanager
def serving(answer, files=(), stream=None):
    """Serve.

    Args:
        answer: of a question and its variables, the data of the answer.
        files: what can be fetched: name to bytes.
        stream: takes what is posted elsewhere: a path and what was said.

    Yields:
        The address, and the names of what has been fetched.
    """
    fetched = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def say(self, content, code=200):
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            try:
                self.say(json.dumps(self.reply(body)).encode())
            except Failure:
                self.say(b"", 503)

        def reply(self, body):
            if self.path == "/graphql":
                asked = json.loads(body)
                address = f"http://{self.headers['Host']}"
                return {"data": answer(asked["query"], asked.get("variables") or {}, address)}
            if stream and self.path.startswith("/files/"):
                stream(self.path, json.loads(body))
            return {}

        def do_PUT(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.say(b"")

        def do_GET(self):
            fetched.append(self.path[1:])
            self.say(files[self.path[1:]])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", fetched
        finally:
            server.shutdown()


class Views:
    """The workspaces and reports of the project `digits`."""

    def __init__(self):
        self.kept = {}
        """By their ids, as they were sent."""

    def __call__(self, question, variables, address):
        if "upsertView" in question:
            number = variables.get("id") or f"id-{len(self.kept)}"
            self.kept[number] = variables
            view = {**variables, "id": number, "project": PROJECT | {"entityName": "me"}}
            return {"upsertView": {"view": view | {"spec": json.loads(variables["spec"])}, "inserted": True}}
        if "ProjectViews" in question:
            reports = [view | {"id": number} for number, view in self.kept.items() if view["type"] == "runs"]
            return {"project": {"allViews": page(reports)}}
        if "ProjectInternalId" in question:
            return {"project": PROJECT}
        if "GetProjects" in question:
            about = {"entityName": "me", "createdAt": "2026-01-01", "isBenchmark": False, "user": None}
            return {"models": page([PROJECT | about])}
        if "allViews" in question:
            if variables["projectName"] != "digits":
                return {"project": None}
            nodes = [
                {"node": {"id": number, "displayName": view["displayName"], "spec": view["spec"]}}
                for number, view in self.kept.items()
                if view["name"] == variables["viewName"]
            ]
            return {"project": {"allViews": {"edges": nodes}}}
        return next((ABOUT[word] for word in ABOUT if word in question), {})


def page(nodes):
    """As the server gives lists."""
    end = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    return {"edges": [{"node": node, "cursor": ""} for node in nodes], "pageInfo": end}


def serving_artifact(files):
    """Serve one artifact, `me/digits/checkpoint-1:best`.

    Args:
        files: of it: name to bytes.
    """
    contents = {
        name: {
            "digest": base64.b64encode(hashlib.md5(file).digest()).decode(),
            "birthArtifactID": "QXJ0",
            "size": len(file),
        }
        for name, file in files.items()
    }
    policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
    manifest = json.dumps({"version": 1, **policy, "contents": contents}).encode()

    def answer(question, variables, address):
        known = _answers(files, address) | ABOUT
        if "ArtifactMembershipByName" in question and variables["name"] != "checkpoint-1:best":
            return {"project": {"artifactCollectionMembership": None}}
        return next((known[word] for word in known if word in question), {})

    return serving(answer, {"manifest": manifest, **files})


def membership(collection, kind, version=0, **about):
    """What the server says of an artifact in its collection.

    Args:
        collection: its name.
        kind: what type of artifact it is.
        version: its number.
        about: it, where that is known.
    """
    sequence = COLLECTION | {"name": collection}
    aliases = [alias | {"artifactCollection": sequence} for alias in ALIASES]
    artifact = {"__typename": "Artifact", "id": f"{collection}:v{version}", "versionIndex": version, **WHEN}
    artifact |= {"artifactType": {"name": kind}, "description": None, "metadata": "{}", "ttlDurationSeconds": -2}
    artifact |= {"ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED", "digest": "d"}
    artifact |= {"commitHash": "c", "size": 0, "fileCount": 1, "aliases": aliases, "artifactSequence": sequence}
    member = {"__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": version, "aliases": aliases}
    return member | WHEN | {"artifactCollection": sequence, "artifact": artifact | about}


def _answers(files, address):
    """What the server says of the one artifact, by a word of the question."""
    about = {"id": "QXJ0", "size": sum(map(len, files.values())), "fileCount": len(files)}
    member = membership("checkpoint-1", "model", **about)
    edges = [{"node": {"__typename": "File", "name": name, "directUrl": f"{address}/{name}"}} for name in files]
    page = {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}, "edges": edges}
    urls = {"__typename": "ArtifactSequence", "artifactMembership": {"files": page}}
    return {
        "ArtifactMembershipByName": {"project": {"artifactCollectionMembership": member}},
        "FetchArtifactManifest": {"artifact": {"currentManifest": {"file": {"directUrl": f"{address}/manifest"}}}},
        "GetArtifactMembershipFileUrls": {"project": {"artifactCollection": urls}},
    }
