//! Carries out the drain of the own node: shows the core's `Drain` what the API server says, and does what it asks.
//! No rules here: what to do, and when, is the core's.

pub mod hooks;
mod patch;

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::broker::FIELD_MANAGER;
use ebb_core::drain;
use ebb_core::drain::{
    Action, Change, Drain, Event, EvictionOutcome, HookOutcome, HookPhase, Node, Pod, Settings, Step, Target,
};
use ebb_core::notice::Notices;
use ebb_kubernetes::eviction;
use futures::future::{AbortHandle, BoxFuture, abortable};
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use k8s_openapi::api::core::v1 as api;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::health::chain;
use crate::metrics::Metrics;
use crate::watching::{self, NodeState};

use hooks::Hooks;
use patch::Known;

const PATCH_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Edge {
    pub client: Client,
    /// The same, but where another writes for the agent.
    pub writes: Client,
    pub node: String,
    pub clock: Clock,
    pub settings: Settings,
    pub hooks: Hooks,
    /// What is known of the node's end.
    pub notices: watch::Receiver<Notices>,
    /// Where others learn the UID of the Node.
    pub node_uid: watch::Sender<Option<String>>,
    /// Where others learn whether the node may go down.
    pub may_go_down: watch::Sender<bool>,
    pub metrics: Metrics,
}

/// The end of a request.
enum Reply {
    Answered {
        pod: Target,
        is_check: bool,
        reply: drain::Reply,
    },
    Hooked {
        hook: String,
        phase: HookPhase,
        outcome: HookOutcome,
    },
    /// A hook was stopped.
    Stopped,
    Patched(Box<api::Node>),
    PatchFailed,
}

/// The drain of one Node object, and all that is under way for it.
struct Drive {
    drain: Drain,
    /// The Node as it was last shown to the drain.
    known: Option<Known>,
    pods: Option<BoxStream<'static, Vec<Pod>>>,
    requests: FuturesUnordered<BoxFuture<'static, Reply>>,
    /// The latest answer to an eviction, by pod UID.
    answers: BTreeMap<String, drain::Reply>,
    running: BTreeMap<(String, HookPhase), AbortHandle>,
    /// The hook that was asked last, at which phase of which drain.
    asked: Option<(String, HookPhase, String)>,
}

