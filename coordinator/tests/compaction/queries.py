"""Runs what docs/dataset.md shows, in the directory of a run, and prints the answers as JSON.

Every table that the document describes must have the columns and types it says; every query must
have an answer; every program must leave one in `answer`.
"""

import json
import math
import re
import sys

import duckdb
import pandas

document = open(sys.argv[1], encoding="utf-8").read()


def described(section):
    """Columns and types of a table's section."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE)
    return {name: kind for name, kind in rows}


def plain(value):
    """A value as JSON has it. Floats are single precision in the files."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def short(value):
    return round(float(value), 3)


def pairs(answer):
    """A pandas series or a Polars frame as rows."""
    if isinstance(answer, pandas.Series):
        return [[key, short(value)] for key, value in answer.items()]
    return [[key, short(value)] for key, value in answer.iter_rows()]


tables, questions, programs = {}, {}, {}
for section in re.split(r"^#{2,3} ", document, flags=re.MULTILINE)[1:]:
    title = section.split("\n", 1)[0]
    columns = described(section)
    if columns:
        found = duckdb.sql(f"describe select * from '{title}/*.parquet'").fetchall()
        found = {name: kind for name, kind, *_ in found}
        if found != columns:
            sys.exit(f"{title} is described as {columns}, and is {found}")
        tables[title] = len(columns)
    for query in re.findall(r"^```sql\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        rows = duckdb.sql(query).fetchall()
        if not rows:
            sys.exit(f"no answer to: {title}")
        questions[title] = [[plain(value) for value in row] for row in rows]
    for program in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        names = {}
        exec(program, names)
        programs[program.split()[1]] = pairs(names["answer"])
json.dump({"tables": tables, "questions": questions, "programs": programs}, sys.stdout)
