//! What each tool does, inside the transaction of its call.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use serde_json::{Value, json};

use super::initial::FutureIds;
use super::tool::{Operation, ToolCall};

/// Largest magnitude `compute` returns.
const RESULT_MAX: i64 = 1_000_000;

/// Why a call did not run. Either way its transaction must be rolled back.
pub(super) enum Failure {
    /// The market's rules forbid it.
    Refused(&'static str),
    /// SQLite failed.
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

type Result<T> = std::result::Result<T, Failure>;

/// Runs `call` and gives its result.
pub(super) fn execute(db: &Connection, ids: &FutureIds, call: &ToolCall) -> Result<Value> {
    match call {
        ToolCall::Product { name } => product(db, name),
        ToolCall::Customer { name } => customer(db, name),
        ToolCall::Compute { operation, a, b } => compute(*operation, *a, *b),
        ToolCall::Reserve { product, quantity } => reserve(db, ids, product, *quantity),
        ToolCall::Order { customer, reservation } => order(db, ids, customer, *reservation),
        ToolCall::Refund { order } => refund(db, *order),
    }
}

fn product(db: &Connection, name: &str) -> Result<Value> {
    let (price, stock): (i64, i64) =
        find(db, "SELECT price, stock FROM products WHERE name = ?", name, "unknown product")?;
    Ok(json!({"price": price, "stock": stock}))
}

fn customer(db: &Connection, name: &str) -> Result<Value> {
    let sql = "SELECT balance, last_order FROM customers WHERE name = ?";
    let (balance, last_order): (i64, i64) = find(db, sql, name, "unknown customer")?;
    Ok(json!({"balance": balance, "last_order": last_order}))
}

fn compute(operation: Operation, a: i64, b: i64) -> Result<Value> {
    let result = match operation {
        Operation::Add => a.checked_add(b),
        Operation::Sub => a.checked_sub(b),
        Operation::Mul => a.checked_mul(b),
    };
    match result {
        Some(result) if (-RESULT_MAX..=RESULT_MAX).contains(&result) => {
            Ok(json!({"result": result}))
        }
        _ => Err(Failure::Refused("out of range")),
    }
}

/// Takes the pieces out of stock.
fn reserve(db: &Connection, ids: &FutureIds, product: &str, quantity: i64) -> Result<Value> {
    let (stock,): (i64,) =
        find(db, "SELECT stock FROM products WHERE name = ?", product, "unknown product")?;
    require(quantity >= 1, "quantity must be positive")?;
    require(quantity <= stock, "out of stock")?;
    let taken = count(db, "SELECT count(*) FROM reservations")?;
    let id = next_id(&ids.reservations, taken)?;
    db.execute("UPDATE products SET stock = stock - ? WHERE name = ?", params![quantity, product])?;
    db.execute("INSERT INTO reservations VALUES (?, ?, ?, TRUE)", params![id, product, quantity])?;
    Ok(json!({"reservation": id}))
}

/// Closes the reservation and charges the customer, whose last order it becomes.
fn order(db: &Connection, ids: &FutureIds, customer: &str, reservation: i64) -> Result<Value> {
    let (balance,): (i64,) =
        find(db, "SELECT balance FROM customers WHERE name = ?", customer, "unknown customer")?;
    let sql = "SELECT product, quantity, quantity * price, open
               FROM reservations JOIN products ON products.name = product WHERE id = ?";
    let (product, quantity, total, open): (String, i64, i64, bool) =
        find(db, sql, reservation, "unknown reservation")?;
    require(open, "reservation closed")?;
    require(total <= balance, "balance too low")?;
    let made = count(db, "SELECT count(*) FROM orders")?;
    let past = count(db, "SELECT count(*) FROM customers")?;
    let id = next_id(&ids.orders, made - past)?;
    db.execute("UPDATE reservations SET open = FALSE WHERE id = ?", params![reservation])?;
    db.execute(
        "UPDATE customers SET balance = balance - ?, last_order = ? WHERE name = ?",
        params![total, id, customer],
    )?;
    db.execute(
        "INSERT INTO orders VALUES (?, ?, ?, ?, ?, 'paid')",
        params![id, customer, product, quantity, total],
    )?;
    Ok(json!({"total": total}))
}

/// Gives the money back to the customer and the pieces back to the stock.
fn refund(db: &Connection, order: i64) -> Result<Value> {
    let sql = "SELECT customer, product, quantity, total, state = 'paid' FROM orders WHERE id = ?";
    let (customer, product, quantity, total, paid): (String, String, i64, i64, bool) =
        find(db, sql, order, "unknown order")?;
    require(paid, "already refunded")?;
    db.execute("UPDATE orders SET state = 'refunded' WHERE id = ?", params![order])?;
    db.execute(
        "UPDATE customers SET balance = balance + ? WHERE name = ?",
        params![total, customer],
    )?;
    db.execute("UPDATE products SET stock = stock + ? WHERE name = ?", params![quantity, product])?;
    Ok(json!({"refunded": total}))
}

/// The row that `sql` selects by its one key, as a tuple.
fn find<T>(db: &Connection, sql: &str, key: impl ToSql, missing: &'static str) -> Result<T>
where
    T: for<'a> TryFrom<&'a Row<'a>, Error = rusqlite::Error>,
{
    db.query_row(sql, [key], |row| row.try_into()).optional()?.ok_or(Failure::Refused(missing))
}

fn count(db: &Connection, sql: &str) -> Result<usize> {
    Ok(db.query_row(sql, [], |row| row.get(0))?)
}

fn next_id(ids: &[i64], used: usize) -> Result<i64> {
    ids.get(used).copied().ok_or(Failure::Refused("no free number"))
}

fn require(holds: bool, otherwise: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(Failure::Refused(otherwise)) }
}
