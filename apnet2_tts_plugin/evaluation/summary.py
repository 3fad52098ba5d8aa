"""What all reports show of a comparison: its columns, the systems' means, their differences to the first system."""

from dataclasses import dataclass

from apnet2_tts_plugin.evaluation.compare import SPEED, Comparison
from apnet2_tts_plugin.evaluation.statistics import Difference, mean, paired_difference


@dataclass(frozen=True)
class Column:
    """A metric, or the speed, in a report.

    Attributes:
        name: In CSV and JSON.
        title: In tables, with the unit.
        better: 1 if more is better, -1 if less is.
        digits: Behind the point.
        source: Where the definition is from.
    """

    name: str
    title: str
    better: int
    digits: int
    source: str

    def shown(self, value: float | None) -> str:
        """A value with its digits."""
        return "-" if value is None else f"{value:.{self.digits}f}"

    def shown_difference(self, item: Difference | None) -> str:
        """A difference with its interval."""
        digits = self.digits
        return "-" if item is None else f"{item.mean:+.{digits}f} [{item.low:+.{digits}f}, {item.high:+.{digits}f}]"


@dataclass(frozen=True)
class Summary:
    """Figures over all files, by system and then by column.

    Attributes:
        means: Of each system.
        differences: Of each system but the first, to the first.
    """

    means: dict[str, dict[str, float | None]]
    differences: dict[str, dict[str, Difference | None]]


def columns(comparison: Comparison) -> list[Column]:
    """The metrics that were computed, and the speed."""
    metrics = [Column(m.name, m.title, m.better, m.digits, m.source) for m in comparison.metrics]
    return [*metrics, Column(SPEED, "Times real time", 1, 1, comparison.conditions)]


def summarise(comparison: Comparison) -> Summary:
    """Means and differences of all columns."""
    names = [column.name for column in columns(comparison)]
    values = {
        system: {name: [scores.values[system][name] for scores in comparison.scores] for name in names}
        for system in comparison.systems
    }
    first, *others = comparison.systems
    return Summary(
        {system: {name: mean(values[system][name]) for name in names} for system in comparison.systems},
        {
            system: {name: paired_difference(values[system][name], values[first][name]) for name in names}
            for system in others
        },
    )
