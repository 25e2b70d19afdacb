//! J4, the coordinator's part: an engine that is rebuilt from the journal is the one that died.

use ballast_coordinator::{engine::Engine, journal::Position};

use super::Checked;

/// The engine that died last with all of its records durable.
#[derive(Debug, Default)]
pub(super) struct Remembered(Option<(Position, Engine)>);

impl Remembered {
    pub(super) fn keep(&mut self, next: Position, engine: Engine) {
        if self.0.as_ref().is_none_or(|(known, _)| *known <= next) {
            self.0 = Some((next, engine));
        }
    }

    pub(super) fn compare(&self, next: Position, rebuilt: &Engine) -> Checked {
        match &self.0 {
            Some((known, engine)) if *known == next && engine != rebuilt => {
                Err(format!("the engine rebuilt from {next} records is not the one that died"))
            }
            _ => Ok(()),
        }
    }
}
