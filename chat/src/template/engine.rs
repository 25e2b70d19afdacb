//! One compiled template: the Jinja environment that `transformers` sets up, and its limits.

use std::{
    fmt,
    io::{self, Write},
    panic::{self, AssertUnwindSafe},
};

use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, syntax::SyntaxConfig};

use super::{
    MAX_PROMPT_BYTES, MAX_TEMPLATE_BYTES, RECURSION_MAX, STACK_BYTES, STEPS_BASE, STEPS_MAX,
    STEPS_PER_ITEM,
    error::TemplateError,
    generation,
    marks::is_reserved,
    python,
    strftime::{Clock, strftime},
    tojson::tojson,
};

/// Name of the only template in its environment.
const NAME: &str = "chat_template";

/// A compiled template.
pub(super) struct Engine {
    file: String,
    environment: Environment<'static>,
    marks_generation: bool,
    /// What it asks for and does not define itself, functions left out.
    variables: Vec<String>,
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Memory that refuses to grow beyond a limit.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl Engine {
    /// Compiles `source`, which errors will call `file`.
    pub(super) fn compile(
        file: &str,
        source: &str,
        clock: Option<Clock>,
    ) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLarge {
                what: file.to_owned(),
                limit: MAX_TEMPLATE_BYTES,
                remedy: "no chat template needs that much",
            });
        }
        if let Some(c) = source.chars().find(|&c| is_reserved(c)) {
            let reason = format!("it has the reserved character U+{:X}; remove it", u32::from(c));
            return Err(TemplateError::Config { file: file.to_owned(), reason });
        }
        // Python reads a file with its line ends translated.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (source, marks_generation) = generation::rewrite_tags(&source);
        let mut environment = environment(clock);
        let variables = on_own_stack(file, || {
            let syntax = |error: Error| TemplateError::Syntax {
                file: file.to_owned(),
                line: error.line().unwrap_or(1),
                reason: reason(&error),
            };
            environment.add_template_owned(NAME, source).map_err(syntax)?;
            let asked = environment.get_template(NAME).map_err(syntax)?.undeclared_variables(false);
            let is_function =
                |name: &String| environment.globals().any(|(global, _)| global == name);
            let mut variables: Vec<_> =
                asked.into_iter().filter(|name| !is_function(name)).collect();
            variables.sort_unstable();
            Ok(variables)
        })?;
        Ok(Self { file: file.to_owned(), environment, marks_generation, variables })
    }

    /// What errors call it.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// The variables it asks for.
    pub(super) fn variables(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(String::as_str)
    }

    /// Whether the template has `{% generation %}` blocks.
    pub(super) fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// What the template writes, marks included. `items` are the messages, tools and documents of
    /// the context, which decide how many steps it may take.
    pub(super) fn render(&self, context: Value, items: usize) -> Result<String, TemplateError> {
        let steps = (items as u64).saturating_mul(STEPS_PER_ITEM).saturating_add(STEPS_BASE);
        let steps = steps.min(STEPS_MAX);
        // Clones share the compiled template.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        let mut out = Bounded::default();
        on_own_stack(&self.file, || {
            let template = environment.get_template(NAME);
            let rendered = template.and_then(|t| t.render_captured_to(context, &mut out));
            rendered.map(drop).map_err(|error| self.explain(&error, out.full, steps))
        })?;
        Ok(String::from_utf8(out.bytes).expect("the engine writes UTF-8"))
    }

    fn explain(&self, error: &Error, full: bool, steps: u64) -> TemplateError {
        let (file, line) = (self.file.clone(), error.line().unwrap_or(1));
        if full {
            return TemplateError::TooLarge {
                what: "the rendered conversation".into(),
                limit: MAX_PROMPT_BYTES,
                remedy: "shorten its messages or drop the oldest",
            };
        }
        if error.kind() == ErrorKind::OutOfFuel {
            return TemplateError::TooSlow { file, steps };
        }
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        while let Some(current) = cause {
            if let Some(Raised(message)) = current.downcast_ref() {
                return TemplateError::Raised { file, line, message: message.clone() };
            }
            cause = current.source();
        }
        TemplateError::Render { file, line, reason: reason(error) }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, marks_generation, .. } = self;
        f.debug_struct("Engine")
            .field("file", file)
            .field("marks_generation", marks_generation)
            .finish_non_exhaustive()
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_PROMPT_BYTES {
            self.full = true;
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The environment of `transformers`: `trim_blocks`, `lstrip_blocks`, loop controls, no escaping,
/// Jinja2's own rules for undefined values, and five names of its own.
fn environment(clock: Option<Clock>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the delimiters are the usual ones"),
    );
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_debug(true);
    environment.set_formatter(python::print);
    environment.set_unknown_method_callback(python::call_method);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| python::string(value).map(Value::from));
    environment.add_filter("trim", python::trim);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", python::is_iterable);
    environment.remove_global("debug");
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let message = message.to_string();
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function(generation::FUNCTION, generation::mark_generation);
    if let Some(clock) = clock {
        environment.add_function("strftime_now", move |format: &str| {
            strftime(format, clock()).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
        });
    }
    environment
}

/// Runs what a template, which comes from outside, may turn against the process: the engine
/// recurses over expressions and nested values as deep as they are, and an odd slice makes it
/// panic. A stack that holds the worst the limits allow contains the one, and a panic is caught.
/// Whatever holds values has to be dropped inside `run`. A thread would do as well, but to wait for
/// one takes longer than most templates do, far longer where the cores are busy.
fn on_own_stack<T>(
    file: &str,
    run: impl FnOnce() -> Result<T, TemplateError>,
) -> Result<T, TemplateError> {
    let caught = || panic::catch_unwind(AssertUnwindSafe(run));
    stacker::grow(STACK_BYTES, caught).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic");
        Err(TemplateError::Engine { file: file.to_owned(), reason: said.to_owned() })
    })
}

fn reason(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
