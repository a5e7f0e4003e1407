//! The one loop: events in, actions out. It is the only owner of the fleet, and holds no rules itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebb_core::fleet::{Action, Event, Fleet, Memory};
use ebb_core::journal::Handled;
use ebb_core::ray::node_drain::OnNode;
use ebb_core::view::Cluster;
use ebb_page::Page;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::action;
use crate::clock::Clock;
use crate::decisions::Decisions;
use crate::metrics::Metrics;
use crate::record::Record;

/// Events that wait for the driver. Enough for a page of a listing with the reports of the same moment; whoever sends
/// more has to wait, so that a burst costs time and not memory.
pub const INBOX: usize = 1024;
/// Events taken before looking at the clock again.
const BATCH: usize = 256;
/// Between two ticks, so that a wakeup that does not move costs little.
const REST: Duration = Duration::from_millis(1);
/// A driver that does not answer for this long is stuck. Below the kubelet's usual probe timeouts of some seconds.
const PATIENCE: Duration = Duration::from_millis(900);

/// What the driver can be asked.
pub enum Query {
    /// Whether it still goes round.
    Alive(oneshot::Sender<()>),
    /// What a successor should know.
    Memory(oneshot::Sender<Memory>),
    /// What waits in each Ray cluster whose head has told lately, and when it told.
    RayWaiting(oneshot::Sender<BTreeMap<String, (ebb_core::time::Instant, u64)>>),
    /// The picture without the nodes' pods.
    Outline(oneshot::Sender<Cluster>),
    /// What a node's drain has to know of Ray on it; `None`: there is no such node.
    RayOnNode { node: String, uid: String, reply: oneshot::Sender<Option<OnNode>> },
    /// With every pod in it, so it takes a while to draw in a large cluster.
    Picture(oneshot::Sender<Cluster>),
}

pub type Queries = mpsc::Sender<Query>;

/// The driver's answer; `None` if there is none in time.
pub async fn ask<T>(queries: &Queries, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    timeout(PATIENCE, async {
        queries.send(query(reply)).await.ok()?;
        answer.await.ok()
    })
    .await
    .ok()
    .flatten()
}

pub struct Driver {
    pub fleet: Fleet,
    pub clock: Clock,
    pub inbox: mpsc::Receiver<Event>,
    pub queries: mpsc::Receiver<Query>,
    /// Not bounded, because the driver must not wait for those who wait for it; and needing no bound, because the
    /// fleet keeps one call under way for each group and node, and says a thing about a pod once.
    pub outbox: mpsc::UnboundedSender<Action>,
    pub metrics: Arc<Metrics>,
    /// Both are told of each decision.
    pub page: Page,
    pub decisions: Decisions,
    pub record: Option<Record>,
}

impl Driver {
    pub async fn run(mut self, stop: CancellationToken) {
        let mut events = Vec::with_capacity(BATCH);
        loop {
            let tick = self.fleet.next_wakeup().map(|at| at.max(self.clock.now() + REST));
            tokio::select! {
                () = stop.cancelled() => return,
                Some(query) = self.queries.recv() => self.answer(query),
                _ = self.inbox.recv_many(&mut events, BATCH) => {}
                () = self.clock.sleep_until(tick) => events.push(Event::Tick),
            }
            for event in events.drain(..) {
                if self.handle(event).is_none() {
                    return; // The effects task is gone; whoever supervises us restarts us.
                }
            }
        }
    }

    /// Who asked may have given up.
    fn answer(&self, query: Query) {
        let now = self.clock.now();
        match query {
            Query::Alive(reply) => _ = reply.send(()),
            Query::Memory(reply) => _ = reply.send(self.fleet.memory(now)),
            Query::RayWaiting(reply) => _ = reply.send(self.fleet.ray_waiting(now)),
            Query::Outline(reply) => _ = reply.send(self.fleet.outline(now)),
            Query::RayOnNode { node, uid, reply } => _ = reply.send(self.fleet.ray_on_node(&node, &uid)),
            Query::Picture(reply) => _ = reply.send(self.fleet.view(now)),
        }
    }

