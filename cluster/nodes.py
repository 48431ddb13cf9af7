"""Nodes for Ray's autoscaler that are processes of this machine, for `cluster.local up --autoscale`.

Ray's own provider for tests starts them within one session folder, where a node that goes takes the files of a job's code with it. Here
each node has a folder of its own. This file is copied beside the cluster's state: its autoscaler shall not see the checkout.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

_STOP_S = 15.0


class ProcessNodes(FakeMultiNodeProvider):
    """See above. provider_config: "folder" for the nodes' files, "gcs_address"."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        with self.lock:
            node_id, kind, resources = self._next_hex_node_id(), tags[TAG_RAY_USER_NODE_TYPE], dict(resources)
            listen, grpc, runtime_env, metrics = _free_ports(4)
            command = [
                *(sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"),
                *("--disable-usage-stats", "--log-style=record", f"--address={self._gcs_address}"),
                f"--num-cpus={resources.pop('CPU', 0):g}",
                f"--num-gpus={resources.pop('GPU', 0):g}",
                f"--object-store-memory={resources.pop('object_store_memory', 100 << 20):.0f}",
                f"--resources={json.dumps(resources)}",
                f"--dashboard-agent-listen-port={listen}",
                f"--dashboard-agent-grpc-port={grpc}",
                f"--runtime-env-agent-port={runtime_env}",
                f"--metrics-export-port={metrics}",
                f"--temp-dir={self.provider_config['folder']}/{kind}-{self._next_node_id}",
            ]
            given = ",".join(f"{name}={value}" for name, value in labels.items())
            command += [f"--labels={given}"] if given else []
            environment = {
                **os.environ,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id,
                "RAY_CLOUD_INSTANCE_ID": node_id,
                "RAY_NODE_TYPE_NAME": kind,
            }
            for name in ("RAY_FAKE_CLUSTER", "PYTHONPATH", "RAY_ADDRESS", "RAY_JOB_ID"):
                environment.pop(name, None)
            node = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            status = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
            nodes: dict[str, Any] = self._nodes
            nodes[node_id] = {
                "tags": {TAG_RAY_USER_NODE_TYPE: kind, TAG_RAY_NODE_NAME: node_id, **status, **tags},
                "node": node,
            }

    def _terminate_node(self, node: dict[str, Any]) -> None:
        process = node["node"]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
