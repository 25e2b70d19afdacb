//! The threads that share the work of a step.

use std::ops::Range;

use rayon::ThreadPool;

/// Pieces of work for each thread: another program that holds up one thread then holds up one piece.
const PIECES_PER_THREAD: usize = 2;

/// A fixed number of threads. A team of one works on the thread that calls it.
#[derive(Debug)]
pub(crate) struct Team {
    /// `None`: one thread.
    pool: Option<ThreadPool>,
    threads: usize,
}

impl Team {
    /// A team of `threads`, or of one where the system starts no more.
    pub(crate) fn new(threads: usize) -> Self {
        let build = || rayon::ThreadPoolBuilder::new().num_threads(threads).build().ok();
        let pool = if threads > 1 { build() } else { None };
        let threads = pool.as_ref().map_or(1, ThreadPool::current_num_threads);
        Self { pool, threads }
    }

    /// Runs a step on the team: it may call the other functions any number of times, without waiting
    /// for threads to wake up.
    pub(crate) fn enter<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(step),
            None => step(),
        }
    }

    /// Shares the numbers 0 to `count` out in ranges.
    pub(crate) fn share(&self, count: usize, work: &(impl Fn(Range<usize>) + Sync)) {
        if self.threads == 1 {
            return work(0..count);
        }
        share(0..count, count.div_ceil(self.threads * PIECES_PER_THREAD).max(1), work);
    }

    /// Shares out a table of rows of `width`: `work` gets the index of its first row, and its rows.
    pub(crate) fn share_rows<T: Send>(
        &self,
        table: &mut [T],
        width: usize,
        work: &(impl Fn(usize, &mut [T]) + Sync),
    ) {
        if self.threads == 1 {
            return work(0, table);
        }
        let rows = table.len() / width.max(1);
        share_rows(0, table, width, rows.div_ceil(self.threads * PIECES_PER_THREAD).max(1), work);
    }

    /// Shares out a table that lies in parts, one after the other, `length` of each in numbers of the
    /// table: `work` gets some parts and what they cover.
    pub(crate) fn share_parts<P: Sync, T: Send>(
        &self,
        parts: &[P],
        length: &(impl Fn(&P) -> usize + Sync),
        table: &mut [T],
        work: &(impl Fn(&[P], &mut [T]) + Sync),
    ) {
        if self.threads == 1 {
            return work(parts, table);
        }
        // Parts may differ much in what they cost.
        let piece = parts.len().div_ceil(self.threads * 4 * PIECES_PER_THREAD).max(1);
        share_parts(parts, length, table, piece, work);
    }
}

/// Halves the range until it is no longer than `piece`.
fn share(range: Range<usize>, piece: usize, work: &(impl Fn(Range<usize>) + Sync)) {
    if range.len() <= piece {
        return work(range);
    }
    let middle = range.start + range.len() / 2;
    rayon::join(
        || share(range.start..middle, piece, work),
        || share(middle..range.end, piece, work),
    );
}

fn share_rows<T: Send>(
    first: usize,
    table: &mut [T],
    width: usize,
    piece: usize,
    work: &(impl Fn(usize, &mut [T]) + Sync),
) {
    let rows = table.len() / width.max(1);
    if rows <= piece {
        return work(first, table);
    }
    let (upper, lower) = table.split_at_mut(rows / 2 * width);
    rayon::join(
        || share_rows(first, upper, width, piece, work),
        || share_rows(first + rows / 2, lower, width, piece, work),
    );
}

fn share_parts<P: Sync, T: Send>(
    parts: &[P],
    length: &(impl Fn(&P) -> usize + Sync),
    table: &mut [T],
    piece: usize,
    work: &(impl Fn(&[P], &mut [T]) + Sync),
) {
    if parts.len() <= piece {
        return work(parts, table);
    }
    let (first, second) = parts.split_at(parts.len() / 2);
    let (upper, lower) = table.split_at_mut(first.iter().map(length).sum());
    rayon::join(
        || share_parts(first, length, upper, piece, work),
        || share_parts(second, length, lower, piece, work),
    );
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_number_and_every_row_has_one_turn() {
        for threads in [1, 2, 3] {
            let team = Team::new(threads);
            for count in [0, 1, 2, 7, 40] {
                let turns: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                let mut table = vec![usize::MAX; count * 3];
                team.enter(|| {
                    team.share(count, &|range| {
                        range.for_each(|at| {
                            turns[at].fetch_add(1, Ordering::Relaxed);
                        });
                    });
                    team.share_rows(&mut table, 3, &|first, rows| {
                        rows.iter_mut().enumerate().for_each(|(at, cell)| *cell = first * 3 + at);
                    });
                });
                assert!(turns.iter().all(|turns| turns.load(Ordering::Relaxed) == 1));
                assert!(table.iter().copied().eq(0..count * 3));
                let parts: Vec<usize> = (0..count).collect();
                let mut table = vec![usize::MAX; parts.iter().sum()];
                team.enter(|| {
                    team.share_parts(&parts, &|part| *part, &mut table, &|parts, table| {
                        let mut at = 0;
                        for part in parts {
                            table[at..at + part].fill(*part);
                            at += part;
                        }
                        assert_eq!(at, table.len());
                    });
                });
                assert!(table.is_sorted() && !table.contains(&usize::MAX));
            }
        }
    }
}