    /// `None` if nobody carries out actions any more.
    fn handle(&mut self, event: Event) -> Option<()> {
        let now = self.clock.now();
        let recorded = self.record.is_some().then(|| event.clone());
        let start = Instant::now();
        let actions = self.fleet.handle(now, event);
        self.metrics.decided(start.elapsed());
        if let (Some(record), Some(event)) = (&mut self.record, recorded) {
            record.write(Handled { now, event, actions: actions.clone() }, &self.fleet);
        }
        ebb_core::fleet::steps(now, &actions).into_iter().for_each(|step| self.page.tell(step));
        for taken in actions {
            action::log(&taken);
            self.metrics.decision(&taken);
            self.decisions.tell(now, &taken);
            self.outbox.send(taken).ok()?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use ebb_core::fleet::GroupState;
    use ebb_core::journal::{Played, Replay};
    use ebb_core::kubernetes::Pod;
    use ebb_core::policy::{Group, Policy};
    use ebb_core::resources::Resources;
    use prometheus_client::registry::Registry;

    use super::*;

    struct Bench {
        inbox: mpsc::Sender<Event>,
        queries: Queries,
        actions: mpsc::UnboundedReceiver<Action>,
        clock: Clock,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    /// One group of nodes with room, none of which there is yet.
    fn policy() -> Policy {
        let group = Group {
            min: 0,
            max: 3,
            instance_type: "m5.xlarge".into(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            allocatable: Resources::from_texts([("cpu", "4"), ("pods", "10")]).unwrap(),
            unneeded_for: Duration::from_secs(600),
            ..Group::default()
        };
        Policy { groups: BTreeMap::from([("a".to_owned(), group)]), ..Policy::default() }
    }

    fn bench(record: Option<Record>) -> Bench {
        let (inbox, events) = mpsc::channel(INBOX);
        let (queries, asked) = mpsc::channel(1);
        let (outbox, actions) = mpsc::unbounded_channel();
        let clock = Clock::start();
        let metrics = Arc::new(Metrics::register(&mut Registry::default()));
        let fleet = Fleet::new(policy());
        let (page, decisions) = (Page::new("test"), Decisions::default());
        let driver = Driver { fleet, clock, inbox: events, queries: asked, outbox, metrics, page, decisions, record };
        let stop = CancellationToken::new();
        let task = tokio::spawn(driver.run(stop.clone()));
        Bench { inbox, queries, actions, clock, stop, task }
    }

    impl Bench {
        /// Answers descriptions, and gives the first other action and how long after `start` it came.
        async fn next(&mut self, start: ebb_core::time::Instant) -> (Action, Duration) {
            loop {
                let action = self.actions.recv().await.unwrap();
                if !matches!(action, Action::Describe { .. }) {
                    return (action, self.clock.now().since(start));
                }
                let group = GroupState { name: "a".into(), max: 3, ..GroupState::default() };
                self.inbox.send(Event::Groups { asked: action, groups: vec![group] }).await.unwrap();
            }
        }

        /// A leader with a whole picture, in which this pod waits.
        async fn pod_waits(&self) {
            let unschedulable_since = Some(self.clock.now());
            let requests = Resources::from_texts([("cpu", "1"), ("pods", "1")]).unwrap();
            let pod = Pod { uid: "u".into(), name: "p".into(), requests, unschedulable_since, ..Pod::default() };
            for event in [Event::PodApplied(pod), Event::Leading(true), Event::Synced(true)] {
                self.inbox.send(event).await.unwrap();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_fleet_is_woken_when_it_asked_for_it() {
        let mut bench = bench(None);
        let start = bench.clock.now();
        bench.pod_waits().await;
        let (action, after) = bench.next(start).await;
        assert!(matches!(action, Action::SetDesired { from: 0, to: 1, .. }), "{action:?}");
        assert!((30_000..30_100).contains(&after.as_millis()), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn questions_are_answered_while_nothing_happens() {
        let bench = bench(None);
        assert_eq!(ask(&bench.queries, Query::Alive).await, Some(()));
        assert_eq!(ask(&bench.queries, Query::Picture).await.unwrap().groups[0].max, 3);
        bench.stop.cancel();
        bench.task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_replays_to_the_same_actions() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let clock = Clock::start();
        let mut bench = bench(Some(Record::open(file.path(), u64::MAX, clock.now(), &policy()).unwrap()));
        bench.pod_waits().await;
        bench.next(bench.clock.now()).await;
        bench.stop.cancel();
        bench.task.await.unwrap();

        let mut replay = Replay::new(None);
        let mut raised = 0;
        for line in std::fs::read_to_string(file.path()).unwrap().lines() {
            if let Played::Handled(compared) = replay.play(line).unwrap() {
                assert!(!compared.differs(), "{compared:?}");
                raised += compared.both.iter().filter(|action| matches!(action, Action::SetDesired { .. })).count();
            }
        }
        assert_eq!(raised, 1);
    }
}
