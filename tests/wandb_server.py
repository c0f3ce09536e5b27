"""As much of Weights & Biases' server as one test needs: the exchange of wandb 0.31's client, on loopback."""

import base64
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


@contextmanager
def serving(answer, files=()):
    """Serve.

    Args:
        answer: of a question and its variables, the data of the answer.
        files: what can be fetched: name to bytes.

    Yields:
        The address, and the names of what has been fetched.
    """
    fetched = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def say(self, content):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            data = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                data = answer(asked["query"], asked.get("variables") or {}, f"http://{self.headers['Host']}")
            self.say(json.dumps({"data": data}).encode())

        def do_GET(self):
            fetched.append(self.path[1:])
            self.say(files[self.path[1:]])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", fetched
        finally:
            server.shutdown()


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


def _answers(files, address):
    """What the server says of an artifact, by a word of the question."""
    artifact = {"__typename": "Artifact", "id": "QXJ0", "artifactSequence": COLLECTION, "versionIndex": 0, **WHEN}
    artifact |= {"artifactType": {"name": "model"}, "description": None, "metadata": "{}", "ttlDurationSeconds": -2}
    artifact |= {"ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED", "digest": "d"}
    artifact |= {"commitHash": "c", "size": sum(map(len, files.values())), "fileCount": len(files), "aliases": ALIASES}
    member = {"__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": 0, "aliases": ALIASES, **WHEN}
    member |= {"artifactCollection": COLLECTION, "artifact": artifact}
    edges = [{"node": {"__typename": "File", "name": name, "directUrl": f"{address}/{name}"}} for name in files]
    page = {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}, "edges": edges}
    urls = {"__typename": "ArtifactSequence", "artifactMembership": {"files": page}}
    return {
        "ArtifactMembershipByName": {"project": {"artifactCollectionMembership": member}},
        "FetchArtifactManifest": {"artifact": {"currentManifest": {"file": {"directUrl": f"{address}/manifest"}}}},
        "GetArtifactMembershipFileUrls": {"project": {"artifactCollection": urls}},
    }
