//! What an actor says to the coordinator and hears from it.

use std::time::Duration;

use ballast_proto::v1::{
    ActorHello, ActorWelcome, Heartbeat, Trajectory, actor_message::Message as ToCoordinator,
    coordinator_message::Message as ToActor,
};

use super::{Actor, FETCH_MS};
use crate::{
    agenda::Timer,
    env::Env,
    invariants::Sizes,
    network::{Exit, LinkId, Message, Side},
};

/// Messages handed to the transport; what is more waits in the ledger.
const OUTBOUND_MAX: usize = 8;
/// Time the coordinator has to answer a hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two attempts to find the coordinator, milliseconds.
const RETRY_MS: [u64; 2] = [100, 2_000];

/// The stream of the moment.
#[derive(Debug)]
pub(super) struct Stream {
    link: Option<LinkId>,
    welcomed: bool,
    /// The coordinator to try next.
    target: usize,
    heartbeat_interval: Duration,
}

impl Stream {
    pub(super) fn new(target: usize) -> Self {
        let heartbeat_interval = Duration::from_secs(1);
        Self { link: None, welcomed: false, target, heartbeat_interval }
    }

    pub(super) fn link(&self) -> Option<LinkId> {
        self.link
    }

    pub(super) fn take(&mut self) -> Option<LinkId> {
        self.welcomed = false;
        self.link.take()
    }

    fn is(&self, link: LinkId) -> bool {
        self.link == Some(link)
    }
}

impl Actor {
    /// Says hello to the coordinator, if there is one where it looks this time.
    pub(super) fn connect(&mut self, env: &mut Env) {
        if !self.up || self.stream.link.is_some() {
            return;
        }
        let target = self.stream.target;
        let Some(link) = env.connect(self.node(), target) else {
            return self.connect_again(env);
        };
        self.stream.link = Some(link);
        let hello = ActorHello {
            actor_id: self.name.clone(),
            generation: self.generation,
            slots: self.slots,
            claims: self.ledger.claims(),
            run_id: self.ledger.run_id().to_owned(),
        };
        env.note(format_args!(
            "{} says hello to C{target}, claims {:?}",
            self.node(),
            hello.claims
        ));
        env.send(link, Side::Client, Message::Actor(ToCoordinator::Hello(hello)));
        self.timer(env, WELCOME_TIMEOUT, Timer::Unanswered(link));
    }

    fn connect_again(&mut self, env: &mut Env) {
        self.stream.target = 1 - self.stream.target;
        let pause = self.dice.millis(RETRY_MS[0], RETRY_MS[1]);
        self.timer(env, pause, Timer::Connect);
    }

    pub(super) fn on_unanswered(&mut self, env: &mut Env, link: LinkId) {
        if self.stream.is(link) && !self.stream.welcomed {
            env.close(link, Side::Client);
            self.on_lost(env);
        }
    }

    fn on_lost(&mut self, env: &mut Env) {
        self.stream.take();
        self.ledger.on_stream_ended();
        self.connect_again(env);
    }

    /// Something came over a link; nothing is its end.
    pub(crate) fn receive(&mut self, env: &mut Env, link: LinkId, message: Option<Message>) {
        if !self.up || !self.stream.is(link) {
            return;
        }
        match message {
            Some(Message::Coordinator(message)) => self.on_message(env, link, message),
            Some(Message::Refused(reason)) => {
                env.note(format_args!("{} gives up: {reason}", self.node()));
                self.gone = true;
                self.go_down(env, Exit::Told);
            }
            Some(_) => {}
            None => self.on_lost(env),
        }
    }

    fn on_message(&mut self, env: &mut Env, link: LinkId, message: ToActor) {
        match message {
            ToActor::Welcome(welcome) => self.on_welcome(env, link, &welcome),
            ToActor::Assignment(assignment) => {
                let id = assignment.episode_id;
                env.note(format_args!("{} gets e{id}", self.node()));
                env.totals.episodes += 1;
                env.assigned.push((id, self.name.clone()));
                let accepted = self.ledger.on_assignment(id);
                let running = Sizes {
                    what: "episodes run on an actor",
                    size: self.ledger.in_engine(),
                    bound: self.slots as usize,
                };
                env.oracle.on_assigned((&self.name, self.generation), &assignment, running);
                match accepted {
                    Some(true) => self.run_episode(env, assignment),
                    Some(false) => {}
                    None => env.oracle.broken("B1", format!("e{id} comes without a credit")),
                }
            }
            ToActor::Acknowledged(one) => {
                env.note(format_args!("{} sees e{} acknowledged", self.node(), one.episode_id));
                env.oracle.on_acknowledged(one.episode_id);
                self.ledger.forget(one.episode_id);
            }
            ToActor::Discard(one) => {
                env.oracle.on_forgotten(one.episode_id);
                self.ledger.forget(one.episode_id);
            }
            ToActor::Drain(_) => return self.on_drain(env),
            ToActor::WeightSource(source) => {
                self.source = Some(source.address);
                let takes = self.dice.millis(FETCH_MS[0], FETCH_MS[1]);
                self.timer(env, takes, Timer::Fetched);
            }
        }
        self.pump(env);
        self.leave_if_drained(env);
    }

    fn on_welcome(&mut self, env: &mut Env, link: LinkId, welcome: &ActorWelcome) {
        self.stream.welcomed = true;
        self.ledger.on_welcome(&welcome.run_id);
        self.stream.heartbeat_interval = Duration::from_millis(welcome.heartbeat_interval_ms);
        self.timer(env, Duration::ZERO, Timer::Beat(link));
    }

    pub(super) fn beat(&mut self, env: &mut Env, link: LinkId) {
        if !self.stream.is(link) {
            return;
        }
        let beat = Heartbeat {
            policy_version: self.policy.map_or(0, |(version, _)| version),
            episodes_running: self.ledger.in_engine() as u32,
            ..Heartbeat::default()
        };
        env.send(link, Side::Client, Message::Actor(ToCoordinator::Heartbeat(beat)));
        self.timer(env, self.stream.heartbeat_interval, Timer::Beat(link));
        self.pump(env);
    }

    /// Sends what is to be sent, as far as the transport takes it.
    pub(crate) fn pump(&mut self, env: &mut Env) {
        let Some(link) = self.stream.link.filter(|_| self.stream.welcomed) else { return };
        while env.network.under_way(link) < OUTBOUND_MAX {
            let Some(message) = self.ledger.next_message() else { return };
            if let ToCoordinator::Returned(returned) = &message {
                env.oracle.on_forgotten(returned.episode_id);
            }
            env.send(link, Side::Client, Message::Actor(message));
        }
    }

    /// Now and then says things twice, or speaks of an episode of somebody else.
    pub(super) fn say_too_much(&mut self, env: &mut Env, mut trajectory: Trajectory) {
        let Some(link) = self.stream.link.filter(|_| self.stream.welcomed) else { return };
        if env.healed || !self.dice.chance(env.scenario.mishaps.blemished) {
            return;
        }
        self.pump(env);
        if self.dice.chance(0.5) {
            let others = env.assigned.iter().filter(|(_, actor)| *actor != self.name);
            let others: Vec<u64> = others.map(|(episode, _)| *episode).collect();
            trajectory.episode_id = match others.is_empty() {
                true => 1_000_000,
                false => self.dice.pick(&others),
            };
        }
        let message = ToCoordinator::Trajectory(trajectory);
        env.send(link, Side::Client, Message::Actor(message));
    }
}
