//! Text tables: the first column to the left, numbers to the right.

/// Lays `rows` out under `header`. Every row has as many cells as the header.
pub(crate) fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut lines = vec![line(&header.map(String::from), &widths)];
    lines.push(widths.map(|width| "-".repeat(width)).join("  "));
    lines.extend(rows.iter().map(|row| line(row, &widths)));
    lines.join("\n")
}

fn line<const N: usize>(cells: &[String; N], widths: &[usize; N]) -> String {
    let mut padded = Vec::with_capacity(N);
    for (index, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        padded.push(if index == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") });
    }
    padded.join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "10".to_owned()], ["long".to_owned(), "2".to_owned()]];
        assert_eq!(
            render(["arm", "success"], &rows),
            "arm   success\n----  -------\na          10\nlong        2"
        );
    }
}
