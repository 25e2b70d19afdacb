//! A learner, scripted: it carries batches out in order, publishes each version, saves checkpoints,
//! reports until it is believed, dies, and starts again from the newest checkpoint. There may be a
//! second one that somebody started while the first could not be reached.

use std::{collections::VecDeque, time::Duration};

use ballast_coordinator::engine::SERVED_AHEAD_MAX;
use ballast_proto::v1::{CompleteStepRequest, NextBatchRequest, StepKind, TrainBatch};

use crate::{
    agenda::{Time, Timer, What},
    dice::{Dice, Part},
    env::{Env, Held},
    invariants::Sizes,
    network::{Exit, LinkId, Message, Side},
    node::Node,
    plant::Plant,
    scenario::VOCABULARY,
    trace::Fnv,
};

/// How long a step takes, milliseconds.
const STEP_MS: [u64; 2] = [100, 3_000];
/// Time the coordinator has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two attempts to find the coordinator, milliseconds.
const RETRY_MS: [u64; 2] = [100, 2_000];
/// A refusal that lasts longer is final.
const REFUSED_MAX: Duration = Duration::from_secs(45);

/// What it is at.
#[derive(Debug)]
enum Doing {
    /// Nobody is connected.
    Searching,
    /// It has asked for batches.
    Opening,
    /// It waits for a batch.
    Waiting,
    /// It carries out a batch.
    Working(Box<TrainBatch>),
    /// It waits for the answer to this call.
    Reporting(u64),
    /// The run is over.
    Finished,
}

/// A learner.
#[derive(Debug)]
pub(crate) struct Learner {
    index: usize,
    name: String,
    /// Of the process here.
    incarnation: u64,
    /// As it says itself: later is larger, wherever it runs.
    generation: u64,
    up: bool,
    held: Held,
    run_id: String,
    doing: Doing,
    link: Option<LinkId>,
    /// The link over which it has asked for batches.
    opened: Option<LinkId>,
    target: usize,
    batches: VecDeque<TrainBatch>,
    /// Carried out, and not confirmed.
    unreported: Option<CompleteStepRequest>,
    calls: u64,
    refused_since: Option<Time>,
    dice: Dice,
}

