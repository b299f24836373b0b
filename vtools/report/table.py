"""The summary for people, as a table and as a chart."""

from typing import Any

from vtools.report import grades


def text_of_all(measured: dict[str, Any]) -> str:
    """All tables for people."""
    texts = [*map(text, [*measured["pairs"], *measured["panels"]])]
    if measured["grades"]:
        texts.append(grades.text(measured["grades"]))
    texts += [ratings(each) for each in measured["ratings"]]
    return "\n\n".join(texts)


def ratings(found: dict[str, Any]) -> str:
    """The ratings of one group of models, the best first."""
    width = max(len("model"), *(len(row["model"]) for row in found["models"]))
    lines = [f"ratings against {found['baseline']}", f"{'model':<{width}}  {'rating':>7}  {'95 %':>14}  {'rank':>7}"]
    for row in found["models"]:
        ends = "-" if row["rating_ci"] is None else "{:+.0f} to {:+.0f}".format(*row["rating_ci"])
        rank = "-" if row["rank"] is None else "{}-{}".format(*row["rank"])
        lines.append(f"{row['model']:<{width}}  {row['rating']:>+7.0f}  {ends:>14}  {rank:>7}")
    return "\n".join(lines)


def text(table: dict[str, Any]) -> str:
    """The table for people."""
    lines = [f"A: {table['a']}", f"B: {table['b']}", who(table), ""]
    agreed = ("all judges agree", f"{table['agreed']}/{table['by_several']}") if "judges" in table else orders(table)
    by_game = table.get("game_rate")
    unlike = by_game is not None and round(by_game - table["win_rate"], 6)
    rows = [
        ("questions", f"{table['questions']}, judged {table['judged']}, unparsed {table['unparsed']}"),
        agreed,
        ("B wins / ties / A wins", f"{table['b_wins']} / {table['ties']} / {table['a_wins']}"),
        ("B's win rate, ties half", share(table, "win_rate")),
        *([("B's share of all games", share(table, "game_rate"))] if unlike else []),
        ("B as good or better", f"{share(table, 'as_good')}, {table['b_wins'] + table['ties']}/{table['n']}"),
        ("total score", f"A {table['score_a']:.1f}, B {table['score_b']:.1f}"),
        ("B's score / A's", share(table, "score_ratio", digits=2)),
    ]
    if table["stopping"]:
        rows.insert(1, stopped(table["stopping"]))
    lines += [f"{name:<24} {value}" for name, value in rows]
    if table["categories"]:
        width = max(len(name) for name in [*table["categories"], "category"])
        lines += ["", f"{'category':<{width}}  {'n':>4} {'B wins':>7} {'ties':>5} {'A wins':>7} {'score B/A':>10}"]
        for name, row in table["categories"].items():
            ratio = "-" if row["score_ratio"] is None else f"{row['score_ratio']:.2f}"
            lines.append(
                f"{name:<{width}}  {row['n']:>4} {row['b_wins']:>7} {row['ties']:>5} {row['a_wins']:>7} {ratio:>10}"
            )
    lines += [""] * bool(table["warnings"]) + [f"warning: {warning}" for warning in table["warnings"]]
    return "\n".join(lines)


def who(table: dict[str, Any]) -> str:
    """Who judges."""
    if "judges" in table:
        return f"judges: {', '.join(table['judges'])}; each question goes to the model that more of them prefer"
    return f"judge: {table['judge']}"


def orders(table: dict[str, Any]) -> tuple[str, str]:
    """How often a judge's verdict changes with the order of the answers."""
    flips = "not known" if table["inconsistent"] is None else f"{table['inconsistent']:.1%}"
    if table["inconsistent"]:
        flips += f" (the first answer won both times {table['first_won']}, the second {table['second_won']})"
    return "orders disagree", flips


def share(table: dict[str, Any], name: str, digits: int = 1) -> str:
    """A measure with its interval, in percent."""
    if table[name] is None:
        return "-"
    text = f"{table[name]:.{digits}%}"
    ends = table[f"{name}_ci"]
    level = f"{100 * table['stopping']['level'] if table['stopping'] else 95:.4g} %"
    return text if ends is None else f"{text} ({level}: {ends[0]:.1%} to {ends[1]:.1%})"


def stopped(found: dict[str, Any]) -> tuple[str, str]:
    """The row of a run that could stop early: what it decided, and after how many questions."""
    after, sure = f"after {found['after']} of {found['of']} questions", f"{100 * found['level']:.4g} % sure"
    if not found["decided"]:
        return "not decided", f"{after}: not {sure} which is better"
    name = "stopped early" if found["after"] < found["of"] else "decided"
    return name, f"{after}: {sure} that {found['decided'].upper()} is better"


def picture(path: str, tables: list[dict[str, Any]]) -> bytes:
    """Wins, ties and losses: one bar for each pair and, below it, for each of its categories."""
    from vtools import plots

    rows = []
    for table in tables:
        rows.append((f"B: {table['b']}\nA: {table['a']}", bar(table)))
        rows += [(name, bar(row)) for name, row in table["categories"].items()]
    names = (name for table in tables for name in table.get("judges") or [table["judge"]])
    judges = ", ".join(dict.fromkeys(names))
    title = f"Judged by {judges}\nThe further B's wins reach to the right, the better B"
    return plots.stacked_bars(path, title, "share of the questions", rows)


def bar(counted: dict[str, Any]) -> dict[str, int]:
    """The parts of a bar."""
    return {name: counted[key] for name, key in (("B wins", "b_wins"), ("tie", "ties"), ("A wins", "a_wins"))}
