"""The part of Weights & Biases' server that keeps runs: the exchange of wandb 0.31's client as it logs, on loopback."""

import json
import re
from dataclasses import dataclass, field

from wandb_server import Failure, Views, membership, serving

ENTITY = {"id": "e", "name": "me"}


@dataclass
class Run:
    """What the server has of a run."""

    about: dict = field(default_factory=dict)
    """What the client said of it: groupName, jobType, tags, displayName, state and more."""
    config: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    """Streamed lines, by the name of the file: at their places, so that what comes twice is there once."""
    exit_code: int | None = None
    preempting: bool = False
    used: list = field(default_factory=list)
    """The artifacts that it began from."""

    def lines(self, name):
        """What was streamed, read."""
        streamed = self.files.get(name, {})
        assert sorted(streamed) == [*range(len(streamed))], f"{name} has gaps"
        return [json.loads(streamed[place]) for place in sorted(streamed)]

    @property
    def history(self):
        return self.lines("wandb-history.jsonl")


class Runs:
    """The projects of `me`."""

    def __init__(self):
        self.runs = {}
        """Those that were begun, by their ids."""
        self.made = {}
        """Artifacts: the name and a version to what the client said as it made them."""
        self.views = Views()
        self.asked = []
        """The names of all questions, in order."""
        self.stored = set()
        """The names of the files of artifacts."""
        self.down = False
        """Whether nobody can be served at the moment."""

    def __call__(self, question, variables, address):
        if self.down:
            raise Failure
        name = re.search(r"(?:query|mutation)\s+(\w+)", question)[1]
        self.asked.append(name)
        answer = getattr(self, f"_{name}", None)
        return answer(variables, address) if answer else self.views(question, variables, address)

    def add(self, collection, alias, kind="model"):
        """Have an artifact that some run made before."""
        said = {"artifactCollectionName": collection, "artifactTypeName": kind, "aliases": [{"alias": alias}]}
        self._CreateArtifact({"input": said}, "")

    def stream(self, path, said):
        """Take what a run streams; the answer is empty."""
        if self.down:
            raise Failure
        if not (found := re.fullmatch(r"/files/me/[^/]+/([^/]+)/file_stream", path)):
            return
        run = self.runs[found[1]]
        for name, part in (said.get("files") or {}).items():
            run.files.setdefault(name, {}).update(enumerate(part["content"], part["offset"]))
        run.preempting |= bool(said.get("preempting"))
        if said.get("complete"):
            run.exit_code = said["exitcode"]

    def _RunResumeStatus(self, asked, _):
        model = {"id": "p", "name": asked["project"], "entity": ENTITY, "bucket": None}
        if run := self.runs.get(asked["name"]):
            ends = {name: run.lines(f"wandb-{name}.jsonl") for name in ("history", "events")}
            (summary,) = run.lines("wandb-summary.json")[-1:] or [{}]
            model["bucket"] = {
                "id": "r",
                "name": asked["name"],
                "displayName": run.about["displayName"],
                "summaryMetrics": json.dumps(summary),
                "logLineCount": len(run.files.get("output.log", {})),
                "config": json.dumps(run.config),
                "tags": run.about["tags"],
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
                **{f"{name}LineCount": len(rows) for name, rows in ends.items()},
                **{f"{name}Tail": json.dumps([json.dumps(row) for row in rows[-1:]]) for name, rows in ends.items()},
            }
        return {"model": model}

    def _UpsertBucket(self, asked, _):
        new = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], Run())
        run.about |= {name: value for name, value in asked.items() if value is not None}
        run.config = json.loads(asked["config"]) if asked.get("config") else run.config
        bucket = {"id": "r", "name": asked["name"], "displayName": run.about.get("displayName"), "description": ""}
        project = {"id": "p", "name": asked["project"], "entity": ENTITY}
        bucket |= {"config": "{}", "sweepName": "", "historyLineCount": 0, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _CreateRunFiles(self, asked, address):
        files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def _ArtifactType(self, asked, _):
        number = self._find(asked["name"])
        kind = number and {"artifactType": {"name": self.made[number]["artifactTypeName"]}}
        return {"project": {"artifact": kind}}

    def _CreateArtifact(self, asked, _):
        said = asked["input"]
        version = sum(name.startswith(f"{said['artifactCollectionName']}:") for name in self.made)
        number = f"{said['artifactCollectionName']}:v{version}"
        self.made[number] = said
        made = {"id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": made}}

    def _CreateArtifactManifest(self, _, address, what="create"):
        file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": f"{address}/m", "uploadHeaders": []}
        return {f"{what}ArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def _UpdateArtifactManifest(self, asked, address):
        return self._CreateArtifactManifest(asked, address, "update")

    def _CreateArtifactFiles(self, asked, address):
        self.stored |= {file["name"] for file in asked["input"]["artifactFiles"]}
        files = [
            {
                "storagePath": file["name"],
                "uploadUrl": f"{address}/{file['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in asked["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": file} for file in files]}}}

    def _CommitArtifact(self, asked, _):
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": "d"}}}

    def _ArtifactMembershipByName(self, asked, _):
        number = self._find(asked["name"])
        member = None
        if number:
            collection, _, version = number.partition(":v")
            member = membership(collection, self.made[number]["artifactTypeName"], int(version))
        return {"project": {"artifactCollectionMembership": member}}

    def _UseArtifact(self, asked, _):
        self.runs[asked["runName"]].used.append(asked["artifactID"])
        return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}

    def _find(self, name):
        """The newest version that has this name and alias; None where there is none."""
        collection, _, alias = name.partition(":")
        for number, said in reversed(self.made.items()):
            if said["artifactCollectionName"] == collection and alias in {one["alias"] for one in said["aliases"]}:
                return number
        return None


def serving_runs(runs):
    """Serve them.

    Args:
        runs: `Runs`.
    """
    return serving(runs, stream=runs.stream)
