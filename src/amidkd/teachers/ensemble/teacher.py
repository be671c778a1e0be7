"""Several teachers as one: which of them speak of which tokens, and with what weights."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from amidkd.config import EnsembleTeacher as EnsembleTeacherConfig
from amidkd.errors import SettingError
from amidkd.signals import Signal
from amidkd.teachers.base import Group, Grouped, Teacher
from amidkd.teachers.ensemble.drop import staying
from amidkd.teachers.ensemble.outcomes import common_outcomes
from amidkd.teachers.ensemble.rows import some_rows, teachers_of_rows
from amidkd.teachers.ensemble.search import search_weights

if TYPE_CHECKING:
    from amidkd.data import Example, Row, Sequences

__all__ = ["EnsembleTeacher", "make_ensemble"]


@final
class EnsembleTeacher:
    """Several teachers. What each token's teachers say is handed on; the objective mixes them with the student.

    Args:
        config: The run file's section.
        members: Its teachers, made, in order.
        seed: Of what is drawn at random: which teachers a step leaves out.
    """

    def __init__(self, config: EnsembleTeacherConfig, members: Sequence[Teacher], *, seed: int = 0) -> None:
        if len(members) != len(config.teachers):
            raise ValueError(f"EnsembleTeacher needs {len(config.teachers)} members; got {len(members)}")
        self.members = tuple(members)
        self.vocab_size = min(member.vocab_size for member in members)
        self._config, self._seed = config, seed
        self._titles = [member.title for member in config.teachers]
        self._weights: list[float] | None = None
        self._row_members: Tensor | None = None
        self._step = 0
        if isinstance(config.weights, list):
            self.set_weights(config.weights)
        elif config.weights == "uniform":
            self.set_weights([1.0] * len(members))

    @property
    def in_process(self) -> bool:
        """Whether all of them compute in this process."""
        return all(member.in_process for member in self.members)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """What each teacher counts for, with the sum 1; None: it depends on the row, or is not known yet."""
        return None if self._weights is None else tuple(self._weights)

    def set_weights(self, weights: Sequence[float]) -> None:
        """Say what each teacher counts for.

        Args:
            weights: One number of at least 0 for each teacher, not all 0; their sum does not matter.
        """
        total = sum(weights)
        if len(weights) != len(self.members) or min(weights) < 0 or not total > 0:
            raise ValueError(f"weights must be {len(self.members)} numbers of at least 0, not all 0; got {weights}")
        self._weights = [weight / total for weight in weights]

    def set_rows(self, rows: Iterable["Row"]) -> dict[int, int]:
        """Say which rows are whose, before any is asked for (``weights: by_row``).

        Args:
            rows: All rows that will come, with ``teacher_id``.

        Returns:
            Number of the teacher by ``Row.index``.

        Raises:
            SettingError: A row names no teacher of this ensemble; the message has its place.
        """
        found = teachers_of_rows(rows, self._titles)
        members = torch.full((1 + max(found, default=-1),), -1)
        for row, member in found.items():
            members[row] = member
        self._row_members = members
        return found

    def choose_weights(
        self,
        examples: Sequence["Example"],
        *,
        pad_id: int,
        batch_size: int,
        alpha: float = -1.0,
        device: torch.device | str = "cpu",
    ) -> list[float]:
        """The weights with which the teachers' mixture is likeliest on labelled rows (``weights: search``).

        Args:
            examples: Held-out rows with supervised tokens; the first ``search.rows`` are looked at.
            pad_id: Token id of the padding.
            batch_size: Rows in a batch.
            alpha: α of the mixture: the objective's.
            device: Where the teachers' signals are looked at: the models' own is fastest.

        Returns:
            One weight for each teacher, with the sum 1. They are in force from now on.

        Raises:
            SettingError: There is no supervised token, SciPy is missing, or no weights make the rows possible.
        """
        settings = self._config.search
        weights = search_weights(
            self.members,
            examples[: settings.rows],
            vocab_size=self.vocab_size,
            pad_id=pad_id,
            batch_size=batch_size,
            device=torch.device(device),
            alpha=alpha,
            iterations=settings.iterations,
            seed=settings.seed,
        )
        self.set_weights(weights)
        return weights

    def signal(self, sequences: "Sequences") -> Grouped:
        """What the teachers say about a batch; those that count for nothing in it are not asked.

        Args:
            sequences: A batch, on any device.

        Returns:
            One group of all tokens; with ``weights: by_row`` one for each teacher that has a row.

        Raises:
            SettingError: A row whose teacher is not known, or weights that were not searched yet.
            TeacherError: A teacher cannot answer now.
        """
        if self._config.weights == "by_row":
            return Grouped(tuple(self._by_row(sequences)))
        numbers, weights = self._present()
        signals = [self.members[number].signal(sequences) for number in numbers]
        return Grouped((Group(None, self._common(signals), weights),))

    def expect(self, batches: Sequence["Sequences"]) -> None:
        """Tell each teacher what it will be asked for; those that this step leaves out are told nothing."""
        if self._config.weights != "by_row":
            for number in self._present()[0]:
                self.members[number].expect(batches)
            return
        wanted: dict[int, list[Sequences]] = {}
        for batch in batches:
            for number, part, _ in self._parts(batch):
                wanted.setdefault(number, []).append(part)
        for number, parts in wanted.items():
            self.members[number].expect(parts)

    def begin_step(self, step: int) -> None:
        """Draw which teachers take part."""
        self._step = step
        for member in self.members:
            member.begin_step(step)

    def fingerprint(self) -> str:
        """SHA-256 of the teachers' fingerprints, the weights' setting and what is left out."""
        decides = {
            "members": [member.fingerprint() for member in self.members],
            "weights": self._config.weights,
            "names": self._titles if self._config.weights == "by_row" else None,
            "search": self._config.search.model_dump() if self._config.weights == "search" else None,
            "drop": [self._config.drop, self._seed] if self._config.drop > 0 else None,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def close(self) -> None:
        """Close every teacher, also where one of them fails to."""
        with ExitStack() as stack:
            for member in self.members:
                stack.callback(member.close)

    def _present(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The teachers that take part in this step, and their weights."""
        if self._weights is None:
            raise SettingError("teacher.weights = search: the weights were not searched; call choose_weights first")
        counting = [number for number, weight in enumerate(self._weights) if weight > 0]
        numbers = staying(counting, drop=self._config.drop, seed=self._seed, step=self._step)
        total = sum(self._weights[number] for number in numbers)
        return numbers, tuple(self._weights[number] / total for number in numbers)

    def _by_row(self, sequences: "Sequences") -> list[Group]:
        groups = []
        for number, part, place_n in self._parts(sequences):
            groups.append(Group(place_n, self._common([self.members[number].signal(part)]), (1.0,)))
        if groups:
            return groups
        # A batch of idle rows still needs a signal, of no token.
        return [Group(None, self._common([self.members[0].signal(sequences)]), (1.0,))]

    def _parts(self, sequences: "Sequences") -> list[tuple[int, "Sequences", Tensor]]:
        """The rows of each teacher: its number, its rows as a batch, and the places of their tokens in the whole."""
        if self._row_members is None:
            raise SettingError("teacher.weights = by_row: the rows' teachers are not known; call set_rows first")
        rows_B = sequences.rows_B.cpu()
        known = (rows_B >= 0) & (rows_B < len(self._row_members))
        member_B = torch.full_like(rows_B, -1)
        member_B[known] = self._row_members[rows_B[known]]
        lost = (rows_B >= 0) & (member_B < 0)
        if bool(lost.any()):
            raise SettingError(f"teacher.weights = by_row: row {int(rows_B[lost][0])} is none of those with a teacher")
        home = sequences.tokens_BT.device
        numbers = [number for number in range(len(self.members)) if bool((member_B == number).any())]
        return [(number, *some_rows(sequences, (member_B == number).to(home))) for number in numbers]

    def _common(self, signals: Sequence[object]) -> tuple[Signal, ...]:
        for signal in signals:
            if isinstance(signal, Grouped):
                raise TypeError("a teacher of an ensemble must give one signal; an ensemble of ensembles is flat")
        return common_outcomes(signals, vocab_size=self.vocab_size)  # type: ignore[arg-type]


def make_ensemble(config: EnsembleTeacherConfig, members: Sequence[Teacher], *, seed: int = 0) -> EnsembleTeacher:
    """Make several teachers one.

    Args:
        config: The run file's section.
        members: Its teachers, made, in order.
        seed: ``training.seed``: of which teachers a step leaves out.
    """
    return EnsembleTeacher(config, members, seed=seed)
