//! Sequences of unlike lengths in one pass: packed one after another, or padded to a grid.

use tch::{Device, Tensor};

/// How the tokens of several sequences, packed one after another, map to a padded [B, T] grid.
#[derive(Debug)]
pub(crate) struct Packing {
    /// Token index of every grid cell; padding repeats some real token. `None` when nothing is
    /// padded.
    cells: Option<Tensor>,
    /// Grid cell of every token; `None` when nothing is padded.
    tokens: Option<Tensor>,
    pub(crate) rows: i64,
    pub(crate) width: i64,
}

/// Rows that are run together: attention pads a group to its longest row, so a row that decodes one
/// token must not wait for one that prefills a tool's result. Within a group the longest row is less
/// than twice the shortest.
pub(crate) fn groups_of_like_length(appended: &[(usize, &[u32])]) -> Vec<Vec<usize>> {
    let length = |row: usize| appended[row].1.len();
    let mut order: Vec<usize> = (0..appended.len()).collect();
    order.sort_by_key(|row| length(*row));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for row in order {
        match groups.last_mut() {
            Some(group) if length(row) < 2 * length(group[0]) => group.push(row),
            _ => groups.push(vec![row]),
        }
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

/// How many of the first slots to read in place, the idle ones among them too: copying the keys and
/// values of a row costs more than attending to them. `None` where fewer than half of them would be
/// of use. The rows must come in the order of their slots.
pub(crate) fn rows_in_place(appended: &[(usize, &[u32])]) -> Option<usize> {
    let in_order = appended.is_sorted_by(|(one, _), (next, _)| one < next);
    let span = appended.last().map_or(0, |(slot, _)| slot + 1);
    (in_order && span <= 2 * appended.len()).then_some(span)
}

// === impl Packing ===

impl Packing {
    /// A row without tokens is all padding.
    pub(crate) fn new(lengths: &[usize], device: Device) -> Self {
        let width = lengths.iter().copied().max().unwrap_or(0);
        if lengths.iter().all(|length| *length == width) {
            let (rows, width) = (lengths.len() as i64, width as i64);
            return Self { cells: None, tokens: None, rows, width };
        }
        let (mut cells, mut tokens, mut start) = (Vec::new(), Vec::new(), 0);
        for (row, length) in lengths.iter().enumerate() {
            for column in 0..width {
                let token = if *length == 0 { 0 } else { start + column.min(length - 1) };
                cells.push(token as i64);
            }
            tokens.extend((0..*length).map(|column| (row * width + column) as i64));
            start += length;
        }
        Self {
            cells: Some(Tensor::from_slice(&cells).to(device)),
            tokens: Some(Tensor::from_slice(&tokens).to(device)),
            rows: lengths.len() as i64,
            width: width as i64,
        }
    }

    /// [N, ..] -> [B * T, ..]
    pub(crate) fn pad(&self, packed: &Tensor) -> Tensor {
        self.cells
            .as_ref()
            .map_or_else(|| packed.shallow_clone(), |cells| packed.index_select(0, cells))
    }

    /// [B * T, ..] -> [N, ..]
    pub(crate) fn unpad(&self, grid: &Tensor) -> Tensor {
        self.tokens
            .as_ref()
            .map_or_else(|| grid.shallow_clone(), |tokens| grid.index_select(0, tokens))
    }
}
