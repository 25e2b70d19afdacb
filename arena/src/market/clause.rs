//! The kinds of clause: their words, and the calls an expert makes for each.

use std::fmt;

use super::tool::{Operation, ToolCall};

/// One part of a request. It asks for one number, its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clause {
    Price { product: &'static str },
    Balance { customer: &'static str },
    Cost { item: Item },
    Order { item: Item, customer: &'static str },
    Refund { customer: &'static str },
    PriceSum { products: [&'static str; 2] },
    LeftAfterOne { customer: &'static str, product: &'static str },
    LeftAfter { customer: &'static str, item: Item },
    CostSum { items: [Item; 2] },
}

/// Some pieces of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) quantity: i64,
    pub(super) product: &'static str,
}

/// A call of the expert, and the field of its result that the expert reads.
pub(super) struct Step {
    pub(super) call: ToolCall,
    pub(super) reads: &'static str,
}

impl Clause {
    /// The expert's next step, given the numbers it has read for this clause so far. `None` when the
    /// clause is done; its value is then the last number read.
    pub(super) fn next_step(&self, seen: &[i64]) -> Option<Step> {
        match (*self, seen) {
            (Self::Price { product }, []) => Some(price(product)),

            (Self::Balance { customer }, []) => Some(balance(customer)),

            (Self::Cost { item }, []) => Some(price(item.product)),
            (Self::Cost { item }, &[price]) => Some(compute(Operation::Mul, item.quantity, price)),

            (Self::Order { item, .. }, []) => Some(reserve(item)),
            (Self::Order { customer, .. }, &[reservation]) => Some(order(customer, reservation)),

            (Self::Refund { customer }, []) => Some(last_order(customer)),
            (Self::Refund { .. }, &[order]) => Some(refund(order)),

            (Self::PriceSum { products }, []) => Some(price(products[0])),
            (Self::PriceSum { products }, [_]) => Some(price(products[1])),
            (Self::PriceSum { .. }, &[first, second]) => {
                Some(compute(Operation::Add, first, second))
            }

            (Self::LeftAfterOne { product, .. }, []) => Some(price(product)),
            (Self::LeftAfterOne { customer, .. }, [_]) => Some(balance(customer)),
            (Self::LeftAfterOne { .. }, &[price, balance]) => {
                Some(compute(Operation::Sub, balance, price))
            }

            (Self::LeftAfter { item, .. }, []) => Some(price(item.product)),
            (Self::LeftAfter { item, .. }, &[price]) => {
                Some(compute(Operation::Mul, item.quantity, price))
            }
            (Self::LeftAfter { customer, .. }, [_, _]) => Some(balance(customer)),
            (Self::LeftAfter { .. }, &[_, cost, balance]) => {
                Some(compute(Operation::Sub, balance, cost))
            }

            (Self::CostSum { items }, []) => Some(price(items[0].product)),
            (Self::CostSum { items }, &[price]) => {
                Some(compute(Operation::Mul, items[0].quantity, price))
            }
            (Self::CostSum { items }, [_, _]) => Some(price(items[1].product)),
            (Self::CostSum { items }, &[_, _, price]) => {
                Some(compute(Operation::Mul, items[1].quantity, price))
            }
            (Self::CostSum { .. }, &[_, first, _, second]) => {
                Some(compute(Operation::Add, first, second))
            }

            _ => None,
        }
    }
}

fn price(product: &str) -> Step {
    Step { call: ToolCall::Product { name: product.into() }, reads: "price" }
}

fn balance(customer: &str) -> Step {
    Step { call: ToolCall::Customer { name: customer.into() }, reads: "balance" }
}

fn last_order(customer: &str) -> Step {
    Step { call: ToolCall::Customer { name: customer.into() }, reads: "last_order" }
}

fn compute(operation: Operation, a: i64, b: i64) -> Step {
    Step { call: ToolCall::Compute { operation, a, b }, reads: "result" }
}

fn reserve(item: Item) -> Step {
    let call = ToolCall::Reserve { product: item.product.into(), quantity: item.quantity };
    Step { call, reads: "reservation" }
}

fn order(customer: &str, reservation: i64) -> Step {
    Step { call: ToolCall::Order { customer: customer.into(), reservation }, reads: "total" }
}

fn refund(order: i64) -> Step {
    Step { call: ToolCall::Refund { order }, reads: "refunded" }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Price { product } => write!(f, "price of {product}"),
            Self::Balance { customer } => write!(f, "balance of {customer}"),
            Self::Cost { item } => write!(f, "cost of {item}"),
            Self::Order { item, customer } => write!(f, "order {item} for {customer}"),
            Self::Refund { customer } => write!(f, "refund the last order of {customer}"),
            Self::PriceSum { products: [a, b] } => write!(f, "price of {a} plus {b}"),
            Self::LeftAfterOne { customer, product } => {
                write!(f, "what {customer} has left after one {product}")
            }
            Self::LeftAfter { customer, item } => {
                write!(f, "what {customer} has left after {item}")
            }
            Self::CostSum { items: [a, b] } => write!(f, "cost of {a} plus {b}"),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.quantity, self.product)
    }
}
