//! What people are told of the schedule's decisions, and how they change it.

use std::time::Duration;

use ballast_proto::v1::{
    ScheduleDecision, ScheduleResponse, SetScheduleRequest, SetScheduleResponse,
};
use ballast_runtime::config_file;

use super::{
    CallId, ChangeRefusal, Command, Engine,
    schedule::{Decision, Description},
};

/// Decisions people can look back on; all of them are in the journal.
const DECISIONS_MAX: usize = 64;

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

    pub(super) fn on_schedule_change_requested(
        &mut self,
        call: CallId,
        request: &SetScheduleRequest,
    ) {
        let answer = self.change_schedule(request);
        if let Err(refusal) = &answer {
            self.push(Command::Warn(format!("a change of the schedule is refused: {refusal}")));
        }
        self.push(Command::AnswerChange { call, answer });
    }

    fn change_schedule(
        &mut self,
        request: &SetScheduleRequest,
    ) -> Result<SetScheduleResponse, ChangeRefusal> {
        let SetScheduleRequest { changes, reason, revision } = request;
        if changes.is_empty() {
            let text = "nothing to change; write KEY=VALUE, as in rl_steps=2";
            return Err(ChangeRefusal::Invalid(text.into()));
        }
        if let Some(based_on) = revision.filter(|based_on| *based_on != self.revision) {
            return Err(ChangeRefusal::Untimely(format!(
                "the change is based on revision {based_on}, but the schedule is at revision {}; \
                 look at it again",
                self.revision
            )));
        }
        if let Some(problem) = &self.blocked {
            return Err(ChangeRefusal::Untimely(format!("a change must be journaled: {problem}")));
        }
        let config = config_file::change(&self.config, "schedule", changes)
            .map_err(|error| ChangeRefusal::Invalid(error.to_string()))?;
        let what = changes.join(", ");
        let why = if reason.is_empty() { what.clone() } else { format!("{what}: {reason}") };
        let step = self
            .schedule
            .change(config.schedule.clone(), &why)
            .map_err(|text| ChangeRefusal::Untimely(text.into()))?;
        self.config = config;
        self.revision += 1;
        let revision = self.revision;
        self.note(serde_json::json!({
            "event": "schedule_changed", "revision": revision, "changes": changes,
            "reason": reason, "from_step": step,
        }));
        self.push(Command::Inform(format!("from step {step} on: {why}")));
        Ok(SetScheduleResponse { revision, step })
    }

    /// Journals what the schedule decided; while the journal is blocked, that waits.
    pub(super) fn note_decisions(&mut self, now: Duration) {
        if self.blocked.is_some() {
            return;
        }
        let t = now.as_secs_f64();
        let taken = self.schedule.take_notes();
        if taken.is_empty() {
            return;
        }
        let decision = |one: &Decision| serde_json::json!({"step": one.step, "what": one.what, "reason": one.reason});
        let decisions: Vec<serde_json::Value> = taken.iter().map(decision).collect();
        self.note(serde_json::json!({"event": "decided", "t": t, "decisions": decisions}));
        for Decision { step, what, reason } in taken {
            self.decisions.push_back(ScheduleDecision { step, what, reason, t });
        }
        while self.decisions.len() > DECISIONS_MAX {
            self.decisions.pop_front();
        }
    }
}
