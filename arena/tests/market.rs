//! The market through its public interface: what every task promises, and what no call can break.

use std::collections::BTreeSet;

use ballast_arena::market::{CALLS, CUSTOMERS, PRODUCTS};
use ballast_arena::{CallOutcome, Environment, ExpertAction, SPLITS, open, task};
use ballast_proto::v1::TaskRef;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

const TOOLS: [&str; 8] =
    ["product", "customer", "compute", "reserve", "order", "refund", "none", ""];
const KEYS: [&str; 10] =
    ["name", "op", "a", "b", "product", "quantity", "customer", "reservation", "order", "x"];

const PINNED: &str = r#"what kai has left after one basket, then cost of 3 tray
{"price": 24, "stock": 3}
{"balance": 180, "last_order": 69}
{"result": 156}
{"price": 14, "stock": 4}
{"result": 42}
156 42"#;

type Call = (String, Map<String, Value>);

fn opened(task: &TaskRef) -> Box<dyn Environment> {
    open(task).expect("the task exists")
}

fn call(
    environment: &mut dyn Environment,
    name: &str,
    arguments: &Map<String, Value>,
) -> CallOutcome {
    environment.call(name, arguments).expect("the database works")
}

fn reward(environment: &mut dyn Environment, answer: Option<&str>) -> f32 {
    environment.score(answer).expect("the database works").reward
}

/// Lets the expert act; its calls, what the policy would see of them, and its answer.
fn demonstrate(environment: &mut dyn Environment) -> (Vec<Call>, Vec<String>, String) {
    let mut expert = environment.expert();
    let (mut calls, mut texts, mut last) = (Vec::new(), Vec::new(), None);
    loop {
        match expert.next(last.as_ref()) {
            ExpertAction::Answer(answer) => return (calls, texts, answer),
            ExpertAction::Call { name, arguments } => {
                let outcome = call(environment, &name, &arguments);
                texts.push(outcome.to_text());
                last = Some(outcome.into_result().expect("the expert is never refused"));
                calls.push((name, arguments));
            }
        }
    }
}

/// Replays recorded calls on a fresh copy of the task and scores them with `answer`.
fn replay(task: &TaskRef, calls: &[Call], answer: &str) -> f32 {
    let mut environment = opened(task);
    for (name, arguments) in calls {
        call(&mut *environment, name, arguments);
    }
    reward(&mut *environment, Some(answer))
}

/// Other values an argument could have had.
fn mutations(value: &Value) -> Vec<Value> {
    let names = PRODUCTS.into_iter().chain(CUSTOMERS).map(|name| json!(name));
    let others: Vec<Value> = match value {
        Value::Number(number) => {
            let number = number.as_i64().expect("arguments are integers");
            [-10, -1, 1, 2, 10].map(|change| json!(number + change)).to_vec()
        }
        _ => names.chain(["add", "sub", "mul"].map(|operation| json!(operation))).collect(),
    };
    others.into_iter().filter(|other| other != value).collect()
}

fn any_task() -> impl Strategy<Value = TaskRef> {
    (select(&SPLITS[..]), any::<u64>(), CALLS)
        .prop_map(|(split, seed, calls)| task("market", split, seed, calls))
}

fn any_json() -> impl Strategy<Value = Value> {
    let numbers = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..100i64).prop_map(Value::from)
    ];
    let words = prop_oneof![
        any::<String>(),
        select(&PRODUCTS[..]).prop_map(str::to_owned),
        select(&["add", "sub", "mul"][..]).prop_map(str::to_owned)
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        numbers,
        words.prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 16, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Value::from))
}

