//! One episode as a pure state machine: `(now, event)` in, commands out.
//!
//! ```text
//! Prompting --Started--> Generating --a message with calls--> CallingTools
//!                          |     ^                                 |
//!                          |     +----------ToolsReturned----------+
//!                          +--a message without a call, or a limit--> Scoring --Scored--> Finished
//! ```
//! Owns: the conversation, its limits, and the trajectory.
//! Does not know: clocks, the decoder, the world, other episodes.
//! Invariants: M1 holds at every moment (see `record`); a trajectory never exceeds
//! `trajectory_tokens_max`; every episode finishes exactly once, and only an infrastructure failure
//! leaves it without a score.

mod command;
mod event;
mod record;

use std::{mem, time::Duration};

use ballast_arena::{ExpertAction, Score};
use ballast_chat::{
    AssistantMessage, Dialogue, MessageGrammar, ParsedCall, TemplateError,
    parse_message_with_tools, split_reasoning,
};
use ballast_proto::v1::{CallStatus, Mode, StopReason, ToolCall, Trajectory};
use serde_json::Value;

use self::record::Record;
pub use self::{
    command::{Command, ToolRequest},
    event::{Event, TokenSample, ToolResult},
};
use crate::{assignment::Assignment, language::Language};

/// What the policy reads in place of a result when its call does not parse.
pub const MALFORMED_CALL_RESULT: &str = r#"{"error": "malformed call"}"#;

/// An episode generates from its opening on, so this is a bug; it ends the episode, not the actor.
const NOT_OPEN: &str = "the conversation is not open";

/// Above 0 by no more than fp32 rounding: what a log-probability may be.
const LOGPROB_MAX: f32 = 1e-4;

/// Where an episode stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waiting for the world's opening.
    Prompting,
    /// An assistant message is being written.
    Generating,
    /// The calls of the last message run.
    CallingTools,
    /// The verifier judges the outcome.
    Scoring,
    /// Reported.
    Finished,
}

/// An event that the episode cannot take in its state: a bug of the driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an episode that is {state:?} was told {event}")]
pub struct IllegalEvent {
    /// State, which stays as it was.
    pub state: State,
    /// Name of the event.
    pub event: &'static str,
}

/// One running episode.
#[derive(Debug)]
pub struct Episode {
    assignment: Assignment,
    language: Language,
    state: State,
    assigned_at: Duration,
    record: Record,
    /// From the opening on.
    dialogue: Option<Dialogue>,
    message: Message,
    turns: u32,
    outcome: Outcome,
    failure: Option<String>,
}

/// The assistant message being written.
#[derive(Debug)]
struct Message {
    token_ids: Vec<u32>,
    grammar: MessageGrammar,
    /// Present while its calls run.
    calling: Option<AssistantMessage>,
}

/// How the episode ended, as far as it is known.
#[derive(Debug, Default)]
struct Outcome {
    stop_reason: StopReason,
    answer: Option<String>,
    score: Option<Score>,
}

impl Message {
    fn start(language: &Language) -> Self {
        Self {
            token_ids: Vec::new(),
            grammar: MessageGrammar::start(language.tokenizer()),
            calling: None,
        }
    }
}

