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
        let mut statement =
            self.connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1"))?;
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|i| row.get(i)).collect())?;
        rows.collect()
    }

    /// Every call that succeeded, in order.
    pub(super) fn evidence(&self) -> Result<Vec<Evidence>> {
        let mut statement = self
            .connection
            .prepare("SELECT tool, arguments FROM calls WHERE ok ORDER BY position")?;
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
        insert.execute(params![
            order.id,
            customer.name,
            order.product,
            order.quantity,
            order.total
        ])?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::tool::Operation;
    use super::*;
    use crate::draw::Draw;

    fn initial(seed: u8) -> InitialState {
        InitialState::draw(&mut Draw::from_seed([seed; 32]))
    }

    fn opened(initial: &InitialState) -> Database {
        Database::open(initial).expect("an in-memory database opens")
    }

    fn reserve(product: &str, quantity: i64) -> ToolCall {
        ToolCall::Reserve { product: product.into(), quantity }
    }

    fn order(customer: &str, reservation: i64) -> ToolCall {
        ToolCall::Order { customer: customer.into(), reservation }
    }

    #[test]
    fn refusals_name_their_reason() {
        let initial = initial(0);
        let mut database = opened(&initial);
        let (product, customer) = (initial.products[0], initial.customers[0]);
        let mut check = |call: ToolCall, expected: &str| {
            let outcome = database.call(&call).expect("the database works").to_text();
            assert_eq!(outcome, expected, "{call:?}");
        };
        let first = initial.ids.reservations[0];
        let past = customer.last_order;
        let compute = |operation, a, b| ToolCall::Compute { operation, a, b };

        check(ToolCall::Product { name: "moon".into() }, r#"{"error": "unknown product"}"#);
        check(ToolCall::Customer { name: "lamp".into() }, r#"{"error": "unknown customer"}"#);
        check(compute(Operation::Mul, 1000, 1001), r#"{"error": "out of range"}"#);
        check(compute(Operation::Add, i64::MAX, 1), r#"{"error": "out of range"}"#);
        check(compute(Operation::Sub, 3, 14), r#"{"result": -11}"#);
        check(reserve("moon", 1), r#"{"error": "unknown product"}"#);
        check(reserve(product.name, 0), r#"{"error": "quantity must be positive"}"#);
        check(reserve(product.name, product.stock + 1), r#"{"error": "out of stock"}"#);
        check(order(customer.name, first), r#"{"error": "unknown reservation"}"#);
        check(reserve(product.name, 1), &format!(r#"{{"reservation": {first}}}"#));
        check(order("moon", first), r#"{"error": "unknown customer"}"#);
        check(order(customer.name, first), &format!(r#"{{"total": {}}}"#, product.price));
        check(order(customer.name, first), r#"{"error": "reservation closed"}"#);
        check(ToolCall::Refund { order: first }, r#"{"error": "unknown order"}"#);
        check(ToolCall::Refund { order: past.id }, &format!(r#"{{"refunded": {}}}"#, past.total));
        check(ToolCall::Refund { order: past.id }, r#"{"error": "already refunded"}"#);
    }

    #[test]
    fn an_order_needs_the_money() {
        let mut initial = initial(1);
        initial.customers[0].balance = 2 * initial.products[0].price - 1;
        let mut database = opened(&initial);
        let reservation = initial.ids.reservations[0];
        database.call(&reserve(initial.products[0].name, 2)).expect("the database works");
        let call = order(initial.customers[0].name, reservation);
        let outcome = database.call(&call).expect("the database works");
        assert_eq!(outcome, CallOutcome::ToolError("balance too low".into()));
    }

    #[test]
    fn numbers_run_out_without_harm() {
        let initial = initial(2);
        let mut database = opened(&initial);
        let orders = initial.ids.reservations.iter().zip(&initial.ids.orders);
        for (&reservation, &id) in orders {
            let calls = [
                reserve(initial.products[0].name, 1),
                order(initial.customers[0].name, reservation),
                ToolCall::Refund { order: id },
            ];
            for call in calls {
                let outcome = database.call(&call).expect("the database works");
                assert!(outcome.clone().into_result().is_some(), "{call:?}: {outcome:?}");
            }
        }
        let outcome = database.call(&reserve(initial.products[0].name, 1));
        let outcome = outcome.expect("the database works");
        assert_eq!(outcome, CallOutcome::ToolError("no free number".into()));
    }

    /// An initial state and calls that often fit it.
    fn any_episode() -> impl Strategy<Value = (InitialState, Vec<ToolCall>)> {
        (any::<u8>(), prop::collection::vec((0..4, 0..8usize, 0..12usize), 0..100)).prop_map(
            |(seed, choices)| {
                let initial = initial(seed);
                let calls = choices.into_iter().map(|choice| fitting_call(&initial, choice));
                let calls = calls.collect();
                (initial, calls)
            },
        )
    }

    /// One in a few of these names what does not exist.
    fn fitting_call(initial: &InitialState, (tool, who, what): (i32, usize, usize)) -> ToolCall {
        let product = initial.products.get(who).map_or("moon", |product| product.name);
        let customer = initial.customers.get(who / 2).map_or("moon", |customer| customer.name);
        let past = initial.customers.get(what).map(|customer| customer.last_order.id);
        match tool {
            0 => reserve(product, what as i64 - 1),
            1 => order(customer, initial.ids.reservations[what]),
            2 => ToolCall::Refund { order: past.unwrap_or(initial.ids.orders[who]) },
            _ => ToolCall::Product { name: product.into() },
        }
    }

    /// What no call may change: the money of each customer with what its paid orders cost, and the
    /// pieces of each product with those reserved and sold.
    fn conserved(database: &Database) -> BTreeMap<String, i64> {
        let sql = "SELECT name, balance + (SELECT coalesce(sum(total), 0) FROM orders
                                           WHERE customer = name AND state = 'paid') FROM customers
                   UNION ALL
                   SELECT name, stock
                       + (SELECT coalesce(sum(quantity), 0) FROM orders
                          WHERE product = name AND state = 'paid')
                       + (SELECT coalesce(sum(quantity), 0) FROM reservations
                          WHERE product = name AND open) FROM products";
        let mut statement = database.connection.prepare(sql).expect("the query is good");
        let rows = statement.query_map([], |row| row.try_into()).expect("the query runs");
        rows.collect::<Result<_>>().expect("the rows read")
    }

    proptest! {
        #[test]
        fn calls_conserve_money_and_pieces_and_refused_ones_change_nothing(
            (initial, calls) in any_episode(),
        ) {
            let mut database = opened(&initial);
            let at_start = conserved(&database);
            for call in &calls {
                let before = database.snapshot().expect("the tables read");
                let outcome = database.call(call).expect("the database works");
                prop_assert_eq!(&conserved(&database), &at_start, "{:?}", call);
                let unchanged = database.snapshot().expect("the tables read") == before;
                let reads = matches!(call, ToolCall::Product { .. });
                prop_assert_eq!(unchanged, reads || outcome.into_result().is_none(), "{:?}", call);
            }
        }
    }
}
