"""The run folder: where each result of a run stands, and who may write into it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lora_dpo.errors import UserError, did_you_mean, nearest
from lora_dpo.files import partial_path, remove, write_text
from lora_dpo.recipe.loading import load_recipe, to_yaml
from lora_dpo.recipe.meaning import changed_meaning, same_run
from lora_dpo.recipe.schema import Recipe

_MARK = "# Resolved by lora-dpo: what this run was asked for, defaults included.\n"
_LOCK = ".lock"
_REPLACED, _DISCARDED = ".replaced", ".discarded"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run. Nothing is created by naming them."""

    path: Path

    @classmethod
    def of(cls, recipe: Recipe) -> RunFolder:
        """Returns the folder that a recipe's run has."""
        return cls(Path(recipe.run.folder).expanduser() / recipe.run.name)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Returns an existing run.

        Raises:
            UserError: There is no run at `path`; the nearest one beside it, or in `runs/`, is shown.
        """
        run = cls(Path(path).expanduser())
        if not run.recipe.is_file():
            places = dict.fromkeys((run.path.parent, Path("runs")))
            known = {file.parent.name: str(file.parent) for place in places for file in place.glob("*/recipe.yaml")}
            near = nearest(run.path.name, known)
            raise UserError(
                f"There is no run at {path}.",
                why="A run folder holds a recipe.yaml.",
                fix=f"Did you mean '{known[near]}'?" if near else did_you_mean(str(path), sorted(known.values())),
            )
        return run

    @property
    def recipe(self) -> Path:
        """The resolved recipe, every default written out."""
        return self.path / "recipe.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, hashes, seed and strategy."""
        return self.path / "provenance.json"

    @property
    def data(self) -> Path:
        """Folder with the pairs, the split manifest and, where the data lists all answers, the questions."""
        return self.path / "data"

    @property
    def reference(self) -> Path:
        """Folder with the reference log-probs that this run reads, whatever becomes of the user's cache."""
        return self.data / "reference"

    @property
    def checkpoints(self) -> Path:
        """Folder with the intermediate checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Folder with the final adapter."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """Folder with the final model, where the whole model was trained."""
        return self.path / "model"

    @property
    def merged(self) -> Path:
        """Folder with base and adapter as one model, where `lora-dpo run` has made it."""
        return self.path / "merged"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        """Folder with what was measured of each pair, question and answer."""
        return self.path / "evaluation"

    @property
    def outcomes(self) -> Path:
        """Every held-out question before and after, one a line."""
        return self.evaluation / "questions.jsonl"

    @property
    def report_json(self) -> Path:
        """The report for machines; written last, so its presence means that the run is complete."""
        return self.path / "report.json"

    @property
    def report_md(self) -> Path:
        """The report for people."""
        return self.path / "report.md"

    @property
    def plots(self) -> Path:
        """Folder with the pictures."""
        return self.path / "plots"

    @property
    def stop_file(self) -> Path:
        """Whoever creates this file asks the run to save and leave; its text says why."""
        return self.path / "stop"

    @property
    def stopped(self) -> Path:
        """Why and after which step the run left before its end; not there while it runs, nor once it is through."""
        return self.path / "stopped.json"

    @property
    def tensorboard(self) -> Path:
        """Folder with TensorBoard's files, where `train.report_to` asks for them."""
        return self.path / "tensorboard"

    @property
    def slurm(self) -> Path:
        """Folder with the record and the logs of the run's cluster jobs; it outlives `--overwrite`."""
        return self.path / "slurm"

    @property
    def is_run(self) -> bool:
        """Whether `create` made this folder: a recipe.yaml that somebody wrote by hand does not make it a run."""
        try:
            with self.recipe.open(encoding="utf-8", errors="replace") as file:
                return file.readline() == _MARK
        except OSError:
            return False

    @property
    def is_complete(self) -> bool:
        """Whether the run went through to its report."""
        return self.report_json.is_file()

    def is_finished(self, recipe: Recipe) -> bool:
        """Returns whether a run of exactly this recipe went through, so that there is nothing to do."""
        return self.is_complete and self.is_run and same_run(self.load_recipe(), recipe)

    @property
    def has_begun(self) -> bool:
        """Whether the run that was stopped last had made a step, so that there is something to go on from."""
        try:
            return json.loads(self.stopped.read_text(encoding="utf-8"))["step"] is not None
        except (OSError, ValueError, KeyError):
            return False

    def load_recipe(self) -> Recipe:
        """Returns the recipe as it was resolved for this run."""
        return load_recipe(self.recipe)

    def began_with(self, resume: str) -> bool:
        """Returns whether the run here began where `run.resume` says; it then goes on with what it has done since."""
        return self.is_run and self.load_recipe().run.resume == resume

    def check_free(self, recipe: Recipe, *, overwrite: bool) -> None:
        """Checks that a run may be written here: a new one, or an unfinished one that goes on.

        Args:
            recipe: What is to be run.
            overwrite: Whether an earlier run may be replaced.

        Raises:
            UserError: Something is here already and may not be replaced.
        """
        existing = next(place for place in (self.path, *self.path.parents) if os.path.lexists(place))
        if not existing.is_dir():
            raise UserError(
                f"{existing} is a file, so {self.path} cannot become the run's folder.",
                fix="Choose another run.name or run.folder.",
            )
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{existing} may not be written to.", fix="Choose another run.folder.")
        if not self.path.is_dir() or all(_of_no_run(file) for file in self.path.iterdir()):
            return
        if not self.is_run:
            raise UserError(
                f"{self.path} holds files that are not a run's; nothing in it was touched.",
                fix="Choose another run.name or run.folder.",
            )
        if not overwrite:
            self._check_goes_on(recipe)

    def _check_goes_on(self, recipe: Recipe) -> None:
        if self.is_complete or recipe.run.resume == "never":
            state = "a finished run" if self.is_complete else "an unfinished run"
            go_on = "" if self.is_complete else " Without run.resume=never it goes on."
            raise UserError(
                f"{self.path} holds {state}, which is never overwritten by accident.",
                fix=f"Give another name with run.name=NAME, or replace it with --overwrite.{go_on}",
            )
        if changed := changed_meaning(self.load_recipe(), recipe):
            raise UserError(
                f"{self.path} holds an unfinished run of another recipe, so it cannot go on with this one.",
                why="\n".join(changed),
                fix="Take the old values to go on, give another name by run.name=NAME, or use --overwrite.",
            )

    def create(self, recipe: Recipe, *, overwrite: bool) -> FileLock:
        """Makes the folder and writes the resolved recipe.

        Of an earlier run everything that a run writes is put aside, until `discard_replaced` removes it or
        `restore_replaced` puts it back; what else was put beside it stays.

        Returns:
            The lock that this process holds on the folder until it ends.

        Raises:
            UserError: Something is here already and may not be replaced, or another process writes here.
        """
        self.check_free(recipe, overwrite=overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.lock()
        if self._replaced.is_dir() and not self.is_run:  # a start was killed while it put an earlier run aside
            self.restore_replaced()
            self.check_free(recipe, overwrite=overwrite)
        if self._replaced.is_dir():  # what is here now is of a start that never made a step
            self._remove_results()
        else:
            self._move_results(self.path, self._replaced)
        write_text(self.recipe, _MARK + to_yaml(recipe))
        return lock

    def reopen(self, recipe: Recipe) -> FileLock:
        """Takes an unfinished run up again; its results stay.

        Returns:
            The lock that this process holds on the folder until it ends.

        Raises:
            UserError: Another process writes here.
        """
        lock = self.lock()
        self.stopped.unlink(missing_ok=True)
        write_text(self.recipe, _MARK + to_yaml(recipe))
        return lock

    def lock(self) -> FileLock:
        """Takes the folder, which must be there, for this process; it may do so more than once.

        Raises:
            UserError: Another process writes here.
        """
        lock = FileLock(self.path / _LOCK, is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"Another process is writing the run {self.path}.", fix="Wait for it, or choose another run.name."
            ) from None
        return lock

    def discard_replaced(self) -> None:
        """Removes what `create` put aside."""
        discarded = self._replaced.with_name(_DISCARDED)
        shutil.rmtree(discarded, ignore_errors=True)
        if self._replaced.is_dir():
            self._replaced.rename(discarded)  # from now on nothing brings it back, though a file may be undeletable
            shutil.rmtree(discarded, ignore_errors=True)

    def restore_replaced(self) -> None:
        """Puts back what `create` put aside, if it is still there."""
        if self._replaced.is_dir():
            self._remove_results()
            self._move_results(self._replaced, self.path)
            self._replaced.rmdir()

    @property
    def _replaced(self) -> Path:
        return self.path / _REPLACED

    def _move_results(self, source: Path, target: Path) -> None:
        for file in self._results():
            if (source / file.name).exists() or (source / file.name).is_symlink():
                target.mkdir(exist_ok=True)
                (source / file.name).rename(target / file.name)
            remove(partial_path(source / file.name))

    def _remove_results(self) -> None:
        for file in self._results():
            remove(file)
            remove(partial_path(file))

    def _results(self) -> tuple[Path, ...]:
        folders = (
            *(self.data, self.checkpoints, self.adapter, self.model, self.merged, self.plots, self.tensorboard),
            self.evaluation,
        )
        files = (self.report_json, self.report_md, self.metrics, self.provenance, self.stopped)
        return (*files, *folders, self.recipe)  # the recipe comes last: without it the folder is nobody's run


def _of_no_run(file: Path) -> bool:
    """Returns whether a file in a run folder may be there without a run.

    That is what a start that was killed has left, the record of a job that has yet to begin, and runs of their own, as
    folds are that were trained one by one.
    """
    name = file.name
    left = name in (_LOCK, "stop", "slurm", _REPLACED, _DISCARDED) or (
        name.startswith(".") and name.endswith(".partial")
    )
    return left or RunFolder(file).is_run
