//! Drawing a task from its seed.
//!
//! The number of calls is cut into one or two clauses, uniformly over the ordered ways to do so; then
//! each clause is drawn uniformly from the kinds of its size. Basic requests are cut otherwise: see
//! [`Requests`].
//!
//! Three rules make every task feasible, its answer unambiguous and each of its calls needed:
//! a product is named once; a customer's account is changed by one clause at most; and a customer is
//! looked up again only after a change, never for what an earlier call already returned.

use std::ops::RangeInclusive;

use super::clause::{Clause, Item};
use super::initial::{Customer, InitialState, Product};
use super::{BASICS_CALLS, BASICS_NAME, CALLS, NAME};
use crate::draw::Draw;
use crate::split::{DRAWS_MAX, Split, task_seed};

/// Most pieces a clause asks for. With the highest price it costs no more than the least balance.
const QUANTITY_MAX: i64 = 5;
const QUANTITY_MIN: i64 = 2;

/// Which requests are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requests {
    /// Clauses of every kind, combined freely.
    All,
    /// What a base model is taught: lists of clauses of one and two calls. No clause is longer.
    Basic,
}

/// A drawn task: where it starts and what is asked.
pub(super) struct MarketTask {
    pub(super) initial: InitialState,
    pub(super) clauses: Vec<Clause>,
    pub(super) prompt: String,
}

impl MarketTask {
    /// Draws until the request text falls into `split`; `None` when `DRAWS_MAX` draws do not.
    /// Both kinds of requests share the split of a text, so what is held out from one is held out
    /// from the other.
    pub(super) fn draw(requests: Requests, split: Split, seed: u64, calls: u32) -> Option<Self> {
        let stream = requests.world();
        (0..DRAWS_MAX).find_map(|attempt| {
            let mut draw = Draw::from_seed(task_seed(stream, split, seed, calls, attempt));
            Self::draw_once(&mut draw, requests, calls)
                .filter(|task| Split::of_request(NAME, &task.prompt) == split)
        })
    }

    fn draw_once(draw: &mut Draw, requests: Requests, calls: u32) -> Option<Self> {
        let initial = InitialState::draw(draw);
        let sizes = match requests {
            Requests::All => draw_clause_sizes(draw, calls),
            Requests::Basic => draw_basic_sizes(draw, calls),
        };
        let mut draft = Draft::new(draw, &initial);
        let clauses =
            sizes.into_iter().map(|size| draft.clause(size)).collect::<Option<Vec<_>>>()?;
        let words: Vec<String> = clauses.iter().map(Clause::to_string).collect();
        Some(Self { initial, clauses, prompt: words.join(", then ") })
    }
}

impl Requests {
    /// Registered name of the world that draws these requests.
    pub(super) fn world(self) -> &'static str {
        match self {
            Self::All => NAME,
            Self::Basic => BASICS_NAME,
        }
    }

    /// Numbers of calls a request can need.
    pub(super) fn calls(self) -> RangeInclusive<u32> {
        match self {
            Self::All => CALLS,
            Self::Basic => BASICS_CALLS,
        }
    }
}

/// Cuts `calls` into at most two clause sizes, uniformly over the ordered ways to do so.
fn draw_clause_sizes(draw: &mut Draw, calls: u32) -> Vec<u32> {
    let first = calls - draw.below(u64::from(calls)) as u32;
    if first == calls { vec![calls] } else { vec![first, calls - first] }
}

/// Cuts `calls` into clauses of one or two calls: as long as two are left, either with even odds.
fn draw_basic_sizes(draw: &mut Draw, calls: u32) -> Vec<u32> {
    let mut sizes = Vec::new();
    let mut left = calls;
    while left > 0 {
        let size = if left >= 2 { 1 + draw.below(2) as u32 } else { 1 };
        sizes.push(size);
        left -= size;
    }
    sizes
}

/// A request being drawn, and what its clauses so far have used up.
struct Draft<'a> {
    draw: &'a mut Draw,
    /// Products that no clause has named yet.
    products: Vec<Product>,
    accounts: Vec<Account>,
}

/// A customer as the clauses drawn so far leave it.
struct Account {
    customer: Customer,
    balance: i64,
    /// The expert has looked it up since it last changed.
    known: bool,
    /// A clause has ordered or refunded.
    changed: bool,
}