impl Episode {
    /// A fresh episode, assigned at `now`.
    #[must_use]
    pub fn new(now: Duration, assignment: Assignment, language: Language) -> Self {
        let message = Message::start(&language);
        Self {
            assignment,
            language,
            state: State::Prompting,
            assigned_at: now,
            record: Record::default(),
            dialogue: None,
            message,
            turns: 0,
            outcome: Outcome::default(),
            failure: None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Tokens of the trajectory so far.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.record.len()
    }

    /// What failed, for people, when the stop reason is `INFRASTRUCTURE`.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Takes one event and says what to do next.
    ///
    /// # Errors
    /// The event makes no sense in this state; nothing changed.
    pub fn handle(&mut self, now: Duration, event: Event) -> Result<Vec<Command>, IllegalEvent> {
        let expert_acts = self.assignment.mode == Mode::Demonstrate;
        Ok(match (self.state, event) {
            (State::Prompting, Event::Started { tools, prompt }) => {
                self.on_started(now, &tools, &prompt)
            }
            (State::Generating, Event::TokenSampled(sample)) if !expert_acts => {
                self.on_token_sampled(now, &sample)
            }
            (State::Generating, Event::ExpertActed(action)) if expert_acts => {
                self.on_expert_acted(now, &action)
            }
            (State::CallingTools, Event::ToolsReturned(results))
                if results.len() == self.requests().len() =>
            {
                self.on_tools_returned(now, results)
            }
            (State::Scoring, Event::Scored(score)) => self.on_scored(now, score),
            (State::Generating | State::CallingTools, Event::DeadlineReached) => {
                self.stop(StopReason::TimeLimit)
            }
            (
                State::Prompting | State::Generating | State::CallingTools | State::Scoring,
                Event::InfrastructureFailed(failure),
            ) => self.fail(now, failure),
            (state, event) => return Err(IllegalEvent { state, event: event.name() }),
        })
    }

    fn on_started(&mut self, now: Duration, tools: &[Value], prompt: &str) -> Vec<Command> {
        let (dialogue, opening) = match self.language.open(tools, prompt) {
            Ok(opened) => opened,
            Err(error) => return self.refused(now, &error),
        };
        self.dialogue = Some(dialogue);
        let header = self.language.renderer().assistant_header().to_vec();
        let messages = opening.iter().flat_map(|segment| &segment.token_ids).copied();
        let forced: Vec<u32> = messages.chain(header.iter().copied()).collect();
        if !self.fits(forced.len()) {
            // The prompt alone is too long: no policy could answer, so no policy is to blame.
            let max = self.assignment.limits.trajectory_tokens_max;
            return self.fail(
                now,
                format!(
                    "the prompt takes {} tokens and episode.trajectory_tokens_max is {max}; raise it",
                    forced.len()
                ),
            );
        }
        opening.iter().for_each(|segment| self.record.segment(segment));
        self.record.open_message(&header);
        self.next_message(forced)
    }

    fn on_token_sampled(&mut self, now: Duration, sample: &TokenSample) -> Vec<Command> {
        if !(sample.logprob.is_finite() && sample.logprob <= LOGPROB_MAX) {
            return self.fail(now, format!("the decoder gave log-probability {}", sample.logprob));
        }
        let forbidden = self.message.grammar.forbidden(self.language.tokenizer());
        let masses = sample.control_probs.iter().zip(forbidden);
        let forbidden_mass = masses.filter(|(_, forbidden)| *forbidden).map(|(mass, _)| mass).sum();
        self.record.sampled(sample, forbidden_mass);
        self.message.token_ids.push(sample.token);
        self.message.grammar.advance(sample.token, self.language.tokenizer());

        if self.language.tokenizer().control().is_stop(sample.token) {
            self.on_message_complete()
        } else if self.message.token_ids.len() >= self.assignment.limits.message_tokens_max
            || !self.fits(0)
        {
            self.stop(StopReason::TokenLimit)
        } else {
            vec![Command::Sample]
        }
    }

    fn on_expert_acted(&mut self, now: Duration, action: &ExpertAction) -> Vec<Command> {
        let Some(dialogue) = &self.dialogue else { return self.fail(now, NOT_OPEN.to_owned()) };
        let written = match action {
            ExpertAction::Call { name, arguments } => dialogue.message_of("", &[(name, arguments)]),
            ExpertAction::Answer(text) => dialogue.message_of(text, &[]),
        };
        let token_ids = match written {
            Ok(token_ids) => token_ids,
            Err(error) => return self.refused(now, &error),
        };
        // An expert that could not speak within the policy's limits would teach what cannot be done.
        let limits = self.assignment.limits;
        let room = limits.trajectory_tokens_max.saturating_sub(self.record.len());
        if token_ids.len() > limits.message_tokens_max.min(room) {
            return self.stop(StopReason::TokenLimit);
        }
        self.record.demonstrated(&token_ids);
        self.message.token_ids = token_ids;
        self.on_message_complete()
    }

    fn on_message_complete(&mut self) -> Vec<Command> {
        let parsed = self.parsed_message();
        self.turns += 1;
        if parsed.calls.is_empty() {
            self.record.close_message(parsed.state, Vec::new());
            let (_reasoning, answer) = split_reasoning(&parsed.text);
            self.outcome.stop_reason = StopReason::Done;
            self.outcome.answer = Some(answer.to_owned());
            self.state = State::Scoring;
            return vec![Command::Score(Some(answer.to_owned()))];
        }
        self.message.calling = Some(parsed);
        self.state = State::CallingTools;
        vec![Command::CallTools(self.requests())]
    }

    fn on_tools_returned(&mut self, now: Duration, results: Vec<ToolResult>) -> Vec<Command> {
        let (Some(reply), Some(dialogue)) = (self.message.calling.take(), &mut self.dialogue)
        else {
            return self.fail(now, NOT_OPEN.to_owned());
        };
        let (calls, texts) = settle(&reply, results);
        if self.turns >= self.assignment.limits.turns_max {
            self.record.close_message(reply.state, calls);
            return self.stop(StopReason::TurnLimit);
        }
        let continuation = match dialogue.answer(&reply, &texts) {
            Ok(continuation) => continuation,
            Err(error) => {
                self.record.close_message(reply.state, calls);
                return self.refused(now, &error);
            }
        };
        let header = self.language.renderer().assistant_header().to_vec();
        let forced = [&*continuation.trailer, &continuation.results.token_ids, &header].concat();
        if !self.fits(forced.len()) {
            self.record.close_message(reply.state, calls);
            return self.stop(StopReason::TokenLimit);
        }
        self.record.forced(&continuation.trailer);
        self.record.close_message(reply.state, calls);
        self.record.segment(&continuation.results);
        self.record.open_message(&header);
        self.next_message(forced)
    }

    fn on_scored(&mut self, now: Duration, score: Score) -> Vec<Command> {
        self.outcome.score = Some(score);
        self.finish(now)
    }

    /// The well-formed calls of the message whose calls run, in order.
    fn requests(&self) -> Vec<ToolRequest> {
        let calls = self.message.calling.iter().flat_map(|message| &message.calls);
        calls
            .filter(|call| !call.malformed)
            .map(|call| ToolRequest { name: call.name.clone(), arguments: call.arguments.clone() })
            .collect()
    }

    /// What the message says, as far as it is written.
    fn parsed_message(&self) -> AssistantMessage {
        let tools = self.dialogue.as_ref().map_or(&[][..], Dialogue::tools);
        parse_message_with_tools(self.language.tokenizer(), &self.message.token_ids, tools)
    }

    /// Begins to generate after `forced` tokens.
    fn next_message(&mut self, forced: Vec<u32>) -> Vec<Command> {
        self.message = Message::start(&self.language);
        self.state = State::Generating;
        if self.assignment.mode == Mode::Demonstrate {
            vec![Command::AskExpert]
        } else {
            vec![Command::Feed(forced), Command::Sample]
        }
    }

    /// Whether `forced` more tokens and one sampled token stay within the trajectory's limit.
    fn fits(&self, forced: usize) -> bool {
        self.record.len() + forced < self.assignment.limits.trajectory_tokens_max
    }

    /// A limit ended the episode: it is scored without an answer, so it earns what the world gives
    /// for that, and it counts in every statistic.
    fn stop(&mut self, reason: StopReason) -> Vec<Command> {
        self.close_unfinished_message();
        self.outcome.stop_reason = reason;
        self.state = State::Scoring;
        vec![Command::Score(None)]
    }

    /// Something other than the policy failed: no score, masked from every statistic.
    fn fail(&mut self, now: Duration, failure: String) -> Vec<Command> {
        self.failure = Some(failure);
        self.close_unfinished_message();
        self.outcome = Outcome { stop_reason: StopReason::Infrastructure, ..Outcome::default() };
        self.finish(now)
    }

    /// The chat template refuses what was said, which no policy is to blame for.
    fn refused(&mut self, now: Duration, error: &TemplateError) -> Vec<Command> {
        self.fail(now, format!("the conversation cannot be rendered: {error}"))
    }

    /// Closes a message that was cut off. Its malformed calls are recorded; its well-formed ones
    /// never ran, so they have no outcome to record.
    fn close_unfinished_message(&mut self) {
        if self.message.token_ids.is_empty() {
            self.record.discard_message();
            return;
        }
        let parsed = self.parsed_message();
        let malformed = parsed.calls.iter().filter(|call| call.malformed);
        let calls = malformed.map(|call| wire_call(call, CallStatus::Malformed)).collect();
        self.record.close_message(parsed.state, calls);
    }

    fn finish(&mut self, now: Duration) -> Vec<Command> {
        self.state = State::Finished;
        let outcome = mem::take(&mut self.outcome);
        let duration = now.saturating_sub(self.assigned_at);
        let mut trajectory = Trajectory {
            episode_id: self.assignment.episode_id.0,
            group_id: self.assignment.group_id.map(|group| group.0),
            task: Some(self.assignment.task.clone()),
            mode: self.assignment.mode.into(),
            stop_reason: outcome.stop_reason.into(),
            reward: outcome.score.map(|score| score.reward),
            success: outcome.score.map(|score| score.success),
            answer: outcome.answer,
            sampling_seed: self.assignment.sampling.seed,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            ..Trajectory::default()
        };
        mem::take(&mut self.record).write_into(&mut trajectory);
        vec![Command::Finish(Box::new(trajectory))]
    }
}

/// Joins the calls of a message with their results: the record of each call, and the text the
/// policy reads. `results` answer the well-formed calls in order (checked by `handle`).
fn settle(message: &AssistantMessage, results: Vec<ToolResult>) -> (Vec<ToolCall>, Vec<String>) {
    let mut results = results.into_iter();
    let settled = message.calls.iter().map(|call| {
        let result = if call.malformed { None } else { results.next() };
        match result {
            Some(result) => (wire_call(call, result.status), result.text),
            None => (wire_call(call, CallStatus::Malformed), MALFORMED_CALL_RESULT.to_owned()),
        }
    });
    settled.unzip()
}

fn wire_call(call: &ParsedCall, status: CallStatus) -> ToolCall {
    ToolCall {
        name: call.name.clone(),
        arguments_json: if call.malformed {
            String::new()
        } else {
            Value::Object(call.arguments.clone()).to_string()
        },
        status: status.into(),
        raw: call.raw.clone(),
    }
}

#[cfg(test)]
mod tests;
