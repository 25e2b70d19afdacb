//! The oracle: it works through the clauses and reads every number from the market.

use serde_json::Value;

use super::clause::Clause;
use crate::environment::{Expert, ExpertAction};

/// Solves one task, closed-loop.
pub(super) struct MarketExpert {
    clauses: Vec<Clause>,
    /// Index of the clause it is working on.
    current: usize,
    /// Numbers read for that clause.
    seen: Vec<i64>,
    /// Field of the awaited result to read; `None` while no result is awaited.
    reads: Option<&'static str>,
    /// Values of the finished clauses.
    values: Vec<i64>,
}

impl MarketExpert {
    pub(super) fn new(clauses: Vec<Clause>) -> Self {
        Self { clauses, current: 0, seen: Vec::new(), reads: None, values: Vec::new() }
    }

    /// Takes in the awaited result; `None` when it does not hold the number asked for.
    fn read(&mut self, last_result: Option<&Value>) -> Option<()> {
        if let Some(field) = self.reads.take() {
            self.seen.push(last_result?.get(field)?.as_i64()?);
        }
        Some(())
    }

    fn next_call(&mut self) -> Option<ExpertAction> {
        while let Some(clause) = self.clauses.get(self.current) {
            if let Some(step) = clause.next_step(&self.seen) {
                self.reads = Some(step.reads);
                let name = step.call.name().to_owned();
                return Some(ExpertAction::Call { name, arguments: step.call.arguments() });
            }
            self.values.extend(self.seen.last());
            self.seen.clear();
            self.current += 1;
        }
        None
    }
}

impl Expert for MarketExpert {
    fn next(&mut self, last_result: Option<&Value>) -> ExpertAction {
        let call = self.read(last_result).and_then(|()| self.next_call());
        call.unwrap_or_else(|| {
            let values: Vec<String> = self.values.iter().map(i64::to_string).collect();
            ExpertAction::Answer(values.join(" "))
        })
    }
}
