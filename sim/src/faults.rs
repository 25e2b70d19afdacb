//! What can go wrong with a run as a whole. The faults of single messages and trajectories are with
//! those who make them.

use std::time::Duration;

use crate::{agenda::What, learner::Learner, network::Exit, node::Node, world::World};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FaultKind {
    /// A connection breaks, and both ends hear of it.
    BreakLink,
    /// A connection breaks in silence.
    LoseLink,
    /// A process and a coordinator cannot reach each other for a while.
    Partition,
    /// An actor dies.
    KillActor,
    /// An actor is stopped for a while, maybe for longer than its lease.
    PauseActor,
    /// An actor is stopped, another one takes its name, then it is back.
    TwinActor,
    KillLearner,
    PauseLearner,
    /// A learner is stopped, another one is started in its place, then it is back.
    TwinLearner,
    /// A coordinator dies.
    KillCoordinator,
    /// A coordinator dies in the midst of something it does with the disk.
    KillInWrite,
    /// A coordinator is stopped for a while.
    PauseCoordinator,
    /// A coordinator and its clock are stopped for a while.
    SuspendCoordinator,
    /// The machine of the coordinators loses its power.
    CutPower,
    /// The disk is full for a while.
    FillDisk,
    /// Writing takes long for a while.
    SlowDisk,
    /// The disk does not answer for a while.
    LoseDisk,
    /// A write fails once.
    FailWrite,
    /// A sync fails once.
    FailSync,
    /// Another coordinator takes over while the old one goes on.
    Depose,
    /// As before, and that in the midst of what the old one does with the disk.
    DeposeInWrite,
    /// The leader cannot reach the election for a while, and does not care.
    LoseElection,
}

impl FaultKind {
    /// With the mean time between two of a kind, seconds.
    pub(crate) const ALL: &[(Self, u64)] = &[
        (Self::BreakLink, 12),
        (Self::LoseLink, 25),
        (Self::Partition, 40),
        (Self::KillActor, 30),
        (Self::PauseActor, 35),
        (Self::TwinActor, 60),
        (Self::KillLearner, 35),
        (Self::PauseLearner, 50),
        (Self::TwinLearner, 80),
        (Self::KillCoordinator, 30),
        (Self::KillInWrite, 25),
        (Self::PauseCoordinator, 35),
        (Self::SuspendCoordinator, 50),
        (Self::CutPower, 50),
        (Self::FillDisk, 50),
        (Self::SlowDisk, 50),
        (Self::LoseDisk, 60),
        (Self::FailWrite, 25),
        (Self::FailSync, 60),
        (Self::Depose, 35),
        (Self::DeposeInWrite, 30),
        (Self::LoseElection, 50),
    ];

    pub(crate) fn needs_file_system(self) -> bool {
        matches!(self, Self::CutPower | Self::FailWrite | Self::FailSync)
    }
}

/// The end of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    Continue(Node),
    Join(Node, Node),
    EmptyDisk,
    QuickDisk,
    FindDisk,
    FindElection,
}

impl World {
    /// Puts the first fault of each kind on the agenda.
    pub(crate) fn plan_faults(&mut self) {
        for (kind, mean) in self.env.scenario.faults.clone() {
            self.plan_fault(kind, mean);
        }
    }

    fn plan_fault(&mut self, kind: FaultKind, mean: Duration) {
        let at = self.env.now + self.env.dice.time(mean / 4, mean * 7 / 4);
        if at < self.env.scenario.heal_at {
            self.env.agenda.note(at, What::Fault(kind));
        }
    }

