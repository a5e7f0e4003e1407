//! Carries out the drain of the own node: shows the core's `Drain` what the API server says, and does what it asks.
//! No rules here: what to do, and when, is the core's.

mod eviction;
mod patch;

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::drain::{Action, Change, Drain, Event, EvictionOutcome, Step};
use ebb_core::kubernetes::Node;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use k8s_openapi::api::core::v1 as api;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde::de::IgnoredAny;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::health::chain;
use crate::metrics::Metrics;
use crate::watching::{self, NodeState};

use eviction::Answer;
use patch::Known;

/// Longer than the API server tries to write a PodDisruptionBudget: 20 times every 500 ms.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(30);
const PATCH_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Edge {
    pub client: Client,
    pub node: String,
    pub clock: Clock,
    /// Where others learn the UID of the Node.
    pub node_uid: watch::Sender<Option<String>>,
    pub metrics: Metrics,
}

/// The end of a request.
enum Reply {
    Evicted { pod: String, uid: String, answer: Answer },
    Patched(Box<api::Node>),
    PatchFailed,
}

/// The drain of one Node object, and all that is under way for it.
#[derive(Default)]
struct Drive {
    drain: Drain,
    /// The Node as it was last shown to the drain.
    known: Option<Known>,
    pods: Option<BoxStream<'static, Vec<ebb_core::kubernetes::Pod>>>,
    requests: FuturesUnordered<BoxFuture<'static, Reply>>,
    /// The latest answer to an eviction, by pod UID.
    answers: BTreeMap<String, Answer>,
}

impl Edge {
    /// Runs until `stop`. What is under way then is left: the Node tells the next agent where to go on.
    pub async fn run(self, stop: CancellationToken) {
        let mut nodes = watching::node(self.client.clone(), &self.node);
        let mut drive = Drive::default();
        loop {
            let wakeup = drive.drain.next_wakeup();
            let events = tokio::select! {
                () = stop.cancelled() => return,
                Some(state) = nodes.next() => match state {
                    NodeState::Is(node) => self.seen(&mut drive, &node),
                    NodeState::Gone => {
                        tracing::warn!(node = self.node, "node object is gone");
                        self.node_uid.send_replace(None);
                        drive = Drive::default();
                        continue;
                    }
                },
                Some(pods) = next(&mut drive.pods) => vec![Event::Pods(pods)],
                Some(reply) = drive.requests.next() => self.replied(&mut drive, reply),
                () = self.sleep_until(wakeup) => vec![Event::Tick],
            };
            for event in events {
                for action in drive.drain.handle(self.clock.now(), event) {
                    self.perform(&mut drive, action);
                }
            }
        }
    }

    /// A watch may be behind the reply to a patch: what is older than what was shown is left out.
    fn seen(&self, drive: &mut Drive, node: &api::Node) -> Vec<Event> {
        let known = Known::from(node);
        if drive.known.as_ref().is_some_and(|last| last.uid != known.uid) {
            // Another node of the same name: nothing that was asked for the old one is of use.
            *drive = Drive::default();
        }
        if drive.known.as_ref().is_some_and(|last| !known.is_newer_than(last)) {
            return Vec::new();
        }
        let uid = (!known.uid.is_empty()).then(|| known.uid.clone());
        self.node_uid.send_if_modified(|current| {
            let changed = *current != uid;
            *current = uid;
            changed
        });
        drive.known = Some(known);
        vec![Event::Node(Node::from(node))]
    }

    fn replied(&self, drive: &mut Drive, reply: Reply) -> Vec<Event> {
        match reply {
            Reply::Evicted { pod, uid, answer } => {
                // A blocked pod gives the same answer every few seconds: said once.
                if drive.answers.get(&uid) != Some(&answer) {
                    log(&pod, &uid, &answer);
                    drive.answers.insert(uid.clone(), answer.clone());
                }
                vec![Event::Evicted { uid, outcome: answer.outcome }]
            }
            Reply::PatchFailed => vec![Event::PatchFailed],
            Reply::Patched(node) => {
                let mut events = self.seen(drive, &node);
                events.push(Event::Patched);
                events
            }
        }
    }

    fn perform(&self, drive: &mut Drive, action: Action) {
        match action {
            Action::WatchPods => drive.pods = Some(watching::pods(self.client.clone(), &self.node)),
            Action::UnwatchPods => {
                drive.pods = None;
                drive.answers.clear();
            }
            Action::Patch { change, because } => {
                let known = drive.known.as_ref().expect("a drain patches only a node that it was shown");
                drive.requests.push(self.patch(known, &change, because));
            }
            Action::Evict { namespace, name, uid } => drive.requests.push(self.evict(namespace, name, uid)),
        }
    }

    fn patch(&self, known: &Known, change: &Change, because: Step) -> BoxFuture<'static, Reply> {
        let nodes: Api<api::Node> = Api::all(self.client.clone());
        let (name, metrics) = (self.node.clone(), self.metrics.clone());
        let (body, is_status) = match change {
            Change::Spec { unschedulable, progress } => (patch::spec(known, *unschedulable, progress.as_ref()), false),
            Change::Conditions(conditions) => (patch::conditions(known, conditions, self.clock.now()), true),
        };
        Box::pin(async move {
            let parameters = PatchParams { field_manager: Some("ebb-agent".into()), ..PatchParams::default() };
            let request = async {
                if is_status {
                    nodes.patch_status(&name, &parameters, &Patch::Strategic(body)).await
                } else {
                    nodes.patch(&name, &parameters, &Patch::Merge(body)).await
                }
            };
            match tokio::time::timeout(PATCH_TIMEOUT, request).await {
                Ok(Ok(node)) => {
                    tracing::info!(step = because.name(), status = is_status, "node changed");
                    metrics.stepped(because.name());
                    Reply::Patched(Box::new(node))
                }
                failed => {
                    let error = match failed {
                        Ok(Err(error)) => chain(&error),
                        _ => "no reply in time".to_owned(),
                    };
                    tracing::warn!(step = because.name(), error, "node not changed");
                    metrics.patches_failed.inc();
                    Reply::PatchFailed
                }
            }
        })
    }

    fn evict(&self, namespace: String, name: String, uid: String) -> BoxFuture<'static, Reply> {
        let pods: Api<api::Pod> = Api::namespaced(self.client.clone(), &namespace);
        let metrics = self.metrics.clone();
        Box::pin(async move {
            let body = eviction::body(&namespace, &name, &uid);
            let parameters = PostParams::default();
            let request = pods.create_subresource::<_, IgnoredAny>("eviction", &name, &parameters, &body);
            let result = tokio::time::timeout(EVICTION_TIMEOUT, request).await;
            let answer = eviction::answer(result.as_ref().ok());
            metrics.evicted(eviction::label(answer.outcome));
            Reply::Evicted { pod: format!("{namespace}/{name}"), uid, answer }
        })
    }

    async fn sleep_until(&self, wakeup: Option<ebb_core::time::Instant>) {
        match wakeup {
            Some(at) => tokio::time::sleep(self.clock.until(at)).await,
            None => std::future::pending().await,
        }
    }
}

fn log(pod: &str, uid: &str, answer: &Answer) {
    let (outcome, reason) = (eviction::label(answer.outcome), &answer.reason);
    match answer.outcome {
        EvictionOutcome::Refused => tracing::warn!(pod, uid, reason, "eviction refused"),
        _ => tracing::info!(pod, uid, outcome, reason, "eviction answered"),
    }
}

async fn next<T>(stream: &mut Option<BoxStream<'static, T>>) -> Option<T> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}
