//! Watches nodes, pods, their storage and their disruption budgets, and says when that picture can be relied on. Buffers have
//! a way of their own, but nothing is decided before it is known what nodes are kept for.
//!
//! Not `kube::runtime::watcher`: it keeps to itself that a watch was opened again or a bookmark came, and these are
//! the only signs of life of a quiet watch.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use ebb_core::fleet::Event;
use ebb_core::{disruption, kubernetes, storage};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep, timeout_at};

use crate::buffers::Buffers;
use crate::metrics_api::Known;
use crate::standing::Standing;

/// The API server ends each watch after this, so that even a cluster in which nothing happens gives a sign of life.
const WATCH_SECONDS: u32 = 30;
/// Without a sign of life for this long the picture counts as stale: a whole watch, and time to open the next.
const MAX_SILENCE: Duration = Duration::from_secs(45);
/// Between attempts, doubled up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// client-go's page size.
const PAGE: u32 = 500;
/// Pods that are over ask for nothing; without them the watch tells of their end as a deletion.
const PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// The nodes there are: name and UID. Reports of others are refused before they reach the core.
#[derive(Clone, Debug, Default)]
pub struct Nodes(Arc<RwLock<BTreeMap<String, String>>>);

impl Nodes {
    pub fn has(&self, name: &str, uid: &str) -> bool {
        self.0.read().expect("nobody panics while holding it").get(name).is_some_and(|known| known == uid)
    }

    fn note(&self, event: &Event) {
        let mut nodes = self.0.write().expect("nobody panics while holding it");
        match event {
            Event::NodeApplied(node) => {
                nodes.insert(node.name.clone(), node.uid.clone());
            }
            // A node of the same name may be there already: only this UID is gone.
            Event::NodeDeleted { name, uid } if nodes.get(name) == Some(uid) => {
                nodes.remove(name);
            }
            _ => {}
        }
    }
}

/// Who is told of each change before the driver.
#[derive(Clone, Debug)]
pub struct Seen {
    pub nodes: Nodes,
    pub usage: Known,
}

impl Seen {
    pub(crate) fn note(&self, event: &Event) {
        self.nodes.note(event);
        self.usage.note(event);
    }
}

/// Whose pods are the agents'.
#[derive(Clone, Debug)]
pub struct Agents {
    pub namespace: String,
    pub service_account: String,
}

/// Watches for ever.
pub async fn watch(client: Client, agents: Agents, seen: Seen, standing: Standing, inbox: mpsc::Sender<Event>) {
    let fresh = Fresh { standing, all: Mutex::default() };
    let list_nodes = ListParams::default().limit(PAGE);
    let list_pods = ListParams::default().limit(PAGE).fields(PODS);
    let mut node_watch = Watch {
        api: Api::<Node>::all(client.clone()),
        list: list_nodes,
        known: BTreeSet::new(),
        key: node_key,
        to_event: node_event,
        seen: seen.clone(),
        inbox: inbox.clone(),
    };
    let mut pod_watch = Watch {
        api: Api::<Pod>::all(client.clone()),
        list: list_pods,
        known: BTreeSet::new(),
        key: pod_key,
        to_event: pod_event,
        seen: seen.clone(),
        inbox: inbox.clone(),
    };
    let account = format!("spec.serviceAccountName={}", agents.service_account);
    let mut agent_watch = Watch {
        api: Api::<Pod>::namespaced(client.clone(), &agents.namespace),
        list: ListParams::default().limit(PAGE).fields(&account),
        known: BTreeSet::new(),
        key: pod_key,
        to_event: agent_event,
        seen: seen.clone(),
        inbox: inbox.clone(),
    };
    let mut claims = named_watch(&client, &seen, &inbox, claim_event);
    let mut volumes = named_watch(&client, &seen, &inbox, volume_event);
    let mut classes = named_watch(&client, &seen, &inbox, class_event);
    let mut budgets = named_watch(&client, &seen, &inbox, budget_event);
    let buffers = Buffers::new(client.clone(), inbox.clone());
    tokio::join!(
        node_watch.run(&fresh, 0),
        pod_watch.run(&fresh, 1),
        agent_watch.run(&fresh, 2),
        claims.run(&fresh, 3),
        volumes.run(&fresh, 4),
        classes.run(&fresh, 5),
        budgets.run(&fresh, 6),
        buffers.watch(async || fresh.set(7, true).await),
    );
}