    pub(crate) fn strike(&mut self, kind: FaultKind) {
        let mean = self.env.scenario.faults.iter().find(|(one, _)| *one == kind);
        if let Some((_, mean)) = mean.copied() {
            self.plan_fault(kind, mean);
        }
        *self.env.totals.faults.entry(kind).or_default() += 1;
        self.env.note(format_args!("! {kind:?}"));
        match kind {
            FaultKind::BreakLink => self.break_link(Exit::Told),
            FaultKind::LoseLink => self.break_link(Exit::Silent),
            FaultKind::Partition => self.partition(),
            FaultKind::KillActor => self.kill_actor(),
            FaultKind::PauseActor => {
                let node = Node::Actor(self.env.dice.index(self.actors.len()));
                self.pause(node, 40_000, false);
            }
            FaultKind::TwinActor => self.twin_actor(),
            FaultKind::KillLearner => {
                let index = self.env.dice.index(self.learners.len());
                self.kill_learner(index);
            }
            FaultKind::PauseLearner => {
                let node = Node::Learner(self.env.dice.index(self.learners.len()));
                self.pause(node, 40_000, false);
            }
            FaultKind::TwinLearner => self.twin_learner(),
            FaultKind::KillCoordinator => {
                let index = self.any_host();
                self.kill_host(index);
            }
            FaultKind::KillInWrite => {
                let (index, calls) = (self.any_host(), self.env.dice.between(0, 12));
                self.hosts[index].die_after(calls);
            }
            FaultKind::PauseCoordinator => {
                let index = self.any_host();
                self.pause(Node::Coordinator(index), 30_000, false);
            }
            FaultKind::SuspendCoordinator => {
                let index = self.any_host();
                self.pause(Node::Coordinator(index), 30_000, true);
            }
            FaultKind::CutPower => self.cut_power(),
            FaultKind::FillDisk => {
                self.env.disk.set_full(true);
                self.repair_in(20_000, Repair::EmptyDisk);
            }
            FaultKind::SlowDisk => {
                self.env.slow_disk = true;
                self.repair_in(20_000, Repair::QuickDisk);
            }
            FaultKind::LoseDisk => {
                self.env.disk.set_away(true);
                self.repair_in(8_000, Repair::FindDisk);
            }
            FaultKind::FailWrite => self.env.disk.fail_next_write(),
            FaultKind::FailSync => self.env.disk.fail_next_sync(),
            FaultKind::Depose => self.depose(),
            FaultKind::DeposeInWrite => self.depose_in_write(),
            FaultKind::LoseElection => {
                self.env.election.set_away(true);
                self.repair_in(25_000, Repair::FindElection);
            }
        }
    }

    pub(crate) fn repair(&mut self, repair: Repair) {
        match repair {
            Repair::Continue(node) => self.resume(node),
            Repair::Join(one, other) => {
                let Self { env, .. } = self;
                env.network.set_apart((env.now, &mut env.agenda), (one, other), false);
            }
            Repair::EmptyDisk => self.env.disk.set_full(false),
            Repair::QuickDisk => self.env.slow_disk = false,
            Repair::FindDisk => self.env.disk.set_away(false),
            Repair::FindElection => self.env.election.set_away(false),
        }
    }

    /// Everything goes well from here on.
    pub(crate) fn heal(&mut self) {
        self.env.note(format_args!("! all faults are over"));
        self.env.healed = true;
        self.env.disk.mend();
        self.env.slow_disk = false;
        self.env.election.set_away(false);
        self.env.network.join_all();
        self.paused.keys().copied().collect::<Vec<_>>().into_iter().for_each(|node| {
            self.resume(node);
        });
        self.hosts.iter_mut().for_each(|host| host.forget_twists());
        self.stop_forgotten();
        let deadline = self.env.now + crate::invariants::PROGRESS_BOUND;
        self.env.agenda.note(deadline, What::Deadline);
    }

    /// An operator stops the coordinator and the learners that were moved and forgotten. The
    /// coordinator would learn from the journal that it leads no more, but only once it has something
    /// to write.
    fn stop_forgotten(&mut self) {
        let (home, learner_home) = (self.env.home, self.env.learner_home);
        if !self.env.scenario.elected {
            (0..self.hosts.len()).filter(|index| *index != home).for_each(|index| {
                self.kill_host(index);
            });
        }
        (0..self.learners.len()).filter(|index| *index != learner_home).for_each(|index| {
            self.kill_learner(index);
        });
    }

    fn repair_in(&mut self, most_ms: u64, repair: Repair) {
        let at = self.env.now + self.env.dice.millis(most_ms / 20, most_ms);
        self.env.agenda.note(at, What::Repair(repair));
    }

    fn any_host(&mut self) -> usize {
        // The one that leads is worth more trouble than the others.
        let leading = self.hosts.iter().position(|host| host.leads());
        let any = self.env.dice.index(self.hosts.len());
        leading.filter(|_| self.env.dice.chance(0.7)).unwrap_or(any)
    }

    fn break_link(&mut self, exit: Exit) {
        let links = self.env.network.all();
        if links.is_empty() {
            return;
        }
        let link = self.env.dice.pick(&links);
        let env = &mut self.env;
        env.network.cut((env.now, &mut env.agenda), link, exit);
    }

