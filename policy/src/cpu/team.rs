//! The threads that share the work of a step.
//!
//! A step is some hundred pieces of work with a few microseconds between them: waking a thread takes
//! longer than most of them. So a member that has nothing to do looks out for the next piece for a
//! while before it sleeps, and the thread that calls is a member itself.

use std::{
    any::Any,
    hint,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    slice,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Looks before a member sleeps: some tens of microseconds.
const LOOKS: usize = 2000;
/// Pieces of work for each thread: a thread that another program holds up leaves its share to the
/// others.
const PIECES_PER_THREAD: usize = 4;

/// A fixed number of threads; a team of one is the thread that calls.
#[derive(Debug)]
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Grows by one with every task.
    tasks: AtomicUsize,
    /// Workers that have not finished the task.
    busy: AtomicUsize,
    state: Mutex<State>,
    /// There is a new task, or the end.
    called: Condvar,
}

#[derive(Debug, Default)]
struct State {
    task: Option<Task>,
    /// Of a worker, in the task at hand.
    panic: Option<Box<dyn Any + Send>>,
    asleep: usize,
    ended: bool,
}

/// What every member runs once.
#[derive(Clone, Copy)]
struct Task(*const (dyn Fn() + Sync));

// SAFETY: what it points to is `Sync`, and outlives its use: see `Team::run`.
unsafe impl Send for Task {}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl Team {
    /// A team of `threads`, or of as many as the system starts.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            tasks: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            state: Mutex::default(),
            called: Condvar::new(),
        });
        let worker = |_| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("decode".into()).spawn(move || shared.work()).ok()
        };
        let workers = (1..threads).map_while(worker).collect();
        Self { shared, workers }
    }

    /// Shares the numbers 0 to `count` out in ranges.
    pub(crate) fn share(&self, count: usize, work: &(impl Fn(Range<usize>) + Sync)) {
        let pieces = self.pieces(count);
        if pieces <= 1 {
            return work(0..count);
        }
        let next = AtomicUsize::new(0);
        self.run(&|| {
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return;
                }
                work(piece * count / pieces..(piece + 1) * count / pieces);
            }
        });
    }

    /// Shares out a table of rows of `width`: `work` gets the index of its first row, and its rows.
    pub(crate) fn share_rows<T: Send>(
        &self,
        table: &mut [T],
        width: usize,
        work: &(impl Fn(usize, &mut [T]) + Sync),
    ) {
        let rows = table.len() / width.max(1);
        let table = Parts::of(table);
        self.share(rows, &|rows| {
            // SAFETY: no two ranges have a row in common.
            work(rows.start, unsafe { table.get(rows.start * width..rows.end * width) });
        });
    }

    /// Shares out a table that lies in parts, one after the other, each as long as `length` says:
    /// `work` gets some of the parts and what they cover.
    ///
    /// # Panics
    /// The parts are longer than the table: a bug.
    pub(crate) fn share_parts<P: Sync, T: Send>(
        &self,
        parts: &[P],
        length: impl Fn(&P) -> usize,
        table: &mut [T],
        work: &(impl Fn(&[P], &mut [T]) + Sync),
    ) {
        let mut starts = vec![0];
        for part in parts {
            starts.push(starts[starts.len() - 1] + length(part));
        }
        assert!(starts[parts.len()] <= table.len(), "the parts are longer than the table");
        let table = Parts::of(table);
        self.share(parts.len(), &|range| {
            // SAFETY: no two ranges have a part in common, and parts do not overlap.
            let covered = unsafe { table.get(starts[range.start]..starts[range.end]) };
            work(&parts[range], covered);
        });
    }

    fn pieces(&self, count: usize) -> usize {
        if self.workers.is_empty() {
            1
        } else {
            count.min((self.workers.len() + 1) * PIECES_PER_THREAD)
        }
    }

    /// Runs `task` on every member, and returns when all are done.
    fn run(&self, task: &(dyn Fn() + Sync)) {
        let task: *const (dyn Fn() + Sync) = task;
        // SAFETY: only the lifetime changes. This function returns, or unwinds, after every worker
        // has finished with the task, so nobody uses it beyond its life.
        let task: Task = unsafe { std::mem::transmute(task) };
        self.shared.call(task, self.workers.len());
        // SAFETY: the caller's reference.
        let own = catch_unwind(AssertUnwindSafe(|| unsafe { (*task.0)() }));
        let theirs = self.shared.wait();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.tasks.fetch_add(1, Ordering::Release);
        self.shared.called.notify_all();
        for worker in self.workers.drain(..) {
            let _ended = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, task: Task, workers: usize) {
        self.busy.store(workers, Ordering::Relaxed);
        let mut state = self.lock();
        state.task = Some(task);
        // Within the lock, so that no worker falls asleep between its last look and this.
        self.tasks.fetch_add(1, Ordering::Release);
        if state.asleep > 0 {
            self.called.notify_all();
        }
    }

    /// Waits for the workers; what a panic of one of them said.
    fn wait(&self) -> Option<Box<dyn Any + Send>> {
        let mut looks = 0;
        while self.busy.load(Ordering::Acquire) > 0 {
            looks += 1;
            if looks < LOOKS { hint::spin_loop() } else { thread::yield_now() }
        }
        let mut state = self.lock();
        state.task = None;
        state.panic.take()
    }

    /// A worker's life.
    fn work(&self) {
        let mut done = 0;
        loop {
            for _ in 0..LOOKS {
                if self.tasks.load(Ordering::Acquire) != done {
                    break;
                }
                hint::spin_loop();
            }
            let mut state = self.lock();
            while self.tasks.load(Ordering::Acquire) == done {
                state.asleep += 1;
                state = self.called.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
            }
            // The next task does not come before this one is finished.
            done += 1;
            let (task, ended) = (state.task, state.ended);
            drop(state);
            if ended {
                return;
            }
            let Some(task) = task else { continue };
            // SAFETY: `Team::run` waits for this worker before the task goes out of life.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*task.0)() }));
            if let Err(panic) = outcome {
                self.lock().panic = Some(panic);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }
}

/// A table that members take parts of.
struct Parts<T> {
    start: *mut T,
    length: usize,
}

// SAFETY: whoever takes parts of it takes each once, and a part is a `&mut [T]` of one thread.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    fn of(table: &mut [T]) -> Self {
        Self { start: table.as_mut_ptr(), length: table.len() }
    }

    /// # Safety
    /// The table is borrowed for as long as the part is used, and nothing else has any of it.
    #[expect(clippy::mut_from_ref, reason = "parts are taken apart")]
    unsafe fn get(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.length, "a part beyond the table");
        // SAFETY: within the table, as checked; the rest is the caller's.
        unsafe { slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_row_and_part_has_one_turn() {
        for threads in [1, 2, 3] {
            let team = Team::new(threads);
            for count in (0..50).chain([1000]) {
                let turns: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                team.share(count, &|range| {
                    range.for_each(|at| {
                        turns[at].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(turns.iter().all(|turns| turns.load(Ordering::Relaxed) == 1));
                let mut table = vec![usize::MAX; count * 3];
                team.share_rows(&mut table, 3, &|first, rows| {
                    rows.iter_mut().enumerate().for_each(|(at, cell)| *cell = first * 3 + at);
                });
                assert!(table.iter().copied().eq(0..count * 3));
                let parts: Vec<usize> = (0..count % 60).collect();
                let mut table = vec![usize::MAX; parts.iter().sum()];
                team.share_parts(&parts, |part| *part, &mut table, &|parts, table| {
                    let mut at = 0;
                    for part in parts {
                        table[at..at + part].fill(*part);
                        at += part;
                    }
                    assert_eq!(at, table.len());
                });
                assert!(table.is_sorted() && !table.contains(&usize::MAX));
            }
        }
    }

    #[test]
    fn members_that_fell_asleep_are_woken() {
        let team = Team::new(2);
        for _ in 0..3 {
            while team.shared.lock().asleep == 0 {
                thread::yield_now();
            }
            // Neither member can pass without the other.
            let here = AtomicUsize::new(0);
            team.run(&|| {
                here.fetch_add(1, Ordering::AcqRel);
                while here.load(Ordering::Acquire) < 2 {
                    thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_of_a_member_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(3);
        for culprit in 0..12 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.share(12, &|range| assert!(!range.contains(&culprit), "number {culprit}"));
            }));
            let said = outcome.expect_err("one of them panics");
            assert_eq!(said.downcast_ref::<String>(), Some(&format!("number {culprit}")));
        }
        team.share(5, &|_| {});
    }
}
