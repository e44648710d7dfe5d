from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.distributed.runs import Mode, SmallRun


@pytest.fixture(scope="session")
def undisturbed(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mode], SmallRun]:
    """Returns a function to a run that went through; every mode's is made once."""
    runs: dict[Mode, SmallRun] = {}

    def run_of(mode: Mode) -> SmallRun:
        if mode not in runs:
            runs[mode] = SmallRun(tmp_path_factory.mktemp("plain"), tiny_models(mode.architecture), mode.stage)
            done = runs[mode].start(mode)
            assert done.returncode == 0, done.stderr[-3000:]
        return runs[mode]

    return run_of
