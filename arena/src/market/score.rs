//! The judgement: was the right thing done, found out and said?
//!
//! An episode succeeds when its final state and its answer are the expert's, and every call of the
//! expert succeeded in it too, as often. The last condition is the evidence: a right answer that was
//! guessed, or kept from an earlier task, is worth nothing. Further successful look-ups, refused calls
//! and another order of the calls do no harm, as long as the state comes out the same; reservation
//! and order ids belong to that state, and they are handed out in the order of the calls.

use rusqlite::Result;

use super::database::{Database, Evidence, Snapshot};
use super::expert::MarketExpert;
use super::task::MarketTask;
use super::tool::ToolCall;
use crate::environment::{Expert, ExpertAction};

/// What the expert leaves behind.
struct Expected {
    answer: String,
    state: Snapshot,
    evidence: Vec<Evidence>,
}

/// Whether the episode in `database`, ended with `answer`, did the task.
pub(super) fn is_done(
    task: &MarketTask,
    database: &Database,
    answer: Option<&str>,
) -> Result<bool> {
    let Some(answer) = answer else { return Ok(false) };
    let expected = expected(task)?;
    Ok(answer.trim() == expected.answer
        && database.snapshot()? == expected.state
        && contains(database.evidence()?, &expected.evidence))
}

/// Lets the expert solve the task on a fresh market.
fn expected(task: &MarketTask) -> Result<Expected> {
    let mut database = Database::open(&task.initial)?;
    let mut expert = MarketExpert::new(task.clauses.clone());
    let mut last_result = None;
    let answer = loop {
        let (name, arguments) = match expert.next(last_result.as_ref()) {
            ExpertAction::Answer(answer) => break answer,
            ExpertAction::Call { name, arguments } => (name, arguments),
        };
        // Without a result the expert answers, so this loop ends.
        last_result = match ToolCall::parse(&name, &arguments) {
            Ok(call) => database.call(&call)?.into_result(),
            Err(_) => None,
        };
    };
    Ok(Expected { answer, state: database.snapshot()?, evidence: database.evidence()? })
}

/// Whether `found` holds everything in `required`, as often.
fn contains(mut found: Vec<Evidence>, required: &[Evidence]) -> bool {
    required.iter().all(|call| {
        let position = found.iter().position(|other| other == call);
        position.map(|index| found.swap_remove(index)).is_some()
    })
}
