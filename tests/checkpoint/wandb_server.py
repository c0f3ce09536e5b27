"""As much of Weights & Biases' server as answers for one artifact: the exchange of wandb 0.31's client, on loopback."""

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


def answers(files, address):
    """What the server says by a word of the question.

    Args:
        files: of the artifact: name to bytes.
        address: of the server.
    """
    artifact = {"__typename": "Artifact", "id": "QXJ0", "artifactSequence": COLLECTION, "versionIndex": 0, **WHEN}
    artifact |= {"artifactType": {"name": "model"}, "description": None, "metadata": "{}", "ttlDurationSeconds": -2}
    artifact |= {"ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED", "digest": "d"}
    artifact |= {"commitHash": "c", "size": sum(map(len, files.values())), "fileCount": len(files), "aliases": ALIASES}
    member = {"__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": 0, "aliases": ALIASES, **WHEN}
    member |= {"artifactCollection": COLLECTION, "artifact": artifact}
    edges = [{"node": {"__typename": "File", "name": name, "directUrl": f"{address}/{name}"}} for name in files]
    page = {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}, "edges": edges}
    manifest = {"currentManifest": {"file": {"directUrl": f"{address}/manifest"}}}
    viewer = {"id": "x", "username": "me", "email": "me@here", "entity": "me", "teams": {"edges": []}, "flags": "{}"}
    urls = {"__typename": "ArtifactSequence", "artifactMembership": {"files": page}}
    return {
        "viewer": {"viewer": viewer},
        "serverInfo": {"serverInfo": {"features": []}},
        "ArtifactMembershipByName": {"project": {"artifactCollectionMembership": member}},
        "FetchArtifactManifest": {"artifact": manifest},
        "GetArtifactMembershipFileUrls": {"project": {"artifactCollection": urls}},
    }


@contextmanager
def serving(files):
    """Serve one artifact, `me/digits/checkpoint-1:best`.

    Args:
        files: of it: name to bytes.

    Yields:
        The address, and the names of what has been fetched.
    """
    fetched = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, content):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = json.loads(body)["query"] if self.path == "/graphql" else ""
            known = answers(files, address)
            if "ArtifactMembershipByName" in asked and json.loads(body)["variables"]["name"] != "checkpoint-1:best":
                known["ArtifactMembershipByName"] = {"project": {"artifactCollectionMembership": None}}
            self.answer(json.dumps({"data": next((known[word] for word in known if word in asked), {})}).encode())

        def do_GET(self):
            name = self.path[1:]
            digests = {name: base64.b64encode(hashlib.md5(file).digest()).decode() for name, file in files.items()}
            contents = {
                name: {"digest": digest, "birthArtifactID": "QXJ0", "size": len(files[name])}
                for name, digest in digests.items()
            }
            policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
            fetched.append(name)
            manifest = {"version": 1, **policy, "contents": contents}
            self.answer(json.dumps(manifest).encode() if name == "manifest" else files[name])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield address, fetched
        finally:
            server.shutdown()
