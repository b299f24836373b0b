"""How the measures of a report are worded, in the table and on the page."""

from collections.abc import Iterable
from typing import Any

from vtools.report import headline

Table = dict[str, Any]


def ordered(found: dict[str, Any]) -> list[Table]:
    """All tables of pairs: for each pair of models those of its judges, then that of all of them."""
    tables = [*found["pairs"], *found["panels"]]
    places = {pair: place for place, pair in enumerate(dict.fromkeys((table["a"], table["b"]) for table in tables))}
    return sorted(tables, key=lambda table: places[table["a"], table["b"]])


def sure(table: Table) -> str:
    """Which of a pair is surely better."""
    return {"a": "A", "b": "B"}.get(headline.better(table) or "", "unsure")


def rows(table: Table) -> Iterable[tuple[str, str]]:
    """The measures of a table, each with its name."""
    yield "questions", f"{table['questions']}, judged {table['judged']}, unparsed {table['unparsed']}"
    if table["stopping"]:
        yield stopped(table["stopping"])
    yield ("all judges agree", f"{table['agreed']}/{table['by_several']}") if "judges" in table else orders(table)
    yield "B wins / ties / A wins", f"{table['b_wins']} / {table['ties']} / {table['a_wins']}"
    yield "B's win rate, ties half", share(table, "win_rate")
    by_game = table.get("game_rate")
    if by_game is not None and round(by_game - table["win_rate"], 6):
        yield "B's share of all games", share(table, "game_rate")
    yield from certainty(table)
    yield "B as good or better", f"{share(table, 'as_good')}, {table['b_wins'] + table['ties']}/{table['n']}"
    yield "total score", f"A {table['score_a']:.1f}, B {table['score_b']:.1f}"
    yield "B's score / A's", share(table, "score_ratio", digits=2)


def certainty(table: Table) -> Iterable[tuple[str, str]]:
    """What else is known of the win rate: by the other rule, of what is missing, by people, and how sure it is."""
    if other := table.get("other_rule"):
        shares = f"{other['win_rate']:.1%}, {other['b_wins']} / {other['ties']} / {other['a_wins']}"
        yield f"the same, --ties {other['rule']}", shares
    if table.get("half_width"):
        yield "so many questions show", f"differences of {100 * table['half_width']:.0f} points or more"
    if table.get("p") is not None:
        holm = "" if table.get("p_holm") in (None, table["p"]) else f", {table['p_holm']:.2g} with all pairs (Holm)"
        yield "p if both were as good", f"{table['p']:.2g}{holm} (sign test)"
    bounds = table.get("bounds")
    if bounds and bounds[1] - bounds[0] > 1e-9:
        yield "if the missing went", f"to A {bounds[0]:.1%}, to B {bounds[1]:.1%}"
    if length := table.get("length"):
        ends = "" if length["longer_wins_ci"] is None else f" (95 %: {headline.percents(length['longer_wins_ci'])})"
        yield "the longer answer wins", f"{length['longer_wins']:.1%}{ends}, of {length['n']}"
    if human := table.get("human"):
        ends = "" if human["win_rate_ci"] is None else f" (95 %: {headline.percents(human['win_rate_ci'])})"
        if human["win_rate"] is not None:
            yield "corrected by people", f"{human['win_rate']:.1%}{ends}, votes on {human['questions']}"
        kappa = "" if human["kappa"] is None else f", kappa {human['kappa']:.2f}"
        ceiling = f"; people with each other {human['ceiling']['agreement']:.1%}" if human["ceiling"] else ""
        if human["agreement"] is not None:
            yield "agrees with people", f"{human['agreement']:.1%}{kappa}{ceiling}"


def who(table: Table) -> str:
    """Who judges."""
    if "judges" in table:
        return f"judges: {', '.join(table['judges'])}; each question goes to the model that more of them prefer"
    return f"judge: {table['judge']}"


def orders(table: Table) -> tuple[str, str]:
    """How often a judge's verdict changes with the order of the answers."""
    flips = "not known" if table["inconsistent"] is None else f"{table['inconsistent']:.1%}"
    if table["inconsistent"]:
        flips += f" (the first answer won both times {table['first_won']}, the second {table['second_won']})"
    return "orders disagree", flips


def share(table: Table, name: str, digits: int = 1) -> str:
    """A measure with its interval, in percent."""
    if table[name] is None:
        return "-"
    text, ends = f"{table[name]:.{digits}%}", table[f"{name}_ci"]
    return text if ends is None else f"{text} ({headline.level(table)}: {headline.percents(ends)})"


def stopped(found: Table) -> tuple[str, str]:
    """The row of a run that could stop early: what it decided, and after how many questions."""
    after, sure = f"after {found['after']} of {found['of']} questions", f"{100 * found['level']:.4g} % sure"
    if not found["decided"]:
        return "not decided", f"{after}: not {sure} which is better"
    name = "stopped early" if found["after"] < found["of"] else "decided"
    return name, f"{after}: {sure} that {found['decided'].upper()} is better"