    fn partition(&mut self) {
        let host = Node::Coordinator(self.any_host());
        let client = match self.env.dice.chance(0.3) {
            true => Node::Learner(self.env.learner_home),
            false => Node::Actor(self.env.dice.index(self.actors.len())),
        };
        let env = &mut self.env;
        env.network.set_apart((env.now, &mut env.agenda), (client, host), true);
        self.repair_in(30_000, Repair::Join(client, host));
    }

    fn kill_actor(&mut self) {
        let index = self.env.dice.index(self.actors.len());
        self.resume(Node::Actor(index));
        let exit = if self.env.dice.chance(0.7) { Exit::Told } else { Exit::Silent };
        self.actors[index].die(&mut self.env, exit);
        // The first one is always wanted.
        if index > 0 && self.env.dice.chance(0.1) {
            return self.actors[index].is_not_wanted();
        }
        let at = self.env.now + self.env.dice.millis(200, 30_000);
        self.env.agenda.note(at, What::Start(Node::Actor(index)));
    }

    fn kill_learner(&mut self, index: usize) {
        self.paused.remove(&Node::Learner(index));
        self.learners[index].die(&mut self.env);
    }

    fn twin_learner(&mut self) {
        /// More of them prove nothing.
        const LEARNERS_MAX: usize = 4;
        let (old, new) = (self.env.learner_home, self.learners.len());
        if new == LEARNERS_MAX {
            return;
        }
        let name =
            if self.env.dice.chance(0.5) { "learner".into() } else { format!("learner-{new}") };
        self.learners.push(Learner::new(&self.env, new, name));
        self.env.learner_home = new;
        self.pause(Node::Learner(old), 60_000, false);
        let at = self.env.now + self.env.dice.millis(200, 5_000);
        self.env.agenda.note(at, What::Start(Node::Learner(new)));
    }

    /// A process that is stopped does nothing; what it is told, and what it waited for, waits.
    pub(crate) fn pause(&mut self, node: Node, most_ms: u64, clock: bool) {
        if self.paused.contains_key(&node) {
            return;
        }
        self.paused.insert(node, Vec::new());
        if let (Node::Coordinator(index), true) = (node, clock) {
            self.hosts[index].stop_clock(self.env.now);
        }
        self.repair_in(most_ms, Repair::Continue(node));
    }

    fn twin_actor(&mut self) {
        let index = self.env.dice.index(self.actors.len());
        if let Some(twin) = self.actors[index].twin(&self.env, self.actors.len()) {
            self.pause(Node::Actor(index), 30_000, false);
            let node = Node::Actor(self.actors.len());
            self.actors.push(twin);
            let at = self.env.now + self.env.dice.millis(200, 10_000);
            self.env.agenda.note(at, What::Start(node));
        }
    }

    fn cut_power(&mut self) {
        for index in 0..self.hosts.len() {
            self.paused.remove(&Node::Coordinator(index));
            self.hosts[index].die(&mut self.env, Exit::Silent);
        }
        self.env.disk.cut_power();
        let worst = self.env.worst();
        self.env.oracle.on_shock(&worst);
    }

    fn kill_host(&mut self, index: usize) {
        self.paused.remove(&Node::Coordinator(index));
        self.hosts[index].die(&mut self.env, Exit::Told);
    }

    /// Somebody else leads from now on, whatever the leader thinks.
    fn depose(&mut self) {
        if self.env.scenario.elected {
            self.env.election.expire();
        } else {
            let rival = self.hosts.iter().position(|host| !host.leads()).unwrap_or(0);
            self.hosts[rival].start_as_rival(&mut self.env);
        }
    }

    fn depose_in_write(&mut self) {
        let leader = self.hosts.iter().position(|host| host.leads());
        let rival = self.hosts.iter().position(|host| host.can_be_rival(&self.env));
        let (Some(leader), Some(rival)) = (leader, rival) else { return };
        let stopped = |index| self.paused.contains_key(&Node::Coordinator(index));
        if stopped(leader) || stopped(rival) {
            return;
        }
        let calls = self.env.dice.between(0, 10);
        if self.env.dice.chance(0.5) {
            let happens = self.hosts[rival].prepare_to_open(&mut self.env);
            return self.hosts[leader].interrupt(calls, happens);
        }
        let (first, second) = self.hosts.split_at_mut(1);
        let (leader, rival) = match leader {
            0 => (&mut first[0], &mut second[0]),
            _ => (&mut second[0], &mut first[0]),
        };
        leader.commit_during(&mut self.env, rival, calls);
    }
}
