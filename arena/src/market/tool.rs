//! The six tools, and what a well-formed call of each is.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::environment::CallOutcome;

/// The tools as the system prompt lists them.
pub(super) static DEFINITIONS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    vec![
        json!({"name": "product", "parameters": {"name": "string"}}),
        json!({"name": "customer", "parameters": {"name": "string"}}),
        json!({"name": "compute", "parameters": {"op": "add|sub|mul", "a": "integer", "b": "integer"}}),
        json!({"name": "reserve", "parameters": {"product": "string", "quantity": "integer"}}),
        json!({"name": "order", "parameters": {"customer": "string", "reservation": "integer"}}),
        json!({"name": "refund", "parameters": {"order": "integer"}}),
    ]
});

/// A well-formed call: a known tool with exactly its arguments, each of its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ToolCall {
    Product { name: String },
    Customer { name: String },
    Compute { operation: Operation, a: i64, b: i64 },
    Reserve { product: String, quantity: i64 },
    Order { customer: String, reservation: i64 },
    Refund { order: i64 },
}

/// What `compute` can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Sub,
    Mul,
}

impl ToolCall {
    /// Reads a call as the policy wrote it; otherwise the outcome to answer with. Reasons name our own
    /// parameters and never quote the policy's text.
    pub(super) fn parse(name: &str, arguments: &Map<String, Value>) -> Result<Self, CallOutcome> {
        let arguments = Arguments(arguments);
        let call = match name {
            "product" => Self::Product { name: arguments.text("name")? },
            "customer" => Self::Customer { name: arguments.text("name")? },
            "compute" => Self::Compute {
                operation: Operation::parse(&arguments.text("op")?)?,
                a: arguments.integer("a")?,
                b: arguments.integer("b")?,
            },
            "reserve" => Self::Reserve {
                product: arguments.text("product")?,
                quantity: arguments.integer("quantity")?,
            },
            "order" => Self::Order {
                customer: arguments.text("customer")?,
                reservation: arguments.integer("reservation")?,
            },
            "refund" => Self::Refund { order: arguments.integer("order")? },
            _ => return Err(CallOutcome::UnknownTool),
        };
        // Every parameter was found above, so more arguments than parameters means unknown ones.
        if arguments.0.len() > call.arguments().len() {
            return Err(CallOutcome::BadArguments("unexpected argument".into()));
        }
        Ok(call)
    }

    /// Name of the tool.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Product { .. } => "product",
            Self::Customer { .. } => "customer",
            Self::Compute { .. } => "compute",
            Self::Reserve { .. } => "reserve",
            Self::Order { .. } => "order",
            Self::Refund { .. } => "refund",
        }
    }

    /// Arguments in the order of the definition.
    pub(super) fn arguments(&self) -> Map<String, Value> {
        let pairs = match self {
            Self::Product { name } | Self::Customer { name } => vec![("name", json!(name))],
            Self::Compute { operation, a, b } => {
                vec![("op", json!(operation.name())), ("a", json!(a)), ("b", json!(b))]
            }
            Self::Reserve { product, quantity } => {
                vec![("product", json!(product)), ("quantity", json!(quantity))]
            }
            Self::Order { customer, reservation } => {
                vec![("customer", json!(customer)), ("reservation", json!(reservation))]
            }
            Self::Refund { order } => vec![("order", json!(order))],
        };
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Arguments as text that is equal for calls that mean the same: the order of the policy's keys
    /// is gone, and the operands of a commutative operation are sorted.
    pub(super) fn canonical_arguments(&self) -> String {
        let mut call = self.clone();
        if let Self::Compute { operation: Operation::Add | Operation::Mul, a, b } = &mut call {
            (*a, *b) = ((*a).min(*b), (*a).max(*b));
        }
        Value::Object(call.arguments()).to_string()
    }
}

impl Operation {
    fn parse(name: &str) -> Result<Self, CallOutcome> {
        [Self::Add, Self::Sub, Self::Mul]
            .into_iter()
            .find(|operation| operation.name() == name)
            .ok_or_else(|| CallOutcome::BadArguments("op must be add, sub or mul".into()))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
        }
    }
}

/// Arguments as the policy wrote them.
struct Arguments<'a>(&'a Map<String, Value>);

impl Arguments<'_> {
    fn text(&self, name: &str) -> Result<String, CallOutcome> {
        self.typed(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    fn integer(&self, name: &str) -> Result<i64, CallOutcome> {
        self.typed(name, "an integer", Value::as_i64)
    }

    fn typed<T>(
        &self,
        name: &str,
        kind: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, CallOutcome> {
        let value = self
            .0
            .get(name)
            .ok_or_else(|| CallOutcome::BadArguments(format!("missing argument {name}")))?;
        read(value).ok_or_else(|| CallOutcome::BadArguments(format!("{name} must be {kind}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, arguments: Value) -> Result<ToolCall, CallOutcome> {
        ToolCall::parse(name, arguments.as_object().expect("arguments are an object"))
    }

    fn calls() -> Vec<ToolCall> {
        vec![
            ToolCall::Product { name: "lamp".into() },
            ToolCall::Customer { name: "mira".into() },
            ToolCall::Compute { operation: Operation::Sub, a: 3, b: 14 },
            ToolCall::Reserve { product: "lamp".into(), quantity: 3 },
            ToolCall::Order { customer: "mira".into(), reservation: 57 },
            ToolCall::Refund { order: 41 },
        ]
    }

    #[test]
    fn definitions_list_exactly_what_parses() {
        assert_eq!(DEFINITIONS.len(), calls().len());
        for (call, definition) in calls().into_iter().zip(DEFINITIONS.iter()) {
            assert_eq!(definition["name"], call.name());
            let parameters = definition["parameters"].as_object().expect("parameters are listed");
            assert!(parameters.keys().eq(call.arguments().keys()));
            assert_eq!(ToolCall::parse(call.name(), &call.arguments()), Ok(call));
        }
    }

    #[test]
    fn bad_arguments_are_named() {
        let check = |name: &str, arguments: Value, reason: &str| {
            let outcome = CallOutcome::BadArguments(reason.into());
            assert_eq!(parse(name, arguments), Err(outcome));
        };
        check("product", json!({}), "missing argument name");
        check("product", json!({"name": 3}), "name must be a string");
        check("product", json!({"name": "lamp", "x": 1}), "unexpected argument");
        check(
            "reserve",
            json!({"product": "lamp", "quantity": "3"}),
            "quantity must be an integer",
        );
        check(
            "reserve",
            json!({"product": "lamp", "quantity": 3.0}),
            "quantity must be an integer",
        );
        check("refund", json!({"order": u64::MAX}), "order must be an integer");
        check("compute", json!({"op": "div", "a": 1, "b": 2}), "op must be add, sub or mul");
        assert_eq!(parse("delete", json!({})), Err(CallOutcome::UnknownTool));
    }

    #[test]
    fn canonical_arguments_forget_key_order_and_commuted_operands() {
        let canonical = |arguments| {
            parse("compute", arguments).expect("arguments are good").canonical_arguments()
        };
        for op in ["add", "mul"] {
            let one = canonical(json!({"op": op, "a": 14, "b": 3}));
            assert_eq!(one, canonical(json!({"b": 14, "a": 3, "op": op})));
        }
        let sub = canonical(json!({"op": "sub", "a": 14, "b": 3}));
        assert_ne!(sub, canonical(json!({"op": "sub", "a": 3, "b": 14})));
    }
}
