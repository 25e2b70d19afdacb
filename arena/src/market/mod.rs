//! The built-in world: a market with products, customers, orders and reservations on SQLite.
//!
//! A task is a sequence of clauses such as `order 3 lamp for mira, then balance of mira`. The answer
//! is the clauses' values in order: `42 188`. Every number in it must be read from the market:
//! prices, balances and ids are drawn per task.
//!
//! - `initial`: vocabulary, and the state a task starts from
//! - `clause`: the kinds of clause, their words, and the expert's calls for each
//! - `task`: drawing a task from its seed
//! - `tool`: the six tools, and what a well-formed call is
//! - `database`: the state, and the log of what was called
//! - `execute`: what each tool does
//! - `expert`, `score`: the oracle and the judgement

mod clause;
mod database;
mod execute;
mod expert;
mod initial;
mod score;
mod task;
mod tool;

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

pub use self::initial::{CUSTOMERS, PRODUCTS};

use self::database::Database;
use self::expert::MarketExpert;
use self::task::{MarketTask, Requests};
use self::tool::ToolCall;
use crate::environment::{CallOutcome, Environment, Expert, InfrastructureError, Score};
use crate::registry::OpenError;
use crate::split::Split;

/// Registered name of this world.
pub const NAME: &str = "market";

/// Numbers of tool calls a market task can need.
pub const CALLS: RangeInclusive<u32> = 1..=5;

/// Registered name of the world with the same market and basic requests: lists of clauses of one or
/// two calls, none longer. A base model is taught on it.
pub const BASICS_NAME: &str = "market_basics";

/// Numbers of tool calls a basic task can need.
pub const BASICS_CALLS: RangeInclusive<u32> = 1..=5;

/// One open market task.
pub(crate) struct Market {
    task: MarketTask,
    database: Database,
}

impl Market {
    /// A task of the market itself.
    pub(crate) fn open(split: Split, seed: u64, calls: u32) -> Result<Self, OpenError> {
        Self::open_drawn(Requests::All, split, seed, calls)
    }

    /// A basic task.
    pub(crate) fn open_basic(split: Split, seed: u64, calls: u32) -> Result<Self, OpenError> {
        Self::open_drawn(Requests::Basic, split, seed, calls)
    }

    fn open_drawn(
        requests: Requests,
        split: Split,
        seed: u64,
        calls: u32,
    ) -> Result<Self, OpenError> {
        let (world, range) = (requests.world(), requests.calls());
        if !range.contains(&calls) {
            return Err(OpenError::Calls { world, calls, range });
        }
        let task = MarketTask::draw(requests, split, seed, calls)
            .ok_or(OpenError::NoTask { world, seed })?;
        let database = Database::open(&task.initial).map_err(database_failed)?;
        Ok(Self { task, database })
    }
}

impl Environment for Market {
    fn tools(&self) -> &[Value] {
        &tool::DEFINITIONS
    }

    fn prompt(&self) -> &str {
        &self.task.prompt
    }

    fn call(
        &mut self,
        name: &str,
        arguments: &Map<String, Value>,
    ) -> Result<CallOutcome, InfrastructureError> {
        match ToolCall::parse(name, arguments) {
            Ok(call) => self.database.call(&call).map_err(database_failed),
            Err(outcome) => Ok(outcome),
        }
    }

    fn score(&mut self, answer: Option<&str>) -> Result<Score, InfrastructureError> {
        score::is_done(&self.task, &self.database, answer).map(Score::from).map_err(database_failed)
    }

    fn expert(&self) -> Box<dyn Expert> {
        Box::new(MarketExpert::new(self.task.clauses.clone()))
    }
}

fn database_failed(error: rusqlite::Error) -> InfrastructureError {
    InfrastructureError { world: NAME, source: Box::new(error) }
}
