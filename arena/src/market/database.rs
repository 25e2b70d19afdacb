//! The state of one episode: an in-memory SQLite database of its own.

use rusqlite::types::Value as Cell;
use rusqlite::{Connection, Result, params};

use super::execute::{Failure, execute};
use super::initial::{FutureIds, InitialState};
use super::tool::ToolCall;
use crate::environment::CallOutcome;

const SCHEMA: &str = include_str!("schema.sql");

/// Tables whose final rows are judged.
const JUDGED_TABLES: [&str; 4] = ["products", "customers", "orders", "reservations"];

/// The market of one episode.
pub(super) struct Database {
    connection: Connection,
    ids: FutureIds,
}

/// Rows of every judged table, sorted by key.
pub(super) type Snapshot = Vec<Vec<Vec<Cell>>>;

/// Tool and canonical arguments of a call that succeeded.
pub(super) type Evidence = (String, String);

impl Database {
    pub(super) fn open(initial: &InitialState) -> Result<Self> {
        let mut connection = Connection::open_in_memory()?;
        let transaction = connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        fill(&transaction, initial)?;
        transaction.commit()?;
        Ok(Self { connection, ids: initial.ids.clone() })
    }

    /// Runs a call and logs it, in one transaction. A refused call leaves nothing but its log entry.
    pub(super) fn call(&mut self, call: &ToolCall) -> Result<CallOutcome> {
        let transaction = self.connection.transaction()?;
        match execute(&transaction, &self.ids, call) {
            Ok(result) => {
                log(&transaction, call, true)?;
                transaction.commit()?;
                Ok(CallOutcome::Ok(result))
            }
            Err(Failure::Refused(reason)) => {
                transaction.rollback()?;
                log(&self.connection, call, false)?;
                Ok(CallOutcome::ToolError(reason.to_owned()))
            }
            Err(Failure::Database(error)) => Err(error),
        }
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        JUDGED_TABLES.into_iter().map(|table| self.rows(table)).collect()
    }

    fn rows(&self, table: &str) -> Result<Vec<Vec<Cell>>> {
        let mut statement = self.connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1"))?;
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|i| row.get(i)).collect())?;
        rows.collect()
    }

    /// Every call that succeeded, in order.
    pub(super) fn evidence(&self) -> Result<Vec<Evidence>> {
        let mut statement =
            self.connection.prepare("SELECT tool, arguments FROM calls WHERE ok ORDER BY position")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect()
    }
}

fn fill(connection: &Connection, initial: &InitialState) -> Result<()> {
    let mut insert = connection.prepare("INSERT INTO products VALUES (?, ?, ?)")?;
    for product in &initial.products {
        insert.execute(params![product.name, product.price, product.stock])?;
    }
    let mut insert = connection.prepare("INSERT INTO customers VALUES (?, ?, ?)")?;
    for customer in &initial.customers {
        insert.execute(params![customer.name, customer.balance, customer.last_order.id])?;
    }
    let mut insert = connection.prepare("INSERT INTO orders VALUES (?, ?, ?, ?, ?, 'paid')")?;
    for customer in &initial.customers {
        let order = customer.last_order;
        insert.execute(params![order.id, customer.name, order.product, order.quantity, order.total])?;
    }
    Ok(())
}

fn log(connection: &Connection, call: &ToolCall, ok: bool) -> Result<()> {
    connection.execute(
        "INSERT INTO calls (tool, arguments, ok) VALUES (?, ?, ?)",
        params![call.name(), call.canonical_arguments(), ok],
    )?;
    Ok(())
}
