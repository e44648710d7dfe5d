"""Which of a job's nodes this is, and where the first one is: from Slurm, or from variables that overrule it."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from lora_dpo.errors import UserError

_NO_JOB_PORT = 29500


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes that train together, seen from one of them.

    Attributes:
        count: How many they are.
        rank: This one's number, from 0.
        head: Name or address of the first one.
        port: A free port of the first one.
    """

    count: int = 1
    rank: int = 0
    head: str = "127.0.0.1"
    port: int = _NO_JOB_PORT

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Nodes:
        """Reads NUM_MACHINES, MACHINE_RANK, MAIN_PROCESS_IP and MAIN_PROCESS_PORT, or else what Slurm says.

        It must be read in a process that srun has started on the node: in a batch script SLURM_NODEID is 0.

        Raises:
            UserError: A value is no number, or nothing says where the first node is.
        """
        job = _number(environment, "SLURM_JOB_ID", default=0)
        nodes = cls(
            count=_number(environment, "NUM_MACHINES", "SLURM_NNODES", default=1),
            rank=_number(environment, "MACHINE_RANK", "SLURM_NODEID", default=0),
            head=environment.get("MAIN_PROCESS_IP", "127.0.0.1"),
            # Below the ports that the system hands out, and another one for each job.
            port=_number(environment, "MAIN_PROCESS_PORT", default=20000 + job % 10000 if job else _NO_JOB_PORT),
        )
        if nodes.count > 1 and "MAIN_PROCESS_IP" not in environment:
            raise UserError(
                f"There are {nodes.count} nodes, and nothing says where the first one is.",
                fix="Set MAIN_PROCESS_IP to its name or address on every node.",
            )
        return nodes

    @property
    def name(self) -> str:
        """This node's name, as Slurm calls it."""
        return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def interface_towards(host: str) -> str | None:
    """Returns the network interface that packets to a host leave by; None where it cannot be told.

    Gloo would take the one that the node's own name resolves to, which on Debian is the loopback.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    if ipaddress.ip_address(own).is_loopback:  # this is the host itself
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return name
    return None


def _number(environment: Mapping[str, str], *names: str, default: int) -> int:
    for name in names:
        if value := environment.get(name):
            if not value.isdecimal():
                raise UserError(f"{name}={value} is no number.", fix="Set it to one, or leave it out.")
            return int(value)
    return default
