//! Carries actions out and says what became of them. Holds no rules: when to try again is the core's to decide, and
//! so is the order, because the core keeps at most one call under way for each group and each node.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ebb_core::fleet::{Action, Event, Failure, GroupState};
use ebb_core::ray::Drained;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::metrics::Metrics;
use crate::standing::Standing;

/// Changes under way at once. Well below the Auto Scaling API's burst, which the whole account shares.
const CALLS: usize = 16;
/// Events and statuses being written at once. A burst of pods has an Event each, and must not keep changes waiting.
const EXPLANATIONS: usize = 4;
/// A leader steps down when it could not renew for 10 s, another may start after 15 (`ebb_core::lease`): whatever the
/// first began is over by then.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// A call that did not come to its end.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct CallError {
    pub failure: Failure,
    pub detail: String,
}

/// What a call gave.
#[derive(Debug)]
pub enum Outcome {
    Done,
    Groups(Vec<GroupState>),
    Launched { instances: Vec<String>, failures: Vec<String> },
    RayNodeDrained(Drained),
}

/// The world that actions change: the real one, or a test's.
pub trait Outside: Send + Sync + 'static {
    fn call(&self, action: &Action) -> impl Future<Output = Result<Outcome, CallError>> + Send;
}

/// Carries out what comes, until the driver is gone; then waits for what is under way.
pub async fn run<O: Outside>(
    mut actions: mpsc::UnboundedReceiver<Action>,
    outside: O,
    standing: Standing,
    inbox: mpsc::Sender<Event>,
    metrics: Arc<Metrics>,
) {
    let outside = Arc::new(outside);
    let absent = Arc::new(Absent::default());
    let calls = Arc::new(Semaphore::new(CALLS));
    let explanations = Arc::new(Semaphore::new(EXPLANATIONS));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            action = actions.recv() => {
                let Some(action) = action else { break };
                let tells = matches!(
                    action,
                    Action::Explain { .. }
                        | Action::SetPodDeletionCost { .. }
                        | Action::ShowBuffer { .. }
                        | Action::ShowRayWorkerGroup { .. }
                );
                let turn = if tells { &explanations } else { &calls };
                let (turn, outside, standing) = (turn.clone(), outside.clone(), standing.clone());
                let (inbox, metrics, absent) = (inbox.clone(), metrics.clone(), absent.clone());
                tasks.spawn(async move {
                    let Ok(_turn) = turn.acquire().await else { return };
                    let event = carry_out(&*outside, action, &standing, &metrics).await;
                    absent.note(&event);
                    // The driver is gone only when the process is about to be.
                    let _ = inbox.send(event).await;
                });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    // What has not begun is left to the next leader.
    calls.close();
    explanations.close();
    drop(inbox);
    while tasks.join_next().await.is_some() {}
}

/// Groups that the Auto Scaling API does not have, so that each is complained of once and not at every look.
#[derive(Default)]
struct Absent(Mutex<BTreeSet<String>>);

impl Absent {
    fn note(&self, event: &Event) {
        let Event::Groups { asked: Action::Describe { groups: asked, .. }, groups } = event else { return };
        let mut absent = self.0.lock().expect("nobody panics while holding it");
        for group in asked {
            let there = groups.iter().any(|found| found.name == *group);
            if there {
                absent.remove(group);
            } else if absent.insert(group.clone()) {
                tracing::warn!(%group, "no such Auto Scaling group in this account and region");
            }
        }
    }
}

async fn carry_out(outside: &impl Outside, action: Action, standing: &Standing, metrics: &Metrics) -> Event {
    // It may have waited for its turn, and the lead may be another's by now.
    let result = if standing.leads() {
        let start = Instant::now();
        let late = |_| CallError { failure: Failure::Unavailable, detail: format!("no reply in {CALL_TIMEOUT:?}") };
        let result = timeout(CALL_TIMEOUT, outside.call(&action)).await.map_err(late).flatten();
        metrics.call(&action, result.as_ref().err().map(|error| error.failure), start.elapsed());
        result
    } else {
        Err(CallError { failure: Failure::Unavailable, detail: "not the leader any more".into() })
    };
    match result {
        Ok(Outcome::Done) => Event::Done(action),
        Ok(Outcome::Groups(groups)) => Event::Groups { asked: action, groups },
        Ok(Outcome::RayNodeDrained(answer)) => Event::RayNodeDrained { asked: action, answer },
        Ok(Outcome::Launched { instances, failures }) => Event::Launched { asked: action, instances, failures },
        Err(CallError { failure, detail }) => {
            tracing::warn!(
                action = action.name(),
                about = crate::action::about(&action),
                ?failure,
                detail,
                "call failed"
            );
            Event::Failed { action, failure }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ebb_core::reason::Reason;
    use prometheus_client::registry::Registry;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// Takes its time, and counts how many calls it has at once.
    #[derive(Default)]
    struct Slow {
        takes: Duration,
        now: AtomicUsize,
        most: Arc<AtomicUsize>,
    }

    impl Outside for Slow {
        async fn call(&self, _: &Action) -> Result<Outcome, CallError> {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(self.takes).await;
            self.now.fetch_sub(1, Ordering::Relaxed);
            Ok(Outcome::Done)
        }
    }

    fn set_desired(group: &str) -> Action {
        Action::SetDesired { group: group.into(), from: 1, to: 2, because: Reason::BelowMinimum { min: 2 } }
    }

    struct Bench {
        actions: mpsc::UnboundedSender<Action>,
        standing: Standing,
        events: mpsc::Receiver<Event>,
        most: Arc<AtomicUsize>,
        task: tokio::task::JoinHandle<()>,
    }

    async fn bench(takes: Duration) -> Bench {
        let (inbox, mut events) = mpsc::channel(64);
        let standing = Standing::new(inbox.clone());
        standing.set_leading(true).await;
        events.recv().await;
        let (actions, taken) = mpsc::unbounded_channel();
        let slow = Slow { takes, ..Slow::default() };
        let most = slow.most.clone();
        let metrics = Arc::new(Metrics::register(&mut Registry::default()));
        let task = tokio::spawn(run(taken, slow, standing.clone(), inbox, metrics));
        Bench { actions, standing, events, most, task }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_reply_fails_before_the_lease_can_be_anothers() {
        let mut bench = bench(Duration::from_secs(3600)).await;
        bench.actions.send(set_desired("a")).unwrap();
        let event = timeout(CALL_TIMEOUT * 2, bench.events.recv()).await.unwrap().unwrap();
        assert_eq!(event, Event::Failed { action: set_desired("a"), failure: Failure::Unavailable });
        assert!(CALL_TIMEOUT < ebb_core::lease::DURATION - ebb_core::lease::RENEW_DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_calls_are_under_way() {
        let mut bench = bench(Duration::from_secs(1)).await;
        for number in 0..CALLS * 2 {
            bench.actions.send(set_desired(&number.to_string())).unwrap();
        }
        for _ in 0..CALLS * 2 {
            assert!(matches!(bench.events.recv().await, Some(Event::Done(_))));
        }
        assert_eq!(bench.most.load(Ordering::Relaxed), CALLS);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_begun_without_the_lead() {
        let mut bench = bench(Duration::ZERO).await;
        bench.standing.set_leading(false).await;
        bench.events.recv().await;
        bench.actions.send(set_desired("a")).unwrap();
        let event = bench.events.recv().await.unwrap();
        assert_eq!(event, Event::Failed { action: set_desired("a"), failure: Failure::Unavailable });
        assert_eq!(bench.most.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_waited_for_when_the_driver_ends() {
        let mut bench = bench(Duration::from_secs(2)).await;
        bench.actions.send(set_desired("a")).unwrap();
        tokio::task::yield_now().await;
        sleep(Duration::from_secs(1)).await;
        drop(bench.actions);
        bench.task.await.unwrap();
        assert!(matches!(bench.events.recv().await, Some(Event::Done(_))));
    }
}