impl Learner {
    pub(crate) fn new(env: &Env, index: usize, name: String) -> Self {
        Self {
            index,
            name,
            incarnation: 0,
            generation: 0,
            up: false,
            held: (0, [7; 32]),
            run_id: String::new(),
            doing: Doing::Searching,
            link: None,
            opened: None,
            target: 0,
            batches: VecDeque::new(),
            unreported: None,
            calls: 0,
            refused_since: None,
            dice: Dice::new(env.seed, Part::Learner, index),
        }
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn timer(&self, env: &mut Env, after: Duration, timer: Timer) {
        env.timer(self.node(), self.incarnation, env.now + after, timer);
    }

    fn node(&self) -> Node {
        Node::Learner(self.index)
    }

    fn address(&self) -> String {
        format!("{}-{}:1", self.name, self.generation)
    }

    /// Starts from the newest checkpoint. Returns whether it published anything.
    pub(crate) fn start(&mut self, env: &mut Env) -> bool {
        let is_over = env.finished || matches!(self.doing, Doing::Finished);
        if self.up || is_over || env.learner_home != self.index {
            return false;
        }
        (self.up, self.incarnation) = (true, self.incarnation + 1);
        self.generation = env.now.as_millis() as u64 * 16 + self.index as u64 + 1;
        if !env.has(Plant::KeepUnsaved) {
            env.oracle.on_restored(self.index);
        }
        (self.held, self.run_id) = env.weights.saved.clone();
        self.doing = Doing::Searching;
        (self.link, self.opened) = (None, None);
        (self.unreported, self.refused_since) = (None, None);
        self.batches.clear();
        env.note(format_args!("{} starts from step {}", self.node(), self.held.0));
        self.publish(env);
        self.timer(env, Duration::ZERO, Timer::Connect);
        true
    }

    pub(crate) fn die(&mut self, env: &mut Env) {
        if !self.up {
            return;
        }
        env.note(format_args!("{} dies", self.node()));
        self.go_down(env);
    }

    fn go_down(&mut self, env: &mut Env) {
        (self.up, self.incarnation) = (false, self.incarnation + 1);
        env.weights.offered.remove(&self.address());
        env.network.leave((env.now, &mut env.agenda), self.node(), Exit::Told);
        let at = env.now + self.dice.millis(500, 10_000);
        env.agenda.note(at, What::Start(self.node()));
    }

    fn publish(&self, env: &mut Env) {
        let (version, hash) = self.held;
        env.weights.offered.insert(self.address(), self.held);
        env.weights.all.insert(version, hash);
    }

    // === the coordinator ===

    /// Returns whether it published anything.
    pub(crate) fn on_timer(&mut self, env: &mut Env, timer: Timer) -> bool {
        match timer {
            Timer::Connect => self.connect(env),
            Timer::Unanswered(link) => {
                let waits = matches!(self.doing, Doing::Opening | Doing::Reporting(_));
                if waits && self.link == Some(link) {
                    env.close(link, Side::Client);
                    self.on_lost(env);
                }
            }
            Timer::Done => return self.done(env),
            _ => {}
        }
        false
    }

    fn connect(&mut self, env: &mut Env) {
        if self.link.is_some() {
            return;
        }
        let Some(link) = env.connect(self.node(), self.target) else {
            return self.connect_again(env);
        };
        self.link = Some(link);
        // An answer that the last stream may have lost is given again before anything else.
        if self.unreported.is_some() {
            self.report(env, link);
        } else {
            self.ask(env, link);
        }
    }

    fn connect_again(&mut self, env: &mut Env) {
        self.target = 1 - self.target;
        let pause = self.dice.millis(RETRY_MS[0], RETRY_MS[1]);
        self.timer(env, pause, Timer::Connect);
    }

    fn on_lost(&mut self, env: &mut Env) {
        self.link = None;
        self.batches.clear();
        // What is being carried out is carried out, and reported over the next link.
        if !matches!(self.doing, Doing::Working(_)) {
            self.doing = Doing::Searching;
            self.connect_again(env);
        }
    }

    fn ask(&mut self, env: &mut Env, link: LinkId) {
        let (last_step, hash) = self.held;
        let request = NextBatchRequest {
            learner_id: self.name.clone(),
            generation: self.generation,
            last_step,
            weights_address: self.address(),
            manifest_hash: hash.to_vec(),
            run_id: self.run_id.clone(),
            vocabulary: if env.scenario.says_vocabulary { VOCABULARY } else { 0 },
        };
        let (node, target) = (self.node(), self.target);
        env.note(format_args!("{node} asks C{target} for the batches after step {last_step}"));
        (self.doing, self.opened) = (Doing::Opening, Some(link));
        env.send(link, Side::Client, Message::NextBatch(request));
        self.timer(env, ANSWER_TIMEOUT, Timer::Unanswered(link));
    }

    fn report(&mut self, env: &mut Env, link: LinkId) {
        let Some(completed) = self.unreported.clone() else { return };
        self.calls += 1;
        self.doing = Doing::Reporting(self.calls);
        env.send(link, Side::Client, Message::CompleteStep(self.calls, completed));
        self.timer(env, ANSWER_TIMEOUT, Timer::Unanswered(link));
    }

    /// Something came over a link; nothing is its end.
    pub(crate) fn receive(&mut self, env: &mut Env, link: LinkId, message: Option<Message>) {
        if !self.up || self.link != Some(link) {
            return;
        }
        match message {
            Some(Message::Accepted) => {
                // The step of an unreported batch is in the weights, so opening has told it.
                (self.unreported, self.refused_since) = (None, None);
                if matches!(self.doing, Doing::Opening) {
                    self.doing = Doing::Waiting;
                }
                self.work(env);
            }
            Some(Message::Refused(reason)) => self.on_refused(env, &reason),
            Some(Message::Batch(batch)) => {
                self.batches.push_back(*batch);
                self.work(env);
            }
            Some(Message::StepAnswer(call, answer)) => self.on_answer(env, link, call, answer),
            Some(_) => {}
            None => self.on_lost(env),
        }
    }

    /// Another learner, or this one's own last stream, is there still; or it is of no use here.
    fn on_refused(&mut self, env: &mut Env, reason: &str) {
        let since = *self.refused_since.get_or_insert(env.now);
        if env.now - since > REFUSED_MAX {
            env.note(format_args!("{} gives up: {reason}", self.node()));
            self.go_down(env);
        }
    }

    fn on_answer(&mut self, env: &mut Env, link: LinkId, call: u64, answer: Result<(), String>) {
        if !matches!(self.doing, Doing::Reporting(waited) if waited == call) {
            return;
        }
        let reported = self.unreported.clone();
        match answer {
            Ok(()) => {
                if let Some(one) = reported.filter(|one| one.kind() != StepKind::Finish) {
                    env.oracle.on_confirmed(one.step);
                }
                self.unreported = None;
            }
            Err(reason) => {
                env.note(format_args!("{} is not believed: {reason}", self.node()));
                if self.is_open() {
                    env.close(link, Side::Client);
                    return self.on_lost(env);
                }
            }
        }
        if self.is_open() {
            self.doing = Doing::Waiting;
            self.work(env);
        } else {
            self.ask(env, link);
        }
    }

    // === batches ===

    /// Whether batches come over the link at hand.
    fn is_open(&self) -> bool {
        self.opened == self.link && self.link.is_some()
    }

    fn work(&mut self, env: &mut Env) {
        if !matches!(self.doing, Doing::Waiting) {
            return;
        }
        let Some(batch) = self.batches.pop_front() else { return };
        env.oracle.on_batch(&batch, if env.scenario.says_vocabulary { VOCABULARY } else { 0 });
        self.run_id.clone_from(&batch.run_id);
        let takes = match batch.kind() {
            StepKind::Finish => Duration::ZERO,
            _ => self.dice.millis(STEP_MS[0], STEP_MS[1]),
        };
        self.doing = Doing::Working(Box::new(batch));
        self.timer(env, takes, Timer::Done);
    }

    /// Returns whether it published anything.
    fn done(&mut self, env: &mut Env) -> bool {
        let Doing::Working(batch) = std::mem::replace(&mut self.doing, Doing::Searching) else {
            return false;
        };
        let (step, kind) = (batch.step, batch.kind());
        let trains = matches!(kind, StepKind::Rl | StepKind::Sft | StepKind::Joint);
        if trains {
            self.train(env, &batch);
        } else if kind == StepKind::Checkpoint && self.held.0 >= env.weights.saved.0.0 {
            env.weights.saved = (self.held, self.run_id.clone());
            env.oracle.on_saved(self.index);
        }
        env.note(format_args!("{} has done {kind:?} of step {step}", self.node()));
        self.unreported = Some(CompleteStepRequest {
            learner_id: self.name.clone(),
            generation: self.generation,
            step,
            kind: kind.into(),
            manifest_hash: self.held.1.to_vec(),
            skipped: false,
            metrics: [("loss".to_owned(), step as f64)].into(),
            checkpoint: (kind == StepKind::Checkpoint).then(|| format!("step-{step}")),
        });
        if kind == StepKind::Finish {
            self.finish(env);
        } else if let Some(link) = self.link {
            self.report(env, link);
        } else {
            self.connect_again(env);
        }
        trains
    }

    fn train(&mut self, env: &mut Env, batch: &TrainBatch) {
        env.oracle.on_applied(self.index, batch, self.held.0);
        let again = env.weights.all.contains_key(&batch.step);
        env.totals.steps += 1;
        env.totals.steps_again += u64::from(again);
        let mut hash = Fnv::default();
        hash.add(&self.held.1);
        for group in &batch.groups {
            let ids = group.trajectories.iter().map(|one| one.episode_id);
            ids.for_each(|id| hash.add(&id.to_le_bytes()));
        }
        if !env.scenario.learner_repeats {
            hash.add(&self.generation.to_le_bytes());
        }
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&hash.0.to_le_bytes());
        let extra = u64::from(env.has(Plant::SkipStep) && self.dice.chance(0.1));
        self.held = (batch.step + extra, bytes);
        self.publish(env);
    }

    /// The run is over, whether the coordinator still listens or not.
    fn finish(&mut self, env: &mut Env) {
        env.note(format_args!("{} has finished", self.node()));
        (self.up, self.doing) = (false, Doing::Finished);
        if let Some(link) = self.link.take() {
            env.close(link, Side::Client);
        }
    }

    pub(crate) fn sizes(&self) -> Sizes {
        let working = usize::from(matches!(self.doing, Doing::Working(_) | Doing::Reporting(_)));
        let size = self.batches.len() + working;
        Sizes { what: "batches at the learner", size, bound: SERVED_AHEAD_MAX as usize }
    }
}
