//! Carries actions out and says what became of them. Holds no rules: when to try again is the core's to decide, and
//! so is the order, because the core keeps at most one call under way for each group and each node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ebb_core::fleet::{Action, Event, Failure, GroupState};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::autoscaling::AutoScaling;
use crate::kubernetes::Kubernetes;
use crate::metrics::Metrics;
use crate::standing::Standing;

/// Changes under way at once. Well below the Auto Scaling API's burst, which the whole account shares.
const CALLS: usize = 16;
/// Events being written at once. A burst of pods has an Event each, and must not keep changes waiting.
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
}

/// The world that actions change: the real one, or a test's.
pub trait Outside: Send + Sync + 'static {
    fn call(&self, action: &Action) -> impl Future<Output = Result<Outcome, CallError>> + Send;
}

/// AWS and the cluster.
pub struct Real {
    pub autoscaling: AutoScaling,
    pub kubernetes: Kubernetes,
}

impl Outside for Real {
    async fn call(&self, action: &Action) -> Result<Outcome, CallError> {
        match action {
            Action::CancelDrain { node, uid, id, .. } => self.kubernetes.cancel_drain(node, uid, id).await?,
            Action::Describe { groups, .. } => return self.autoscaling.describe(groups).await.map(Outcome::Groups),
            Action::Drain { node, uid, intent, .. } => self.kubernetes.drain(node, uid, intent).await?,
            Action::Explain { namespace, pod, uid, because } => {
                self.kubernetes.explain(namespace, pod, uid, because).await?;
            }
            Action::SetDesired { group, from, to, .. } => self.autoscaling.set_desired(group, *from, *to).await?,
            Action::Terminate { instance, .. } => self.autoscaling.terminate(instance).await?,
        }
        Ok(Outcome::Done)
    }
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
    let calls = Arc::new(Semaphore::new(CALLS));
    let explanations = Arc::new(Semaphore::new(EXPLANATIONS));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            action = actions.recv() => {
                let Some(action) = action else { break };
                let turn = if matches!(action, Action::Explain { .. }) { &explanations } else { &calls };
                let (turn, outside, standing) = (turn.clone(), outside.clone(), standing.clone());
                let (inbox, metrics) = (inbox.clone(), metrics.clone());
                tasks.spawn(async move {
                    let Ok(_turn) = turn.acquire().await else { return };
                    let event = carry_out(&*outside, action, &standing, &metrics).await;
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
        Err(CallError { failure, detail }) => {
            tracing::warn!(
                action = crate::action::name(&action),
                about = crate::action::about(&action),
                ?failure,
                detail,
                "call failed"
            );
            Event::Failed { action, failure }
        }
    }
}
