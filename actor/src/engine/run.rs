//! One running episode with its world and its expert: runs the commands of the state machine.

use std::{collections::VecDeque, time::Duration};

use ballast_arena::{CallOutcome, Environment, Expert, InfrastructureError};
use ballast_proto::v1::{CallStatus, Mode, StopReason, Trajectory};
use serde_json::{Value, json};

use crate::{
    assignment::Assignment,
    episode::{Command, Episode, Event, IllegalEvent, ToolRequest, ToolResult},
    language::Language,
};

/// The state machine refused an event: a bug.
pub(super) struct Broken(pub(super) IllegalEvent);

/// One running episode.
pub(super) struct Run {
    episode: Episode,
    /// Absent when the world could not be opened; the episode then fails at once.
    world: Option<World>,
    deadline: Duration,
    wants_token: bool,
}

struct World {
    environment: Box<dyn Environment>,
    /// Present in a demonstration.
    expert: Option<Box<dyn Expert>>,
    /// Result of the last call, for the expert.
    last_result: Option<Value>,
}

impl Run {
    /// Opens the world of an assignment; the event is the first to drive the episode with.
    pub(super) fn open(
        assignment: &Assignment,
        assigned_at: Duration,
        language: Language,
        trajectory_tokens_max: usize,
    ) -> (Self, Event) {
        let opened = World::open(assignment, trajectory_tokens_max);
        let (world, event) = match opened {
            Ok((world, event)) => (Some(world), event),
            Err(failure) => (None, Event::InfrastructureFailed(failure)),
        };
        let episode = Episode::new(assigned_at, assignment.clone(), language);
        let run = Self { episode, world, deadline: Duration::MAX, wants_token: false };
        (run, event)
    }

    /// The wall-clock budget runs from here: waiting for weights is not the episode's fault.
    pub(super) fn start_clock(&mut self, now: Duration, budget: Duration) {
        self.deadline = now.saturating_add(budget);
    }

    /// When the budget runs out.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Tokens of the trajectory so far.
    pub(super) fn tokens(&self) -> usize {
        self.episode.tokens()
    }

    /// Whether the next decode step is to sample for this episode.
    pub(super) fn wants_token(&self) -> bool {
        self.wants_token
    }

    /// Hands `event` to the episode and runs what it asks for, until it wants a token (`None`) or is
    /// finished. Forced tokens go to `feed`.
    pub(super) fn drive(
        &mut self,
        now: Duration,
        event: Event,
        mut feed: impl FnMut(&[u32]),
    ) -> Result<Option<Box<Trajectory>>, Broken> {
        self.wants_token = false;
        let mut events = VecDeque::from([event]);
        // Bounded: each round of events writes a message or ends the episode (`turns_max`).
        while let Some(event) = events.pop_front() {
            for command in self.episode.handle(now, event).map_err(Broken)? {
                match command {
                    Command::Feed(tokens) => feed(&tokens),
                    Command::Sample => self.wants_token = true,
                    Command::AskExpert => events.push_back(self.ask_expert()),
                    Command::CallTools(requests) => events.push_back(self.call_tools(&requests)),
                    Command::Score(answer) => events.push_back(self.score(answer.as_deref())),
                    Command::Finish(trajectory) => {
                        self.log_failure(&trajectory);
                        return Ok(Some(trajectory));
                    }
                }
            }
        }
        Ok(None)
    }

    fn ask_expert(&mut self) -> Event {
        let Some(World { expert: Some(expert), last_result, .. }) = &mut self.world else {
            return Event::InfrastructureFailed("the world has no expert".into());
        };
        Event::ExpertActed(expert.next(last_result.as_ref()))
    }

    fn call_tools(&mut self, requests: &[ToolRequest]) -> Event {
        let Some(world) = &mut self.world else { return no_world() };
        let results: Result<Vec<_>, _> =
            requests.iter().map(|request| world.call(request)).collect();
        match results {
            Ok(results) => Event::ToolsReturned(results),
            Err(error) => Event::InfrastructureFailed(error.to_string()),
        }
    }

    fn score(&mut self, answer: Option<&str>) -> Event {
        let Some(world) = &mut self.world else { return no_world() };
        match world.environment.score(answer) {
            Ok(score) => Event::Scored(score),
            Err(error) => Event::InfrastructureFailed(error.to_string()),
        }
    }

    fn log_failure(&self, trajectory: &Trajectory) {
        if trajectory.stop_reason() == StopReason::Infrastructure {
            let failure = self.episode.failure().unwrap_or("unknown");
            tracing::warn!("episode e{} failed: {failure}", trajectory.episode_id);
        }
    }
}

impl World {
    fn open(
        assignment: &Assignment,
        trajectory_tokens_max: usize,
    ) -> Result<(Self, Event), String> {
        let wanted = assignment.limits.trajectory_tokens_max;
        if wanted > trajectory_tokens_max {
            return Err(format!(
                "the coordinator allows {wanted} tokens and this actor {trajectory_tokens_max}; \
                 give both the same episode.trajectory_tokens_max"
            ));
        }
        let environment =
            ballast_arena::open(&assignment.task).map_err(|error| error.to_string())?;
        let (tools, prompt) = (environment.tools().to_vec(), environment.prompt().to_owned());
        let expert = (assignment.mode == Mode::Demonstrate).then(|| environment.expert());
        Ok((Self { environment, expert, last_result: None }, Event::Started { tools, prompt }))
    }

    fn call(&mut self, request: &ToolRequest) -> Result<ToolResult, InfrastructureError> {
        let outcome = self.environment.call(&request.name, &request.arguments)?;
        let text = outcome.to_text();
        let (status, result) = match outcome {
            CallOutcome::Ok(value) => (CallStatus::Ok, value),
            CallOutcome::ToolError(error) => (CallStatus::ToolError, json!({ "error": error })),
            CallOutcome::UnknownTool => (CallStatus::UnknownTool, Value::Null),
            CallOutcome::BadArguments(error) => {
                (CallStatus::BadArguments, json!({ "error": error }))
            }
        };
        self.last_result = Some(result);
        Ok(ToolResult { status, text })
    }
}

fn no_world() -> Event {
    Event::InfrastructureFailed("the world is not open".into())
}
