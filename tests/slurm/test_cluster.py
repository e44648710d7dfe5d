"""The emulated cluster is one: machines of their own that can fail, and no way out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.slurm.cluster import Cluster


def test_nodes_are_machines_of_their_own(cluster: Cluster, tmp_path: Path):
    with tempfile.NamedTemporaryFile(dir="/tmp") as own:
        tests = f"$(test -e {own.name} && echo shared || echo apart) $(ip route | grep -c default)"
        # Each node writes into a file of its own: srun itself is now and then too slow for a step as short as this.
        (tmp_path / "job.sh").write_text(f"#!/bin/bash\nsrun --output=said-%N bash -c 'echo $(hostname) {tests}'\n")
        job = cluster.sbatch("--nodes=2", "--ntasks-per-node=1", "job.sh", cwd=tmp_path)
        assert cluster.wait(job)["JobState"] == "COMPLETED"
    lines = [file.read_text() for file in sorted(tmp_path.glob("said-*"))]
    names = [line.split()[0] for line in lines]
    assert len(set(names)) == 2 and all(name.startswith("node") for name in names)
    assert [line.split()[1:] for line in lines] == [["apart", "0"]] * 2, "a /tmp of its own, and no way out"
