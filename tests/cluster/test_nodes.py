from __future__ import annotations

import pytest

from lora_dpo.cluster.nodes import Nodes, interface_towards
from lora_dpo.errors import UserError

JOB = {"SLURM_NNODES": "4", "SLURM_NODEID": "2", "SLURM_JOB_ID": "123456", "MAIN_PROCESS_IP": "node-a"}


def test_slurm_says_it_all():
    assert Nodes.of(JOB) == Nodes(count=4, rank=2, head="node-a", port=23456)


def test_two_jobs_on_one_node_have_two_ports():
    assert Nodes.of({**JOB, "SLURM_JOB_ID": "123457"}).port == 23457


def test_what_is_set_by_hand_wins():
    by_hand = {"NUM_MACHINES": "2", "MACHINE_RANK": "1", "MAIN_PROCESS_IP": "10.0.0.1", "MAIN_PROCESS_PORT": "29617"}
    assert Nodes.of({**JOB, **by_hand}) == Nodes(count=2, rank=1, head="10.0.0.1", port=29617)


def test_without_slurm_it_is_one_machine():
    assert Nodes.of({}) == Nodes(count=1, rank=0, head="127.0.0.1", port=29500)


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match="NUM_MACHINES=two is no number"):
        Nodes.of({"NUM_MACHINES": "two"})
    with pytest.raises(UserError, match="4 nodes, and nothing says where the first one is.\nSet MAIN_PROCESS_IP"):
        Nodes.of({"SLURM_NNODES": "4"})


def test_the_way_to_this_machine_itself_and_to_nowhere_has_no_interface():
    assert interface_towards("127.0.0.1") is None
    assert interface_towards("no-such-host.invalid") is None