impl<'a> Draft<'a> {
    fn new(draw: &'a mut Draw, initial: &InitialState) -> Self {
        let account = |&customer: &Customer| Account {
            customer,
            balance: customer.balance,
            known: false,
            changed: false,
        };
        let accounts = initial.customers.iter().map(account).collect();
        Self { draw, products: initial.products.clone(), accounts }
    }

    /// A clause of `calls` calls; `None` when names have run out.
    fn clause(&mut self, calls: u32) -> Option<Clause> {
        match calls {
            1 => match self.draw.below(2) {
                0 => Some(Clause::Price { product: self.product()?.name }),
                _ => Some(Clause::Balance { customer: self.customer_to_read(0)? }),
            },
            2 => match self.draw.below(3) {
                0 => Some(Clause::Cost { item: self.item()?.0 }),
                1 => self.order(),
                _ => Some(Clause::Refund { customer: self.customer_to_refund()? }),
            },
            3 => match self.draw.below(2) {
                0 => {
                    let products = [self.product()?.name, self.product()?.name];
                    Some(Clause::PriceSum { products })
                }
                _ => {
                    let product = self.product()?;
                    let customer = self.customer_to_read(product.price)?;
                    Some(Clause::LeftAfterOne { customer, product: product.name })
                }
            },
            4 => {
                let (item, cost) = self.item()?;
                Some(Clause::LeftAfter { customer: self.customer_to_read(cost)?, item })
            }
            5 => Some(Clause::CostSum { items: [self.item()?.0, self.item()?.0] }),
            _ => None,
        }
    }

    fn order(&mut self) -> Option<Clause> {
        let (item, cost) = self.item()?;
        let account = self.account(|account| !account.changed && account.balance >= cost)?;
        account.balance -= cost;
        account.changed = true;
        account.known = false;
        Some(Clause::Order { item, customer: account.customer.name })
    }

    /// A customer not looked up since the last change, with at least `cost` left.
    fn customer_to_read(&mut self, cost: i64) -> Option<&'static str> {
        let account = self.account(|account| !account.known && account.balance >= cost)?;
        account.known = true;
        Some(account.customer.name)
    }

    /// A customer whose last order is the past one and not known yet.
    fn customer_to_refund(&mut self) -> Option<&'static str> {
        let account = self.account(|account| !account.known && !account.changed)?;
        account.balance += account.customer.last_order.total;
        account.changed = true;
        Some(account.customer.name)
    }

    fn account(&mut self, fits: impl Fn(&Account) -> bool) -> Option<&mut Account> {
        let mut fitting: Vec<&mut Account> =
            self.accounts.iter_mut().filter(|account| fits(account)).collect();
        self.draw.take(&mut fitting)
    }

    fn product(&mut self) -> Option<Product> {
        self.draw.take(&mut self.products)
    }

    /// Pieces that are in stock, and what they cost.
    fn item(&mut self) -> Option<(Item, i64)> {
        let product = self.product()?;
        let choices = product.stock.min(QUANTITY_MAX) - QUANTITY_MIN + 1;
        let quantity = QUANTITY_MIN + self.draw.below(choices.max(1).unsigned_abs()) as i64;
        Some((Item { quantity, product: product.name }, product.price * quantity))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn clause_sizes_are_all_ways_to_cut_into_one_or_two() {
        for calls in 1..=5u32 {
            let mut draw = Draw::from_seed([calls as u8; 32]);
            let drawn: BTreeSet<Vec<u32>> =
                (0..1_000).map(|_| draw_clause_sizes(&mut draw, calls)).collect();
            assert!(drawn.iter().all(|sizes| sizes.iter().sum::<u32>() == calls));
            assert!(drawn.iter().all(|sizes| sizes.len() <= 2));
            assert_eq!(drawn.len(), calls as usize);
        }
    }

    #[test]
    fn basic_clauses_have_one_or_two_calls() {
        for calls in 1..=5 {
            let mut draw = Draw::from_seed([calls as u8; 32]);
            for _ in 0..100 {
                let sizes = draw_basic_sizes(&mut draw, calls);
                assert!(sizes.iter().all(|size| (1..=2).contains(size)));
                assert_eq!(sizes.iter().sum::<u32>(), calls);
            }
        }
    }

    #[test]
    fn a_draw_never_runs_out_of_names() {
        for seed in 0..2_000 {
            let mut draw = Draw::from_seed(task_seed(NAME, Split::Train, seed, 5, 0));
            assert!(MarketTask::draw_once(&mut draw, Requests::All, 5).is_some());
        }
    }
}
