"""All that is measured of judgments, as one object: what `--json` prints, and what the table and the page show."""

from typing import Any

from vtools.report import agreement, bias, checks, grades, human, panel, ranking, summary
from vtools.report.units import Judgments, Rule


def measure(
    judgments: Judgments,
    votes: Judgments | None = None,
    rule: Rule = "mean",
    davidson: bool = False,
    baseline: str | None = None,
) -> dict[str, Any]:
    """The measures of all judgments, by what they are of.

    `pairs`: a table for each judge and two models, each with what people's votes correct under `human`; `panels`: one
    for each two models that several judges judged; `ratings`: of three models or more, a scale for each group that
    games connect; `length_adjusted`: win rates of five models or more against one; `grades`: of single answers;
    `checks`: pass@k; `agreement`: of several judges; `own_family`: how judges treat their own; `copies`: rows that were
    there twice. Raises Failure for a field `stopping` that is not ours.
    """
    tables = [summary.summarise(pair, list(units.values()), rule, judgments) for pair, units in judgments.pairs.items()]
    by_people = human.calibrate(judgments, votes, rule) if votes else {}
    for pair, table in zip(judgments.pairs, tables, strict=True):
        table["human"] = by_people.get(pair)
    panels = panel.tables(judgments.pairs, rule)
    summary.decide(tables)
    summary.decide(panels)
    graded = judgments.grades | panel.grades(judgments.grades)
    return {
        "pairs": tables,
        "panels": panels,
        "ratings": ranking.ratings(judgments, davidson, baseline),
        "length_adjusted": ranking.by_length(judgments, rule, baseline),
        "grades": [grades.summarise(each, own) for each, own in graded.items()],
        "checks": [checks.summarise(model, questions) for model, questions in judgments.checks.items()],
        "agreement": agreement.between(judgments, rule),
        "own_family": bias.own_family(judgments, votes, rule),
        "copies": judgments.copies,
    }
