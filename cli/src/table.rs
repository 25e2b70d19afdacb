//! Text for people in columns: tables, and lists of named facts.

use crate::terminal::one_line;

/// Width of the names in a list of facts.
const LABEL: usize = 12;

/// Head of a column, and to which side its cells go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    title: &'static str,
    right: bool,
}

/// A column of words: cells to the left.
pub(crate) const fn text(title: &'static str) -> Column {
    Column { title, right: false }
}

/// A column of numbers: cells to the right.
pub(crate) const fn number(title: &'static str) -> Column {
    Column { title, right: true }
}

/// Lays `rows` out under their `columns`; `empty` if there are none.
pub(crate) fn render<const N: usize>(
    columns: [Column; N],
    rows: impl IntoIterator<Item = [String; N]>,
    empty: &str,
) -> String {
    let rows: Vec<[String; N]> =
        rows.into_iter().map(|row| row.map(|cell| one_line(&cell))).collect();
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut widths = columns.map(|column| column.title.len());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; N]| {
        let padded = cells.iter().zip(&columns).zip(&widths).map(|((cell, column), &width)| {
            if column.right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    // The last column may be long, and a rule of its length helps nobody.
    let rule =
        |index: usize| if index + 1 == N { columns[index].title.len() } else { widths[index] };
    let mut lines = vec![line(&columns.map(|column| column.title.to_owned()))];
    lines.push(line(&std::array::from_fn(|index| "-".repeat(rule(index)))));
    lines.extend(rows.iter().map(line));
    lines.join("\n")
}

/// One line per fact, its name in front.
pub(crate) fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let line = |(label, fact): (&str, String)| format!("{label:<LABEL$} {}", one_line(&fact));
    facts.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A value that may be absent, as a cell.
pub(crate) fn optional<T>(value: Option<T>, shape: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), shape)
}

/// Seconds since the start of a run as h:mm:ss.
pub(crate) fn clock(seconds: f64) -> String {
    // The cast saturates, so a number that is none becomes 0.
    let whole = seconds as u64;
    format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(row: [&str; 2]) -> [String; 2] {
        row.map(str::to_owned)
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [cells(["10", "a"]), cells(["2", "long text"])];
        let table = render([number("episode"), text("fault")], rows, "none");
        assert_eq!(table, "episode  fault\n-------  -----\n     10  a\n      2  long text");
        assert_eq!(render([number("episode")], [], "none yet"), "none yet");
    }

    #[test]
    fn no_cell_breaks_out_of_its_line() {
        let table = render([text("a"), text("b")], [cells(["x\ny", "\u{1b}[2J"])], "");
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(table.contains("x\\ny  \\u{1b}[2J"), "{table}");
    }

    #[test]
    fn a_clock_counts_hours() {
        let clocks = [0.9, 61.0, 36_000.5, -1.0, f64::NAN].map(clock);
        assert_eq!(clocks, ["0:00:00", "0:01:01", "10:00:00", "0:00:00", "0:00:00"]);
    }
}