impl Edge {
    /// Runs until `stop`. What is under way then is left: the Node tells the next agent where to go on.
    pub async fn run(self, stop: CancellationToken) {
        let mut nodes = watching::node(self.client.clone(), &self.node);
        let mut drive = self.begin();
        let mut notices = self.notices.clone();
        loop {
            let wakeup = drive.drain.next_wakeup();
            let events = tokio::select! {
                () = stop.cancelled() => return,
                Some(state) = nodes.next() => match state {
                    NodeState::Is(node) => self.seen(&mut drive, &node),
                    NodeState::Gone => {
                        tracing::warn!(node = self.node, "node object is gone");
                        self.node_uid.send_replace(None);
                        self.may_go_down.send_replace(false);
                        drive = self.begin();
                        continue;
                    }
                },
                Ok(()) = notices.changed() => vec![Event::Notices(notices.borrow_and_update().clone())],
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

    fn begin(&self) -> Drive {
        let mut drain = Drain::new(self.settings.clone());
        // It asks for nothing before it has seen a node.
        drain.handle(self.clock.now(), Event::Notices(self.notices.borrow().clone()));
        Drive {
            drain,
            known: None,
            pods: None,
            requests: FuturesUnordered::new(),
            answers: BTreeMap::new(),
            running: BTreeMap::new(),
            asked: None,
        }
    }

    /// A watch may be behind the reply to a patch: what is older than what was shown is left out.
    fn seen(&self, drive: &mut Drive, node: &api::Node) -> Vec<Event> {
        let known = Known::from(node);
        if drive.known.as_ref().is_some_and(|last| last.uid != known.uid) {
            // Another node of the same name: nothing that was asked for the old one is of use.
            *drive = self.begin();
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
        let node = Node::from(node);
        self.may_go_down.send_if_modified(|may| std::mem::replace(may, node.may_go_down()) != *may);
        vec![Event::Node(Box::new(node))]
    }

    fn replied(&self, drive: &mut Drive, reply: Reply) -> Vec<Event> {
        match reply {
            Reply::Answered { pod: Target { namespace, name, uid }, is_check, reply } => {
                // A blocked pod gives the same answer every few seconds: said once.
                if drive.answers.get(&uid) != Some(&reply) {
                    log(&format!("{namespace}/{name}"), &uid, is_check, &reply);
                    drive.answers.insert(uid.clone(), reply.clone());
                }
                vec![if is_check { Event::Checked { uid, reply } } else { Event::Evicted { uid, reply } }]
            }
            Reply::Hooked { hook, phase, outcome } => {
                let phase_name = phase.name();
                match outcome {
                    // Which it may do each second.
                    HookOutcome::Later { .. } => tracing::debug!(hook, phase = phase_name, ?outcome, "hook answered"),
                    _ => tracing::info!(hook, phase = phase_name, ?outcome, "hook answered"),
                }
                drive.running.remove(&(hook.clone(), phase));
                vec![Event::Hook { hook, phase, outcome }]
            }
            Reply::Stopped => Vec::new(),
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
            Action::Check(pod) => drive.requests.push(self.check(pod)),
            Action::Evict { pod, grace } => drive.requests.push(self.evict(pod, grace)),
            Action::Delete { pod, grace } => drive.requests.push(self.delete(pod, grace)),
            Action::RunHook { hook, phase, until, about } => {
                let point = (hook.clone(), phase, about.id.clone());
                if drive.asked.as_ref() == Some(&point) {
                    tracing::debug!(hook, phase = phase.name(), drain = about.id, "hook asked again");
                } else {
                    tracing::info!(hook, phase = phase.name(), drain = about.id, "hook asked");
                    drive.asked = Some(point);
                }
                let (run, handle) = abortable(self.hooks.run(&hook, phase, until, &about));
                drive.running.insert((hook.clone(), phase), handle);
                drive.requests.push(Box::pin(async move {
                    run.await.map_or(Reply::Stopped, |outcome| Reply::Hooked { hook, phase, outcome })
                }));
            }
            Action::StopHook { hook, phase } => {
                tracing::warn!(hook, phase = phase.name(), "hook stopped");
                if let Some(running) = drive.running.remove(&(hook, phase)) {
                    running.abort();
                }
            }
        }
    }

    fn patch(&self, known: &Known, change: &Change, because: Step) -> BoxFuture<'static, Reply> {
        let nodes: Api<api::Node> = Api::all(self.writes.clone());
        let (name, metrics) = (self.node.clone(), self.metrics.clone());
        let (body, is_status) = match change {
            Change::Node(change) => (patch::node(known, change), false),
            Change::Conditions(conditions) => (patch::conditions(known, conditions, self.clock.now()), true),
        };
        Box::pin(async move {
            let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
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

    fn check(&self, pod: Target) -> BoxFuture<'static, Reply> {
        let client = self.writes.clone();
        Box::pin(async move {
            // Who may not evict will be told so again, and that is then an answer.
            let refused =
                |error: kube::Error| drain::Reply { reason: chain(&error), ..EvictionOutcome::Refused.into() };
            let reply = eviction::dry_run(&client, &pod).await.unwrap_or_else(refused);
            Reply::Answered { pod, is_check: true, reply }
        })
    }

    fn evict(&self, pod: Target, grace: Option<Duration>) -> BoxFuture<'static, Reply> {
        let (client, metrics) = (self.writes.clone(), self.metrics.clone());
        Box::pin(async move {
            let reply = eviction::evict(&client, &pod, grace).await;
            metrics.evicted(reply.outcome.name());
            Reply::Answered { pod, is_check: false, reply }
        })
    }

    fn delete(&self, pod: Target, grace: Duration) -> BoxFuture<'static, Reply> {
        let (client, metrics) = (self.writes.clone(), self.metrics.clone());
        Box::pin(async move {
            let Target { namespace, name, uid } = &pod;
            tracing::warn!(namespace, pod = name, uid, ?grace, "pod deleted past its budget");
            let reply = eviction::delete(&client, &pod, grace).await;
            metrics.evicted("forced");
            Reply::Answered { pod, is_check: false, reply }
        })
    }

    async fn sleep_until(&self, wakeup: Option<ebb_core::time::Instant>) {
        match wakeup {
            Some(at) => tokio::time::sleep(self.clock.until(at)).await,
            None => std::future::pending().await,
        }
    }
}

fn log(pod: &str, uid: &str, is_check: bool, reply: &drain::Reply) {
    let (outcome, reason) = (reply.outcome.name(), &reply.reason);
    match reply.outcome {
        EvictionOutcome::Refused => tracing::warn!(pod, uid, is_check, reason, "eviction refused"),
        _ => tracing::info!(pod, uid, is_check, outcome, reason, "eviction answered"),
    }
}

async fn next<T>(stream: &mut Option<BoxStream<'static, T>>) -> Option<T> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}