fn named_watch<K>(
    client: &Client,
    seen: &Seen,
    inbox: &mpsc::Sender<Event>,
    to_event: fn(Change<'_, K>) -> Event,
) -> Watch<K>
where
    K: Resource<DynamicType = ()>,
{
    let list = ListParams::default().limit(PAGE);
    let (seen, inbox) = (seen.clone(), inbox.clone());
    Watch { api: Api::all(client.clone()), list, known: BTreeSet::new(), key: named_key, to_event, seen, inbox }
}

/// Which of the watches are complete and live. Synced is all of them.
struct Fresh {
    standing: Standing,
    all: Mutex<[bool; 8]>,
}

impl Fresh {
    async fn set(&self, index: usize, fresh: bool) {
        let mut all = self.all.lock().await;
        all[index] = fresh;
        // Under the lock, so that two watches cannot say this in the wrong order.
        self.standing.set_synced(all.iter().all(|fresh| *fresh)).await;
    }
}

/// What became of an object.
enum Change<'a, K> {
    Applied(&'a K),
    Deleted(&'a Key),
}

/// By which an object's end is told: of a node its name and UID, of a pod its UID, else namespace and name. There is one
/// for each pod, so it holds no more than that.
type Key = (Box<str>, Box<str>);

fn node_key(node: &Node) -> Key {
    (node.name_any().into(), node.uid().unwrap_or_default().into())
}

fn pod_key(pod: &Pod) -> Key {
    (pod.uid().unwrap_or_default().into(), Box::default())
}

fn named_key(object: &impl ResourceExt) -> Key {
    (object.namespace().unwrap_or_default().into(), object.name_any().into())
}

fn node_event(change: Change<'_, Node>) -> Event {
    match change {
        Change::Applied(node) => Event::NodeApplied(kubernetes::Node::from(node)),
        Change::Deleted((name, uid)) => Event::NodeDeleted { name: name.to_string(), uid: uid.to_string() },
    }
}

fn pod_event(change: Change<'_, Pod>) -> Event {
    match change {
        Change::Applied(pod) => Event::PodApplied(kubernetes::Pod::from(pod)),
        Change::Deleted((uid, _)) => Event::PodDeleted { uid: uid.to_string() },
    }
}

fn agent_event(change: Change<'_, Pod>) -> Event {
    match change {
        Change::Applied(pod) => Event::AgentPodApplied(kubernetes::AgentPod::from(pod)),
        Change::Deleted((uid, _)) => Event::AgentPodDeleted { uid: uid.to_string() },
    }
}

fn claim_event(change: Change<'_, PersistentVolumeClaim>) -> Event {
    Event::Storage(match change {
        Change::Applied(claim) => storage::Change::Claim(claim.into()),
        Change::Deleted((namespace, name)) => {
            storage::Change::ClaimDeleted { namespace: namespace.to_string(), name: name.to_string() }
        }
    })
}

fn volume_event(change: Change<'_, PersistentVolume>) -> Event {
    Event::Storage(match change {
        Change::Applied(volume) => storage::Change::Volume(volume.into()),
        Change::Deleted((_, name)) => storage::Change::VolumeDeleted { name: name.to_string() },
    })
}

fn class_event(change: Change<'_, StorageClass>) -> Event {
    Event::Storage(match change {
        Change::Applied(class) => storage::Change::Class(class.into()),
        Change::Deleted((_, name)) => storage::Change::ClassDeleted { name: name.to_string() },
    })
}

fn budget_event(change: Change<'_, PodDisruptionBudget>) -> Event {
    Event::PodDisruptionBudget(match change {
        Change::Applied(budget) => disruption::Change::Applied(budget.into()),
        Change::Deleted((namespace, name)) => {
            disruption::Change::Deleted { namespace: namespace.to_string(), name: name.to_string() }
        }
    })
}

struct Watch<K> {
    api: Api<K>,
    list: ListParams,
    known: BTreeSet<Key>,
    key: fn(&K) -> Key,
    to_event: fn(Change<'_, K>) -> Event,
    seen: Seen,
    inbox: mpsc::Sender<Event>,
}

/// Why watching has to begin again.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("list")]
    List(#[source] kube::Error),
    #[error("watch")]
    Watch(#[source] kube::Error),
    #[error("no sign of life for {} s", MAX_SILENCE.as_secs())]
    Silent(#[from] tokio::time::error::Elapsed),
    #[error("the API server no longer has what happened since: {0}")]
    Expired(String),
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    /// After anything but a regular end of a watch everything is listed again: then the picture is whole, whatever
    /// was missed.
    async fn run(&mut self, fresh: &Fresh, index: usize) {
        let kind = K::kind(&());
        let mut backoff = BACKOFF.0;
        loop {
            let broken = match self.list().await {
                Ok(version) => {
                    backoff = BACKOFF.0;
                    fresh.set(index, true).await;
                    self.follow(version).await
                }
                Err(broken) => broken,
            };
            if !matches!(broken, Broken::Expired(_)) {
                let error = anyhow::Error::new(broken);
                tracing::warn!(%kind, error = format!("{error:#}"), "watch broken, listing again");
                fresh.set(index, false).await;
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }

    /// Lists everything, and deletes what is not there any more.
    async fn list(&mut self) -> Result<String, Broken> {
        let mut gone = std::mem::take(&mut self.known);
        let result = self.pages(&mut gone).await;
        if result.is_err() {
            // Not seen is not gone: keep it for the next listing to tell.
            self.known.append(&mut gone);
        }
        for key in gone {
            self.send(Change::Deleted(&key)).await;
        }
        result
    }

    async fn pages(&mut self, gone: &mut BTreeSet<Key>) -> Result<String, Broken> {
        let mut page = self.list.clone();
        loop {
            let deadline = Instant::now() + MAX_SILENCE;
            let list = timeout_at(deadline, self.api.list(&page)).await?.map_err(Broken::List)?;
            for object in &list.items {
                gone.remove(&(self.key)(object));
                self.apply(object).await;
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => return Ok(list.metadata.resource_version.unwrap_or_default()),
            }
        }
    }

    /// Follows changes until something is wrong.
    async fn follow(&mut self, mut version: String) -> Broken {
        let params = WatchParams {
            field_selector: self.list.field_selector.clone(),
            timeout: Some(WATCH_SECONDS),
            ..WatchParams::default()
        };
        let mut deadline = Instant::now() + MAX_SILENCE;
        loop {
            let stream = match timeout_at(deadline, self.api.watch(&params, &version)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(kube::Error::Api(status))) if status.code == 410 => return Broken::Expired(status.message),
                Ok(Err(error)) => return Broken::Watch(error),
                Err(elapsed) => return elapsed.into(),
            };
            let mut stream = pin!(stream);
            deadline = Instant::now() + MAX_SILENCE;
            loop {
                match timeout_at(deadline, stream.try_next()).await {
                    Ok(Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                        version = object.resource_version().unwrap_or_default();
                        self.apply(&object).await;
                    }
                    Ok(Ok(Some(WatchEvent::Deleted(object)))) => {
                        version = object.resource_version().unwrap_or_default();
                        let key = (self.key)(&object);
                        self.known.remove(&key);
                        self.send(Change::Deleted(&key)).await;
                    }
                    Ok(Ok(Some(WatchEvent::Bookmark(bookmark)))) => version = bookmark.metadata.resource_version,
                    Ok(Ok(Some(WatchEvent::Error(status)))) if status.code == 410 => {
                        return Broken::Expired(status.message);
                    }
                    Ok(Ok(Some(WatchEvent::Error(status)))) => return Broken::Watch(kube::Error::Api(status)),
                    // The regular end. Opening the next one must succeed within what is left of the deadline.
                    Ok(Ok(None)) => break,
                    Ok(Err(error)) => return Broken::Watch(error),
                    Err(elapsed) => return elapsed.into(),
                }
                deadline = Instant::now() + MAX_SILENCE;
            }
        }
    }

    async fn apply(&mut self, object: &K) {
        self.known.insert((self.key)(object));
        self.send(Change::Applied(object)).await;
    }

    async fn send(&mut self, change: Change<'_, K>) {
        let event = (self.to_event)(change);
        self.seen.note(&event);
        // The driver is gone only when the process is about to be.
        let _ = self.inbox.send(event).await;
    }
}
