"""Short recoveries of pruning's finalists, shared among machines through an Optuna study.

Only training is shared: what a model takes on the target is measured on the target. The process that prunes puts the
names of the finalists into the study and works on them itself; processes that joined take the others. What one of them
took and did not finish in time is done again here, so a worker that dies costs time and nothing else.
"""

from __future__ import annotations

__all__ = ["Study", "check_storage", "open_study"]

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from deploykit.errors import MissingDependencyError, UsageError
from deploykit.events import Listener, Note
from deploykit.machine import cpu_model

Result = Mapping[str, Any]
_POLL_S = 0.5
_PATIENCE = 3.0
"""A piece of work that takes another process this many times as long as the longest here is taken back."""
_LEAST_S = 30.0
_IDLE_S = 600.0
"""A worker goes when there was nothing to do for as long."""


class Study:
    """Named pieces of work in a shared storage, and what came of each.

    Args:
        study: Optuna's.
        listener: hears of progress.
    """

    def __init__(self, study: Any, listener: Listener) -> None:
        self._study, self._listener = study, listener
        self._longest_s = 0.0

    def share(self, names: Sequence[str], do: Callable[[str], Result]) -> dict[str, Result]:
        """The results of all pieces of work, some of them of other processes.

        Args:
            names: of the work, the same to all processes.
            do: does one.
        """
        queued = {self._name(trial) for trial in self._trials("WAITING", "RUNNING", "COMPLETE")}
        for name in names:
            if name not in queued:
                self._study.enqueue_trial({}, user_attrs={"work": name})
        waited = time.monotonic()
        while missing := [name for name in names if name not in self._results()]:
            if self._next(do):
                waited = time.monotonic()
                continue
            overdue = time.monotonic() - waited > max(_LEAST_S, _PATIENCE * self._longest_s)
            taken = set() if overdue else {self._name(trial) for trial in self._trials("WAITING", "RUNNING")}
            lost = [name for name in missing if name not in taken]
            if lost:
                self._listener(Note(f"{lost[0]}: taken by another process and not finished, done here"))
                self._study.enqueue_trial({}, user_attrs={"work": lost[0]})
            else:
                time.sleep(_POLL_S)
        found = self._results()
        return {name: found[name] for name in names}

    def close(self) -> None:
        """Let the workers go: there is no more to share."""
        self._study.set_user_attr("closed", True)

    def work(self, do: Callable[[str], Result], *, idle_s: float = _IDLE_S) -> int:
        """Do what another process shares until it closes the study; how many pieces were done."""
        count, waited = 0, time.monotonic()
        while not self._study.user_attrs.get("closed") and time.monotonic() - waited < idle_s:
            if self._next(do):
                count, waited = count + 1, time.monotonic()
            else:
                time.sleep(_POLL_S)
        return count

    def _next(self, do: Callable[[str], Result]) -> bool:
        """Do a piece that nobody has taken; whether there was one."""
        from optuna.trial import TrialState

        if not self._trials("WAITING"):
            return False
        trial = self._study.ask()  # where another process was quicker it is a new one, with nothing to do
        name = trial.user_attrs.get("work")
        if name is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return False
        begun = time.monotonic()
        try:
            result = do(name)
        except BaseException:
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        self._longest_s = max(self._longest_s, time.monotonic() - begun)
        trial.set_user_attr("result", json.dumps(dict(result)))
        trial.set_user_attr("machine", cpu_model())
        self._study.tell(trial, float(result["loss"]))
        return True

    def _results(self) -> dict[str, Result]:
        return {self._name(trial): json.loads(trial.user_attrs["result"]) for trial in self._trials("COMPLETE")}

    def _trials(self, *states: str) -> list[Any]:
        from optuna.trial import TrialState

        found = self._study.get_trials(deepcopy=False, states=tuple(TrialState[state] for state in states))
        return [trial for trial in found if self._name(trial)]

    @staticmethod
    def _name(trial: Any) -> str:
        return str(trial.user_attrs.get("work", ""))


def open_study(url: str, key: str, listener: Listener, *, join: bool = False) -> Study:
    """The study of this work in a storage that others reach too.

    Args:
        url: `sqlite:///FILE`, `postgresql://...`, `mysql://...`, or the path of a journal file (for network folders).
        key: the digest of all that decides the work: those may join who have the same.
        listener: hears of progress.
        join: work for a study that is there, and make none.

    Raises:
        MissingDependencyError: Optuna is not installed.
        UsageError: the storage can't be opened, or has no study of this work.
    """
    with _storage(url) as (optuna, storage):
        name = f"deploykit-{key[:16]}"
        others = optuna.get_all_study_names(storage)
        if name not in others and join:
            raise UsageError(
                f"no study of this model, data and settings there (there: {', '.join(others) or 'none'})",
                "start the command that prunes first; a worker needs the same model folder, data and options",
            )
        study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
        if not join:
            study.set_user_attr("closed", False)
        return Study(study, listener)


def check_storage(url: str) -> None:
    """See that a storage can be opened, before the work that needs it in the end.

    Raises:
        MissingDependencyError: Optuna is not installed.
        UsageError: it can't be opened.
    """
    with _storage(url) as (optuna, storage):
        optuna.get_all_study_names(storage)


@contextlib.contextmanager
def _storage(url: str) -> Iterator[tuple[Any, Any]]:
    """Optuna and a storage; what goes wrong with it inside is the user's to hear."""
    try:
        import optuna
    except ImportError:
        raise MissingDependencyError("--study needs Optuna", "pip install 'deploykit[search]'") from None
    import sqlalchemy  # Optuna's own, for all but journal files
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells of each study on the screen
    try:
        storage: Any = url if "://" in url else JournalStorage(JournalFileBackend(url))
        yield optuna, storage
    except (
        ImportError, OSError, ValueError, optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError,
    ) as error:  # fmt: skip
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--study can't be opened: {reason}", "sqlite:///FILE, a database's URL, or a file") from error
