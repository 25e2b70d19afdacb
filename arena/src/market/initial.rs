//! The vocabulary of the market, and the state a task starts from.

use std::ops::RangeInclusive;

use crate::draw::Draw;

/// Every product name a task can use.
pub const PRODUCTS: [&str; 24] = [
    "lamp", "pot", "cup", "bowl", "fork", "plate", "chair", "desk", "shelf", "rug", "vase",
    "clock", "broom", "brush", "towel", "soap", "candle", "basket", "bench", "stool", "kettle",
    "pan", "jar", "tray",
];

/// Every customer name a task can use.
pub const CUSTOMERS: [&str; 16] = [
    "mira", "juno", "otto", "nora", "ivan", "lena", "hugo", "ruth", "omar", "tess", "axel", "vera",
    "finn", "zoe", "kai", "ida",
];

/// Products of one task.
const PRODUCTS_PER_TASK: usize = 6;
/// Customers of one task.
const CUSTOMERS_PER_TASK: usize = 4;
const PRICES: RangeInclusive<u32> = 2..=30;
const STOCKS: RangeInclusive<u32> = 3..=9;
/// The least balance pays for the largest order: 5 pieces at 30.
const BALANCES: RangeInclusive<u32> = 150..=400;
const PAST_QUANTITIES: RangeInclusive<u32> = 1..=5;
/// Order and reservation ids have two digits, and none is used twice in a task.
const IDS: RangeInclusive<i64> = 10..=99;

/// A product at the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) name: &'static str,
    pub(super) price: i64,
    pub(super) stock: i64,
}

/// A customer at the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Customer {
    pub(super) name: &'static str,
    pub(super) balance: i64,
    pub(super) last_order: PastOrder,
}

/// The order a customer made before the task starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct PastOrder {
    pub(super) id: i64,
    pub(super) product: &'static str,
    pub(super) quantity: i64,
    pub(super) total: i64,
}

/// The state a task starts from, and the ids it will hand out.
#[derive(Debug)]
pub(super) struct InitialState {
    pub(super) products: Vec<Product>,
    pub(super) customers: Vec<Customer>,
    pub(super) ids: FutureIds,
}

/// Ids drawn in advance. The n-th reservation of an episode gets the n-th id here, whatever it
/// reserves, and the n-th order likewise: unpredictable for the policy, the same for every sibling.
#[derive(Clone, Debug)]
pub(super) struct FutureIds {
    pub(super) reservations: Vec<i64>,
    pub(super) orders: Vec<i64>,
}

impl InitialState {
    pub(super) fn draw(draw: &mut Draw) -> Self {
        let products: Vec<Product> = draw
            .sample(PRODUCTS.to_vec(), PRODUCTS_PER_TASK)
            .into_iter()
            .map(|name| Product {
                name,
                price: i64::from(draw.range(PRICES)),
                stock: i64::from(draw.range(STOCKS)),
            })
            .collect();
        let mut ids = draw.sample(IDS.collect(), IDS.count());
        let names = draw.sample(CUSTOMERS.to_vec(), CUSTOMERS_PER_TASK);
        let past_ids = ids.split_off(ids.len() - CUSTOMERS_PER_TASK);
        let customers = names
            .into_iter()
            .zip(past_ids)
            .map(|(name, id)| Customer {
                name,
                balance: i64::from(draw.range(BALANCES)),
                last_order: PastOrder::draw(draw, id, &products),
            })
            .collect();
        let orders = ids.split_off(ids.len() / 2);
        Self { products, customers, ids: FutureIds { reservations: ids, orders } }
    }
}

impl PastOrder {
    fn draw(draw: &mut Draw, id: i64, products: &[Product]) -> Self {
        let product = products[draw.below(products.len() as u64) as usize];
        let quantity = i64::from(draw.range(PAST_QUANTITIES));
        Self { id, product: product.name, quantity, total: product.price * quantity }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_all_different() {
        let state = InitialState::draw(&mut Draw::from_seed([3; 32]));
        let mut ids: BTreeSet<i64> = state.customers.iter().map(|c| c.last_order.id).collect();
        ids.extend(&state.ids.reservations);
        ids.extend(&state.ids.orders);
        assert_eq!(ids, IDS.collect());
    }

    #[test]
    fn names_are_different_short_words() {
        let names: BTreeSet<&str> = PRODUCTS.into_iter().chain(CUSTOMERS).collect();
        assert_eq!(names.len(), PRODUCTS.len() + CUSTOMERS.len());
        let short = |name: &str| name.len() <= 6 && name.bytes().all(|b| b.is_ascii_lowercase());
        assert!(names.into_iter().all(short));
    }
}
