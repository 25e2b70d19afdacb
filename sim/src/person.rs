//! A person who asks for changes now and then, and in the end lets the run go on.

use std::time::Duration;

use ballast_proto::v1::{
    AdminChange, CheckpointRequest, DrainActorRequest, EvaluateRequest, PauseRequest,
    ResumeRequest, SetRequest, StopRequest, admin_change::Change,
};

use crate::{
    agenda::Timer,
    dice::{Dice, Part},
    env::Env,
    network::{LinkId, Message, Side},
    node::Node,
};

/// Pause between two changes, milliseconds.
const THINK_MS: [u64; 2] = [2_000, 30_000];
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is asked for at the moment.
#[derive(Debug)]
struct Asked {
    link: LinkId,
    reason: String,
    resumes: bool,
}

/// The person.
#[derive(Debug)]
pub(crate) struct Person {
    asked: Option<Asked>,
    changes: u64,
    /// Whether the run may be paused by them.
    paused: bool,
    /// Whether nothing is left to be asked for.
    content: bool,
    target: usize,
    dice: Dice,
}

impl Person {
    pub(crate) fn new(env: &Env) -> Self {
        let dice = Dice::new(env.seed, Part::Person, 0);
        Self { asked: None, changes: 0, paused: false, content: false, target: 0, dice }
    }

    fn think(&mut self, env: &mut Env) {
        let pause = match env.healed {
            true => Duration::from_secs(1),
            false => self.dice.millis(THINK_MS[0], THINK_MS[1]),
        };
        env.timer(Node::Person, 0, env.now + pause, Timer::Ask);
    }

    pub(crate) fn start(&mut self, env: &mut Env) {
        self.think(env);
    }

    pub(crate) fn on_timer(&mut self, env: &mut Env, timer: Timer) {
        match timer {
            Timer::Ask => self.ask(env),
            Timer::GiveUp(link) if self.asked.as_ref().is_some_and(|asked| asked.link == link) => {
                env.close(link, Side::Client);
                self.asked = None;
                self.think(env);
            }
            _ => {}
        }
    }

    fn ask(&mut self, env: &mut Env) {
        if self.asked.is_some() || self.content {
            return;
        }
        self.target = 1 - self.target;
        let link = env.connect(Node::Person, self.target);
        let Some(link) = link else {
            return env.timer(Node::Person, 0, env.now + Duration::from_secs(1), Timer::Ask);
        };
        let change = self.choose(env);
        self.paused |= matches!(change, Change::Pause(_));
        let resumes = matches!(change, Change::Resume(_));
        self.changes += 1;
        let reason = format!("change {}", self.changes);
        env.note(format_args!("P asks for {change:?}: {reason}"));
        self.asked = Some(Asked { link, reason: reason.clone(), resumes });
        let message = Message::Change(AdminChange { reason, change: Some(change) });
        env.send(link, Side::Client, message);
        env.timer(Node::Person, 0, env.now + PATIENCE, Timer::GiveUp(link));
    }

    fn choose(&mut self, env: &Env) -> Change {
        if env.healed || (self.paused && self.dice.chance(0.6)) {
            return Change::Resume(ResumeRequest {});
        }
        if env.scenario.stopped && self.dice.chance(0.2) {
            return Change::Stop(StopRequest {});
        }
        match self.dice.between(0, 6) {
            0 => Change::Pause(PauseRequest {}),
            1 => Change::Checkpoint(CheckpointRequest::default()),
            2 => Change::Evaluate(EvaluateRequest::default()),
            3 => {
                let actor_id = format!("actor-{}", self.dice.index(env.scenario.actors));
                Change::DrainActor(DrainActorRequest { actor_id, ..DrainActorRequest::default() })
            }
            _ => self.other_settings(),
        }
    }

    fn other_settings(&mut self) -> Change {
        let changes: &[&str] = match self.dice.between(0, 5) {
            0 => &["schedule.kind=adaptive"],
            1 => &["schedule.kind=interleave", "schedule.rl_steps=1", "schedule.sft_steps=1"],
            2 => &["schedule.kind=rl_only"],
            3 => &["rl.learning_rate=0.001"],
            4 => &["schedule.kind=sft_only"],
            // Refused, which is an answer too.
            _ => &["rl.group_size=9"],
        };
        let changes = changes.iter().map(|change| (*change).to_owned()).collect();
        Change::Set(SetRequest { changes, reason: String::new(), revision: None })
    }

    /// Something came over a link; nothing is its end.
    pub(crate) fn receive(&mut self, env: &mut Env, link: LinkId, message: Option<Message>) {
        let Some(asked) = self.asked.take_if(|asked| asked.link == link) else { return };
        if let Some(Message::ChangeAnswer(answer)) = message {
            env.totals.changes += 1;
            env.oracle.on_changed(&asked.reason);
            if answer.is_ok() && asked.resumes {
                self.paused = false;
                self.content = env.healed;
            }
            env.close(link, Side::Client);
        }
        self.think(env);
    }
}