fn any_call() -> impl Strategy<Value = Call> {
    let arguments = prop::collection::btree_map(select(&KEYS[..]), any_json(), 0..4);
    (select(&TOOLS[..]), arguments).prop_map(|(tool, arguments)| {
        let arguments = arguments.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        (tool.to_owned(), arguments)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_expert_scores_1_with_exactly_the_calls_of_the_task(task in any_task()) {
        let mut environment = opened(&task);
        let (calls, _, answer) = demonstrate(&mut *environment);
        prop_assert_eq!(calls.len(), task.calls as usize);
        prop_assert_eq!(reward(&mut *environment, Some(&answer)), 1.0);
        prop_assert_eq!(reward(&mut *environment, Some(&format!(" {answer}\n"))), 1.0);
        prop_assert_eq!(reward(&mut *environment, None), 0.0);
        prop_assert_eq!(reward(&mut *environment, Some("")), 0.0);
        prop_assert_eq!(reward(&mut *environment, Some(&format!("{answer} 1"))), 0.0);
    }

    #[test]
    fn an_answer_without_the_calls_scores_0(task in any_task()) {
        let (calls, _, answer) = demonstrate(&mut *opened(&task));
        prop_assert_eq!(reward(&mut *opened(&task), None), 0.0);
        for missing in 0..calls.len() {
            let mut rest = calls.clone();
            rest.remove(missing);
            prop_assert_eq!(replay(&task, &rest, &answer), 0.0, "without call {}", missing);
        }
    }

    #[test]
    fn any_single_mutated_argument_scores_0(task in any_task()) {
        let (calls, _, answer) = demonstrate(&mut *opened(&task));
        prop_assert_eq!(replay(&task, &calls, &answer), 1.0);
        for (position, (name, arguments)) in calls.iter().enumerate() {
            for (key, value) in arguments {
                for other in mutations(value) {
                    let mut mutated = calls.clone();
                    mutated[position].1.insert(key.clone(), other.clone());
                    prop_assert_eq!(
                        replay(&task, &mutated, &answer), 0.0,
                        "{}: {} = {} instead of {}", name, key, other, value
                    );
                }
            }
        }
    }

    #[test]
    fn no_call_of_the_expert_repeats_what_is_already_known(task in any_task()) {
        let (calls, texts, _) = demonstrate(&mut *opened(&task));
        let known: BTreeSet<String> =
            calls.iter().zip(&texts).map(|((name, arguments), text)| format!("{name} {arguments:?} {text}")).collect();
        prop_assert_eq!(known.len(), calls.len());
    }

    #[test]
    fn a_task_reference_always_means_the_same_task(task in any_task()) {
        let (mut one, mut other) = (opened(&task), opened(&task));
        prop_assert_eq!(one.prompt(), other.prompt());
        prop_assert_eq!(demonstrate(&mut *one), demonstrate(&mut *other));
    }

    #[test]
    fn extra_look_ups_and_refused_calls_do_no_harm(task in any_task()) {
        let mut environment = opened(&task);
        for name in PRODUCTS {
            call(&mut *environment, "product", json!({"name": name}).as_object().expect("an object"));
            let too_many = json!({"product": name, "quantity": 10});
            let refused = call(&mut *environment, "reserve", too_many.as_object().expect("an object"));
            prop_assert!(matches!(refused, CallOutcome::ToolError(_)));
        }
        let (_, _, answer) = demonstrate(&mut *environment);
        prop_assert_eq!(reward(&mut *environment, Some(&answer)), 1.0);
    }

    #[test]
    fn an_unasked_change_scores_0(task in any_task()) {
        let mut environment = opened(&task);
        let (_, _, answer) = demonstrate(&mut *environment);
        let reserved = PRODUCTS.into_iter().any(|name| {
            let one = json!({"product": name, "quantity": 1});
            let outcome = call(&mut *environment, "reserve", one.as_object().expect("an object"));
            outcome.into_result().is_some()
        });
        prop_assert!(reserved);
        prop_assert_eq!(reward(&mut *environment, Some(&answer)), 0.0);
    }

    #[test]
    fn no_call_can_break_the_market(task in any_task(), calls in prop::collection::vec(any_call(), 0..20)) {
        let mut environment = opened(&task);
        for (name, arguments) in &calls {
            let text = call(&mut *environment, name, arguments).to_text();
            prop_assert!(serde_json::from_str::<Map<String, Value>>(&text).is_ok());
        }
        environment.score(Some("0")).expect("the database works");
    }
}

#[test]
fn one_task_is_pinned() {
    let mut environment = opened(&task("market", "train", 7, 5));
    let (_, texts, answer) = demonstrate(&mut *environment);
    let transcript = format!("{}\n{}\n{answer}", environment.prompt(), texts.join("\n"));
    assert_eq!(transcript, PINNED, "a TaskRef must mean the same task for ever");
}

#[test]
fn held_out_requests_never_occur_in_training() {
    let requests = |split: &str, count: u64| -> BTreeSet<String> {
        (0..count)
            .flat_map(|seed| CALLS.map(move |calls| (seed, calls)))
            .map(|(seed, calls)| opened(&task("market", split, seed, calls)).prompt().to_owned())
            .collect()
    };
    let (train, validation, test) =
        (requests("train", 1_000), requests("validation", 200), requests("test", 200));
    assert!(train.len() > 3_000, "only {} different training requests", train.len());
    assert!(
        train.is_disjoint(&validation) && train.is_disjoint(&test) && validation.is_disjoint(&test)
    );
}
