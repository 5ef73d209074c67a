"""Render what `make book CLUSTER=kubernetes` would send to a cluster, without a cluster.

The real Snakemake and its Kubernetes plugin submit the first jobs of profile ``rehearsal`` to a stand-in of the
cluster's API on the loopback. It keeps every manifest and calls each job failed, so nothing is run. The manifests are
read back by the classes of the Kubernetes client, which know the schema, and one is printed.

    PYTHONPATH=<folder with the plugin> python tools/kubernetes_check.py
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import yaml
from kubernetes import client

ROOT = Path(__file__).resolve().parents[1]
MANIFESTS: list[dict] = []


class Cluster(BaseHTTPRequestHandler):
    """As much of the API as the plugin asks for: jobs are created, and have failed when asked about."""

    def answer(self, content: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/jobs"):
            MANIFESTS.append(content)
        self.answer(content)

    def do_GET(self):
        self.answer({"items": []} if "/pods" in self.path else {"metadata": {}, "status": {"failed": 1}})

    do_DELETE = do_GET

    def log_message(self, *_):
        pass


def submit(address: str, folder: Path) -> None:
    """Let the book submit its first jobs to the cluster at ``address``, from a copy in ``folder``."""
    reach = {"name": "one", "cluster": {"server": address}}
    context = {"name": "one", "context": {"cluster": "one", "user": "one"}}
    about = {"clusters": [reach], "contexts": [context], "users": [{"name": "one", "user": {}}]}
    (folder / "kube.yaml").write_text(yaml.safe_dump(about | {"current-context": "one", "kind": "Config"}))
    copy = folder / "book"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    path = [str(copy / "lib"), os.environ.get("PYTHONPATH", "")]
    variables = {"KUBECONFIG": str(folder / "kube.yaml"), "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "tools/book.py", "--profile", "rehearsal", "--cluster", "kubernetes", "--retries=0"]
    command.append(f"--default-storage-prefix={copy}")  # as if the copy were the volume
    with open(folder / "log.txt", "w") as log:
        subprocess.run(command, cwd=copy, env=os.environ | variables, stdout=log, stderr=log, timeout=300)


def main() -> int:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        submit(f"http://127.0.0.1:{server.server_address[1]}", Path(folder))
        log = (Path(folder) / "log.txt").read_text()
    server.shutdown()
    if not MANIFESTS:
        print(f"The plugin sent no job.\n{log[-3000:]}")
        return 1
    for manifest in MANIFESTS:
        job = client.ApiClient().deserialize(SimpleNamespace(data=json.dumps(manifest)), client.V1Job)
        (container,) = job.spec.template.spec.containers
        asked = container.resources.requests
        assert container.image and asked["memory"] and asked["cpu"], "no image, or no resources"
        assert job.spec.template.spec.volumes[1].persistent_volume_claim.claim_name == "rewired"
    print(yaml.safe_dump(MANIFESTS[0], width=110))
    print(f"{len(MANIFESTS)} manifests follow the schema of the Kubernetes client; they were not run on a cluster")
    return 0


if __name__ == "__main__":
    sys.exit(main())
