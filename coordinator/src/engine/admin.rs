//! What people ask a run to do, and what they are told of its decisions.
//!
//! Every change leaves an audit entry, refused ones too. A change of settings names the revision it
//! was based on, so that two people cannot overwrite each other unseen.

use std::time::Duration;

use ballast_proto::{
    ActorId,
    v1::{
        AdminChange, AuditEntry, Drain, ScheduleDecision, ScheduleResponse, SetRequest,
        SettingsResponse, admin_change::Change, coordinator_message::Message, effect,
    },
};
use ballast_runtime::{config::Config, config_file};

use super::{
    CallId, ChangeAnswer, ChangeRefusal, Command, Engine,
    records::cut,
    schedule::{Decision, Description},
};

/// Decisions people can look back on; all of them are in the journal.
const DECISIONS_MAX: usize = 64;
/// Settings that can be changed while a run goes on: sections end with a dot.
const LIVE: [&str; 4] = ["schedule.", "rl.learning_rate", "rl.temperature", "sft.learning_rate"];

impl Engine {
    /// Where the schedule is and how it came there, for the admin API.
    #[must_use]
    pub fn schedule(&self) -> ScheduleResponse {
        let Description { phase, why, ends, decided } = self.schedule.describe();
        let control = self.schedule.control();
        ScheduleResponse {
            kind: self.config.schedule.kind.as_str().into(),
            phase,
            why,
            ends,
            step: self.version.0,
            decided_step: decided,
            sft_share: control.map(|(share, _)| share),
            strain: control.and_then(|(_, strain)| strain),
            decisions: self.decisions.iter().cloned().collect(),
            revision: self.revision,
            settings: config_file::section_to_toml(&self.config, "schedule"),
        }
    }

    /// The settings that can be changed now, for the admin API.
    #[must_use]
    pub fn settings(&self) -> SettingsResponse {
        let settings = config_file::keys_to_toml(&self.config, &LIVE);
        SettingsResponse { settings, revision: self.revision }
    }

    pub(super) fn on_admin_requested(
        &mut self,
        now: Duration,
        call: CallId,
        who: String,
        change: &AdminChange,
    ) {
        let Some(asked) = &change.change else {
            let answer = Err(ChangeRefusal::Invalid("the change is missing".into()));
            self.push(Command::AnswerChange { call, answer });
            return;
        };
        let answer = self.change(asked);
        let what = cut(&describe(asked));
        match &answer {
            Ok(_) => self.push(Command::Inform(format!("{who} asked for: {what}"))),
            Err(refusal) => {
                let text = format!("{who} asked for {what}, which is refused: {refusal}");
                self.push(Command::Warn(text));
            }
        }
        let entry = AuditEntry {
            t: now.as_secs_f64(),
            who: cut(&who),
            what,
            reason: cut(&change.reason),
            refusal: answer.as_ref().err().map(|why| cut(&why.to_string())).unwrap_or_default(),
        };
        self.records.audit(entry.clone());
        self.effect(effect::Effect::Audit(entry));
        self.push(Command::AnswerChange { call, answer });
    }

    fn change(&mut self, asked: &Change) -> Result<ChangeAnswer, ChangeRefusal> {
        match asked {
            Change::Pause(_) => self.pause()?,
            Change::Resume(_) => self.paused = false,
            Change::Stop(_) => self.stop(),
            Change::Set(request) => return self.set(request),
            Change::DrainActor(request) => self.drain_actor(&request.actor_id)?,
            Change::Checkpoint(_) => {
                let step = self.schedule.request_checkpoint().map_err(untimely)?;
                return Ok(ChangeAnswer::Checkpoint { step });
            }
            Change::Evaluate(_) => {
                self.schedule.request_evaluation().map_err(untimely)?;
            }
        }
        Ok(ChangeAnswer::Done)
    }

    /// A run that is ending is not held up: nothing would resume it.
    fn pause(&mut self) -> Result<(), ChangeRefusal> {
        if self.schedule.is_stopped() || !self.ending.is_running() {
            return Err(untimely("the run is about to end; there is nothing left to pause"));
        }
        self.paused = true;
        Ok(())
    }

    fn set(&mut self, request: &SetRequest) -> Result<ChangeAnswer, ChangeRefusal> {
        let SetRequest { changes, reason, revision } = request;
        if changes.is_empty() {
            let text = "nothing to change; write KEY=VALUE, as in schedule.rl_steps=2";
            return Err(ChangeRefusal::Invalid(text.into()));
        }
        if let Some(based_on) = revision.filter(|based_on| *based_on != self.revision) {
            return Err(ChangeRefusal::Untimely(format!(
                "the change is based on revision {based_on}, but the settings are at revision {}; \
                 look at them again",
                self.revision
            )));
        }
        let config = changed(&self.config, changes)?;
        let what = changes.join(", ");
        let why = if reason.is_empty() { what } else { format!("{what}: {reason}") };
        let step = self.schedule.change(&config, &cut(&why)).map_err(untimely)?;
        self.config = config;
        self.revision += 1;
        Ok(ChangeAnswer::Set { revision: self.revision, step })
    }

    fn drain_actor(&mut self, actor_id: &str) -> Result<(), ChangeRefusal> {
        let actor = ActorId(actor_id.to_owned());
        let unknown = || format!("no actor is called {actor_id}; `ballast actors` lists them");
        if self.members.get(&actor).is_none() {
            return Err(ChangeRefusal::Unknown(unknown()));
        }
        if let Some(session) = self.members.drain(&actor) {
            self.send(session, Message::Drain(Drain {}));
        }
        Ok(())
    }

    /// Journals what the schedule decided.
    pub(super) fn note_decisions(&mut self, now: Duration) {
        let t = now.as_secs_f64();
        for Decision { step, what, reason } in self.schedule.take_notes() {
            let decision = ScheduleDecision { step, what, reason, t };
            self.effect(effect::Effect::Decision(decision.clone()));
            self.decisions.push_back(decision);
        }
        while self.decisions.len() > DECISIONS_MAX {
            self.decisions.pop_front();
        }
    }
}

/// The configuration with live settings changed, checked as a whole.
fn changed(config: &Config, changes: &[String]) -> Result<Config, ChangeRefusal> {
    let is_live = |change: &&String| {
        let key = change.split('=').next().unwrap_or_default().trim();
        LIVE.iter().any(|live| key == *live || (live.ends_with('.') && key.starts_with(live)))
    };
    if let Some(fixed) = changes.iter().find(|change| !is_live(change)) {
        return Err(ChangeRefusal::Invalid(format!(
            "`{fixed}` cannot be changed while the run goes on; what can be: {}",
            LIVE.map(|live| if live.ends_with('.') { format!("{live}*") } else { live.into() })
                .join(", ")
        )));
    }
    config_file::change(config, changes).map_err(|error| ChangeRefusal::Invalid(error.to_string()))
}

fn untimely(text: &'static str) -> ChangeRefusal {
    ChangeRefusal::Untimely(text.into())
}

/// A change in words, for the audit log.
fn describe(asked: &Change) -> String {
    match asked {
        Change::Pause(_) => "pause".into(),
        Change::Resume(_) => "resume".into(),
        Change::Stop(_) => "stop".into(),
        Change::Set(request) => format!("set {}", request.changes.join(", ")),
        Change::DrainActor(request) => format!("drain actor {}", request.actor_id),
        Change::Checkpoint(_) => "checkpoint".into(),
        Change::Evaluate(_) => "evaluate".into(),
    }
}
