"""The emulated cluster is one: machines of their own that can fail, and no way out."""

from __future__ import annotations

from pathlib import Path

from tests.slurm.cluster import Cluster


def test_nodes_are_machines_of_their_own(cluster: Cluster, tmp_path: Path):
    (tmp_path / "job.sh").write_text(
        "#!/bin/bash\nsrun bash -c 'echo $(hostname) $(ls /tmp | wc -l) $(ip route | grep -c default)'\n"
    )
    job = cluster.sbatch("--nodes=2", "--ntasks-per-node=1", "job.sh", cwd=tmp_path)
    assert cluster.wait(job)["JobState"] == "COMPLETED"
    lines = sorted((tmp_path / f"slurm-{job}.out").read_text().splitlines())
    assert [line.split()[0] for line in lines] == ["node1", "node2"]
    assert [line.split()[2] for line in lines] == ["0", "0"], "no way out"
    assert all(int(line.split()[1]) <= 2 for line in lines), "/tmp is the node's own, but for what is shared"
